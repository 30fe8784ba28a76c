//! Lines for a person, on stderr.

use std::fmt::Display;
use std::io::Write;

/// Prints a line to stderr. Where nobody can read it (a full disk under a log file, a closed pipe) it is lost: no run
/// ends because of a message, as it would with `eprintln!`.
pub fn message(line: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
