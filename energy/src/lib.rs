//! Joules and grams of CO2e of a running program: meters, a monitor with windows, carbon intensity, a ledger on
//! disk and a report. Usable by any Rust program; it knows nothing of what the program does.
//!
//! Every number keeps where it came from: a hardware counter, interpolation, or a model. What cannot be read is
//! an error or a gap, never zero.
//!
//! ```
//! use wattle_energy::{CarbonConfig, EnergyConfig, EnergyMonitor, WindowKind};
//!
//! fn work() -> u64 {
//!     (0..2_000_000u64).fold(7, |hash, i| (hash ^ i).wrapping_mul(0x100_0000_01b3))
//! }
//!
//! let monitor = EnergyMonitor::from_config(&EnergyConfig::default())?;
//! monitor.close_window(WindowKind::Setup);
//! assert_ne!(work(), 0);
//! let window = monitor.close_window(WindowKind::Step);
//! let joules = window.joules.expect("a meter was found");
//! let grams = CarbonConfig::default().intensity()?.grams_per_kwh.grams(joules, 1.0);
//! println!("{joules} ({}), {grams} CO2e", monitor.source_label());
//! # Ok::<(), wattle_energy::Error>(())
//! ```

pub mod attribution;
pub mod carbon;
mod clock;
mod config;
mod error;
mod ledger;
pub mod meter;
mod monitor;
pub mod report;
pub mod units;
mod window;

pub use attribution::{Attribution, Split, Waste};
pub use carbon::{Accounting, Basis, GridIntensity, Period};
pub use clock::{Clock, ClockHand};
pub use config::{
    CarbonConfig, EmbodiedConfig, EnergyConfig, MeterChoice, ModelScope, Problem, ProviderConfig,
    ProviderKind, RaplScope,
};
pub use error::{Error, Result};
pub use ledger::{
    FILE_NAME as LEDGER_FILE_NAME, Ledger, MarkKind, Role, RunInfo, RunStatus, Spent, WindowTags, merge,
};
pub use meter::detect::{Detected, Finding, detect, probe};
pub use meter::{Meter, MeterError, MeterErrorKind, Provenance};
pub use monitor::{EnergyMonitor, EnergyMonitorBuilder, Span};
pub use report::{Overrides, Report};
pub use units::{Grams, GramsPerKilowattHour, Joules, MicroJoules, Seconds, Watts};
pub use window::{DomainEnergy, DomainTotal, EnergyTotals, Overhead, SpanEnergy, WindowEnergy, WindowKind};
