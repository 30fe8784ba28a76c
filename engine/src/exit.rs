//! Exit codes of the program, after the `sysexits.h` of BSD where they fit. They are a contract with scripts.

/// Done.
pub const DONE: u8 = 0;
/// A check said no.
pub const CHECK_FAILED: u8 = 1;
/// Wrong usage.
pub const USAGE: u8 = 2;
/// Damaged or unfit data.
pub const BAD_DATA: u8 = 65;
/// An internal error.
pub const INTERNAL: u8 = 70;
/// Input or output failed.
pub const INPUT_OUTPUT: u8 = 74;
/// Stopped with a durable checkpoint: run the same command again.
pub const REQUEUE: u8 = 75;
/// Not permitted.
pub const NOT_PERMITTED: u8 = 77;
/// Bad configuration.
pub const BAD_CONFIGURATION: u8 = 78;

/// The exit code of an error of the energy monitor or ledger.
pub fn code_of_energy(error: &wattle_energy::Error) -> u8 {
    match error {
        wattle_energy::Error::Location { .. }
        | wattle_energy::Error::Setting { .. }
        | wattle_energy::Error::Case { .. } => BAD_CONFIGURATION,
        _ => INPUT_OUTPUT,
    }
}
