//! One `.cu` file as a shared library of the host.

use std::ffi::{CStr, c_char, c_void};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use libloading::Library;
use wattle_kernels::cuda::{Argument, Call, Launch};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda");
/// Contraction to fused multiply-adds is off, so that every compiler gives the same bits.
const FLAGS: [&str; 13] = [
    "-std=c++17",
    "-O1",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-Wall",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-Wno-unused-function",
    "-fsanitize=bounds,alignment",
    "-DWATTLE_HOST",
];

/// The turns of blocks, and of threads within a block. A kernel's result must not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By rising index.
    Forward,
    /// By falling index.
    Reversed,
}

impl Order {
    /// Both.
    pub const ALL: [Order; 2] = [Order::Forward, Order::Reversed];
}

/// The kernels of one source file, compiled for the host.
pub struct Kernels {
    source: String,
    library: Library,
    /// The emulation has one block's state: launches take turns.
    turn: Mutex<()>,
}

impl Kernels {
    /// Compiles `cuda/<source>`, or takes the library that an earlier run made of the same sources.
    ///
    /// # Panics
    /// When there is no C++ compiler, or it refuses the source.
    pub fn load(source: &str) -> Self {
        let path = build(source);
        // SAFETY: the library was made from our own sources and has no initialisers beyond the C++ runtime's.
        let library =
            unsafe { Library::new(&path) }.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Kernels { source: source.to_owned(), library, turn: Mutex::new(()) }
    }

    /// Runs `kernel` to its end with the arguments it declares. A launch of no blocks is left out, as on a device.
    ///
    /// # Panics
    /// With the emulation's message when the launch fails.
    #[track_caller]
    pub fn launch(&self, kernel: &str, order: Order, launch: Launch, arguments: &[Argument]) {
        if let Err(error) = self.try_launch(kernel, order, launch, arguments) {
            panic!("{kernel}: {error}");
        }
    }

    /// Runs the call that the device runtime launches.
    ///
    /// # Panics
    /// As [`Kernels::launch`], and when the call is for another file.
    #[track_caller]
    pub fn run(&self, order: Order, call: &Call) {
        assert_eq!(call.source, self.source, "{}", call.kernel);
        self.launch(&call.kernel, order, call.launch, &call.arguments);
    }

    /// As [`Kernels::launch`], with the emulation's message as an error.
    #[track_caller]
    pub fn try_launch(
        &self,
        kernel: &str,
        order: Order,
        launch: Launch,
        arguments: &[Argument],
    ) -> Result<(), String> {
        if launch.is_empty() {
            return Ok(());
        }
        let launch = HostLaunch {
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            reversed: u32::from(order == Order::Reversed),
        };
        let mut addresses: Vec<*mut c_void> = arguments.iter().map(Argument::address).collect();
        let name = format!("launch_{kernel}");
        // SAFETY: the generated launchers have this signature.
        let launcher = unsafe { self.library.get::<Launcher>(name.as_bytes()) }
            .unwrap_or_else(|error| panic!("there is no kernel {kernel}: {error}"));
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the launcher refuses another number of arguments than the kernel declares; their types are the
        // caller's to match, as with cuLaunchKernel. Buffers carry guards.
        let message = unsafe { launcher(&launch, addresses.as_mut_ptr(), addresses.len()) };
        if message.is_null() {
            return Ok(());
        }
        // SAFETY: a message is a zero-terminated string that lives until the next launch, which waits for our turn.
        Err(unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned())
    }
}

type Launcher = unsafe extern "C" fn(*const HostLaunch, *mut *mut c_void, usize) -> *const c_char;

/// As `host::Launch`.
#[repr(C)]
struct HostLaunch {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    reversed: u32,
}

/// The path of the compiled library. It is kept beside the test's other files, named by what went into it.
fn build(source: &str) -> PathBuf {
    let program = program(source);
    let version = compiler(&["--version"]);
    let mut hasher = DefaultHasher::new();
    (&program, &version, FLAGS).hash(&mut hasher);
    for path in headers().iter().chain([&Path::new(SOURCES).join(source)]) {
        fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).hash(&mut hasher);
    }
    let stem = source.trim_end_matches(".cu");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_host").join(stem);
    let path = directory.join(format!("{:016x}.so", hasher.finish()));
    if path.exists() {
        return path;
    }
    // What earlier sources left is of no more use.
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    let (written, unfinished) = (directory.join("launchers.cpp"), path.with_extension("unfinished"));
    fs::write(&written, program).unwrap();
    let mut arguments = FLAGS.to_vec();
    let (written, output) = (written.to_str().unwrap(), unfinished.to_str().unwrap());
    arguments.extend(["-I", SOURCES, written, "-o", output]);
    compiler(&arguments);
    fs::rename(&unfinished, &path).unwrap();
    path
}

/// The source followed by one launcher for each kernel.
fn program(source: &str) -> String {
    let text = fs::read_to_string(Path::new(SOURCES).join(source)).unwrap();
    let mut program = format!("#include \"{source}\"\n");
    for kernel in kernel_names(&text) {
        program += &format!(
            "extern \"C\" __attribute__((visibility(\"default\"))) const char *launch_{kernel}(\n    \
             const host::Launch *launch, void **arguments, size_t count) {{\n    \
             return host::launch({kernel}, *launch, arguments, count);\n}}\n"
        );
    }
    program
}

/// The functions that a source declares `extern "C" __global__`.
fn kernel_names(text: &str) -> Vec<&str> {
    let names: Vec<&str> = text
        .split("extern \"C\" __global__ ")
        .skip(1)
        .map(|declaration| {
            let declaration = &declaration[declaration.find("void ").unwrap() + 5..];
            // Launch bounds may stand on either side of `void`.
            let declaration = match declaration.trim_start().strip_prefix("__launch_bounds__(") {
                Some(bounds) => bounds.split_once(')').unwrap().1,
                None => declaration,
            };
            declaration.split_once('(').unwrap().0.trim()
        })
        .collect();
    assert!(!names.is_empty(), "no kernels found");
    names
}

fn headers() -> Vec<PathBuf> {
    let mut headers: Vec<PathBuf> = [SOURCES.to_owned(), format!("{SOURCES}/host")]
        .iter()
        .flat_map(|directory| fs::read_dir(directory).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cuh" || extension == "h"))
        .collect();
    headers.sort();
    headers
}

/// What the compiler printed.
fn compiler(arguments: &[&str]) -> String {
    let output = Command::new("c++").args(arguments).output().unwrap_or_else(|error| {
        panic!("the CUDA kernels are tested by compiling them for the host, which needs `c++` (install g++): {error}")
    });
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "c++ {}:\n{messages}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
