//! Every CUDA source compiles with NVRTC for the oldest, the main and the newest architecture, and spills no register.
//!
//! NVRTC is found at run time and needs no GPU: `tests/cuda_compile.sh` fetches it and runs this. Where it is not found
//! the test says so and stops, unless `WATTLE_REQUIRE_NVRTC=1` makes that a failure.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

use std::ffi::{CStr, CString, c_char};
use std::fs;
use std::path::{Path, PathBuf};

use cudarc::nvrtc::{result, sys};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda");
const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90a", "sm_100"];

#[test]
fn every_source_compiles_for_every_architecture_without_spills() {
    // SAFETY: opens the library and closes it again; it has no initialisers that matter.
    if !unsafe { sys::is_culib_present() } {
        let required = std::env::var("WATTLE_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
        assert!(!required, "WATTLE_REQUIRE_NVRTC is 1, but there is no libnvrtc on the library path");
        eprintln!("not run: there is no libnvrtc on the library path; tests/cuda_compile.sh fetches one");
        return;
    }
    let mut problems = Vec::new();
    for source in sources("cu") {
        for architecture in ARCHITECTURES.into_iter().filter(|architecture| is_for(&source, architecture)) {
            match compile(&source, architecture) {
                Ok(kernels) => {
                    assert!(!kernels.is_empty(), "{}: no kernels in ptxas's report", source.display());
                    for kernel in kernels {
                        println!("{architecture:7} {}", kernel.line);
                        if kernel.spills {
                            problems.push(format!("{architecture}: {}", kernel.line));
                        }
                    }
                }
                Err(log) => problems.push(format!("{} for {architecture}:\n{log}", source.display())),
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Files named `*_hopper.cu` use what only sm_90a has.
fn is_for(source: &Path, architecture: &str) -> bool {
    !source.to_string_lossy().ends_with("_hopper.cu") || architecture == "sm_90a"
}

/// What ptxas says of one kernel.
struct Kernel {
    line: String,
    spills: bool,
}

/// The kernels of the machine code, or the compiler's log.
fn compile(source: &Path, architecture: &str) -> Result<Vec<Kernel>, String> {
    let headers: Vec<(CString, CString)> =
        sources("cuh").iter().map(|path| (name(path), text(path))).collect();
    let header_texts: Vec<*const c_char> = headers.iter().map(|(_, text)| text.as_ptr()).collect();
    let header_names: Vec<*const c_char> = headers.iter().map(|(name, _)| name.as_ptr()).collect();
    let (text, name) = (text(source), name(source));
    let mut program = std::ptr::null_mut();
    // SAFETY: all pointers are to zero-terminated strings that outlive the program, and the counts are theirs.
    unsafe {
        sys::nvrtcCreateProgram(
            &mut program,
            text.as_ptr(),
            name.as_ptr(),
            headers.len() as i32,
            header_texts.as_ptr(),
            header_names.as_ptr(),
        )
    }
    .result()
    .unwrap();
    let options = [
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".to_owned(),
        "--ptxas-options=-v".to_owned(),
    ];
    // SAFETY: the program is live until it is destroyed below; the log is a zero-terminated string.
    let (compiled, log) = unsafe {
        let compiled = result::compile_program(program, &options);
        let log = result::get_program_log(program).unwrap();
        let log = CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned();
        result::destroy_program(program).unwrap();
        (compiled, log)
    };
    match compiled {
        Ok(()) => Ok(report(&log)),
        Err(error) => Err(format!("{error}\n{log}")),
    }
}

/// Registers, stack, spills and shared memory of each kernel in the assembler's log.
fn report(log: &str) -> Vec<Kernel> {
    log.split("Compiling entry function '")
        .skip(1)
        .map(|part| {
            let name = part.split('\'').next().unwrap();
            let find = |word: &str| part.lines().find(|line| line.contains(word)).unwrap_or_default();
            let (spills, used) = (find("spill stores"), find("Used "));
            let [used, spills] = [used, spills].map(|line| {
                line.trim_start_matches("ptxas")
                    .trim_start_matches(" info")
                    .trim_start_matches([' ', ':', '.'])
            });
            assert!(!spills.is_empty() && !used.is_empty(), "an unknown report:\n{part}");
            Kernel {
                line: format!("{name}: {used}; {spills}"),
                spills: !spills.contains("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"),
            }
        })
        .collect()
}

fn sources(extension: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(SOURCES)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    paths
}

fn name(path: &Path) -> CString {
    CString::new(path.file_name().unwrap().to_str().unwrap()).unwrap()
}

fn text(path: &Path) -> CString {
    CString::new(fs::read(path).unwrap()).unwrap()
}
