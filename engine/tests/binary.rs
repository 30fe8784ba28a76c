//! The binary starts and knows its version. Cargo builds `wattle` for the sake of this file: `cargo test --workspace`
//! thereby gives the whole-program tests the binary of the sources under test.

use std::process::Command;

#[test]
fn the_binary_says_its_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_wattle")).arg("--version").output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), concat!("wattle ", env!("CARGO_PKG_VERSION"), "\n"));
}
