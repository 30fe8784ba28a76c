//! The cache of compiled kernels: what names an entry, and what becomes of a damaged one.
//!
//! Compilation needs NVRTC and no GPU. Where NVRTC is missing the test says so and stops, unless
//! `WATTLE_REQUIRE_NVRTC=1` makes that a failure.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use wattle_kernels::cuda::module::{cubin, entry_path};
use wattle_kernels::cuda::sources::{Source, source};
use wattle_kernels::cuda::status;

const SOURCE: &str = "bias.cu";

fn nvrtc_is_here() -> bool {
    let here = status().libraries[1].version.is_some();
    let required = std::env::var("WATTLE_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
    assert!(here || !required, "WATTLE_REQUIRE_NVRTC is 1, but there is no libnvrtc on the library path");
    if !here {
        eprintln!("did not run: there is no libnvrtc on the library path; tests/cuda_compile.sh fetches one");
    }
    here
}

#[test]
fn source_architecture_and_compiler_each_name_another_entry() {
    let bias = source(SOURCE).unwrap();
    let changed = Source { name: bias.name, text: "// another text" };
    let folder = Path::new("kept");
    let paths: BTreeSet<_> = [
        entry_path(folder, bias, "sm_80", (13, 0)),
        entry_path(folder, bias, "sm_90a", (13, 0)),
        entry_path(folder, bias, "sm_80", (13, 1)),
        entry_path(folder, &changed, "sm_80", (13, 0)),
        entry_path(folder, source("rope.cu").unwrap(), "sm_80", (13, 0)),
    ]
    .into();
    assert_eq!(paths.len(), 5);
    assert_eq!(entry_path(folder, bias, "sm_80", (13, 0)), entry_path(folder, bias, "sm_80", (13, 0)));
}

#[test]
fn an_entry_is_kept_read_again_and_made_anew_when_it_is_damaged() {
    if !nvrtc_is_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let nested = folder.path().join("a/b");
    let bias = source(SOURCE).unwrap();
    let code = cubin(bias, "sm_80", Some(&nested)).unwrap();
    assert_eq!(code[..4], *b"\x7fELF");
    let entries: Vec<_> = fs::read_dir(&nested).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [entry] = &entries[..] else { panic!("one entry, not {entries:?}") };
    let whole = fs::read(entry).unwrap();
    let mut bent = whole.clone();
    *bent.last_mut().unwrap() ^= 1;
    for damaged in [&bent[..], &whole[..whole.len() / 2], &[]] {
        fs::write(entry, damaged).unwrap();
        assert_eq!(cubin(bias, "sm_80", Some(&nested)).unwrap(), code);
        assert_eq!(fs::read(entry).unwrap(), whole);
    }
    // An entry that is whole is taken as it is, without the compiler: this one says something else.
    let other = b"kept".to_vec();
    let rewritten = [blake3::hash(&other).as_bytes(), &other[..]].concat();
    fs::write(entry, rewritten).unwrap();
    assert_eq!(cubin(bias, "sm_80", Some(&nested)).unwrap(), other);
}

#[test]
fn a_folder_that_cannot_be_written_does_not_stop_a_compilation() {
    if !nvrtc_is_here() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a file");
    fs::write(&file, "").unwrap();
    assert!(!cubin(source(SOURCE).unwrap(), "sm_80", Some(&file)).unwrap().is_empty());
}

#[test]
fn a_source_that_does_not_compile_shows_the_compilers_log() {
    if !nvrtc_is_here() {
        return;
    }
    let wrong =
        Source { name: "wrong.cu", text: "extern \"C\" __global__ void kernel() { undeclared = 1; }" };
    let error = cubin(&wrong, "sm_80", None).unwrap_err().to_string();
    assert!(error.contains("wrong.cu for sm_80") && error.contains("undeclared"), "{error}");
}
