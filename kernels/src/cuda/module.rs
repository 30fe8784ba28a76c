//! Compiling kernels with NVRTC for one architecture, and keeping the machine code on disk.
//!
//! An entry is named by the BLAKE3 of everything that decides its bytes, and begins with the BLAKE3 of the machine code: a
//! damaged entry is compiled anew. Entries are written beside and renamed, so that processes may share a folder.

use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::{fs, io};

use cudarc::nvrtc::{result, sys};

use super::library;
use super::sources::{HEADERS, Source};
use crate::error::{Error, Result};

/// The machine code of `source` for `architecture` (as `sm_90a`), from `cache` or from NVRTC.
///
/// A folder that cannot be written costs the next run a compilation, and nothing else.
///
/// # Errors
/// [`Error::Cuda`] when NVRTC is missing or refuses the source, with its log.
pub fn cubin(source: &Source, architecture: &str, cache: Option<&Path>) -> Result<Vec<u8>> {
    let version = library::require_nvrtc()?;
    let entry = cache.map(|folder| entry_path(folder, source, architecture, version));
    if let Some(code) = entry.as_deref().and_then(read_entry) {
        return Ok(code);
    }
    let code = compile(source, architecture)?;
    if let Some(entry) = entry {
        // The code is at hand whether or not it could be kept.
        let _ = write_entry(&entry, &code);
    }
    Ok(code)
}

/// Where machine code is kept: `$WATTLE_CACHE_DIR/kernels`, else under `$XDG_CACHE_HOME` or `~/.cache`. None when the
/// environment names no folder.
pub fn cache_folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = variable("WATTLE_CACHE_DIR")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("wattle")))
        .or_else(|| variable("HOME").map(|folder| folder.join(".cache/wattle")))?;
    Some(folder.join("kernels"))
}

/// The file of one compilation in `folder`.
pub fn entry_path(folder: &Path, source: &Source, architecture: &str, nvrtc: (i32, i32)) -> PathBuf {
    let mut hasher = blake3::Hasher::new();
    let mut add = |part: &str| {
        // With its length, so that no two lists of parts run together.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    };
    for Source { name, text } in HEADERS.iter().chain([source]) {
        add(name);
        add(text);
    }
    add(&format!("{}.{}", nvrtc.0, nvrtc.1));
    options(architecture).iter().for_each(|option| add(option));
    let stem = source.name.trim_end_matches(".cu");
    folder.join(format!("{stem}-{architecture}-{}.cubin", &hasher.finalize().to_hex()[..32]))
}

fn options(architecture: &str) -> [String; 2] {
    [format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned()]
}

fn read_entry(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).ok()?;
    if bytes.len() < blake3::OUT_LEN {
        return None;
    }
    let code = bytes.split_off(blake3::OUT_LEN);
    (blake3::hash(&code).as_bytes()[..] == bytes[..]).then_some(code)
}

fn write_entry(path: &Path, code: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&unfinished, [blake3::hash(code).as_bytes(), code].concat())?;
    fs::rename(&unfinished, path)
}

/// A program of NVRTC, destroyed when it goes.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program is live and used nowhere else. There is nothing to do about a failure here.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn compile(source: &Source, architecture: &str) -> Result<Vec<u8>> {
    let failed = |detail: String| Error::Cuda {
        during: format!("compiling {} for {architecture}", source.name),
        detail,
    };
    let terminated = |text: &str| CString::new(text).map_err(|error| failed(error.to_string()));
    let (name, text) = (terminated(source.name)?, terminated(source.text)?);
    let names = HEADERS.iter().map(|header| terminated(header.name)).collect::<Result<Vec<_>>>()?;
    let texts = HEADERS.iter().map(|header| terminated(header.text)).collect::<Result<Vec<_>>>()?;
    let pointers =
        |strings: &[CString]| strings.iter().map(|string| string.as_ptr()).collect::<Vec<*const c_char>>();
    let (name_pointers, text_pointers) = (pointers(&names), pointers(&texts));
    let mut program = std::ptr::null_mut();
    // SAFETY: all pointers are to zero-terminated strings that outlive the program, and the count is theirs.
    unsafe {
        sys::nvrtcCreateProgram(
            &mut program,
            text.as_ptr(),
            name.as_ptr(),
            HEADERS.len() as i32,
            text_pointers.as_ptr(),
            name_pointers.as_ptr(),
        )
    }
    .result()
    .map_err(|error| failed(error.to_string()))?;
    let program = Program(program);
    // SAFETY: the program is live; the options hold no zero byte, as architectures are named by this crate or its tests.
    if let Err(error) = unsafe { result::compile_program(program.0, &options(architecture)) } {
        return Err(failed(format!("{error}\n{}", log(&program))));
    }
    let mut size = 0;
    // SAFETY: the program is live and compiled; the call writes one size.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &mut size) }
        .result()
        .map_err(|error| failed(error.to_string()))?;
    let mut code = vec![0u8; size];
    // SAFETY: the call writes `size` bytes.
    unsafe { sys::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast()) }
        .result()
        .map_err(|error| failed(error.to_string()))?;
    Ok(code)
}

fn log(program: &Program) -> String {
    // SAFETY: the program is live.
    let Ok(log) = (unsafe { result::get_program_log(program.0) }) else { return String::new() };
    let bytes: Vec<u8> = log.iter().map(|&byte| byte as u8).collect();
    CStr::from_bytes_until_nul(&bytes)
        .map_or_else(|_| String::new(), |log| log.to_string_lossy().into_owned())
}
