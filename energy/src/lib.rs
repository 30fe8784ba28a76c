//! Joules and grams of CO2e of a running program: meters, a monitor with windows, carbon intensity, a ledger on
//! disk and a report. Usable by any Rust program; it knows nothing of what the program does.
//!
//! Every number keeps where it came from: a hardware counter, integrated power, interpolation, or a model. What
//! cannot be read is an error or a gap, never zero.
//!
//! A closure, or any other stretch of a program, is a named span. Energy is in joules ([`Joules`]; bookkeeping in
//! whole [`MicroJoules`]), power in watts, time in seconds, emissions in grams of CO2e:
//!
//! ```
//! use wattle_energy::{CarbonConfig, EnergyConfig, EnergyMonitor};
//!
//! fn work() -> u64 {
//!     (0..2_000_000u64).fold(7, |hash, i| (hash ^ i).wrapping_mul(0x100_0000_01b3))
//! }
//!
//! let monitor = EnergyMonitor::from_config(&EnergyConfig::default())?;
//! let (hash, energy) = monitor.measure("work", work);
//! assert_ne!(hash, 0);
//! println!("{energy}"); // work: 41.2 mJ in 0.01 s (modelled)
//! let joules = energy.joules.expect("a meter was found");
//! let grams_per_kwh = CarbonConfig::default().intensity()?.grams_per_kwh;
//! println!("{} CO2e at {grams_per_kwh}", grams_per_kwh.grams(joules, 1.0));
//! # Ok::<(), wattle_energy::Error>(())
//! ```
//!
//! A program that is accounted for without a gap closes windows instead: every joule falls into exactly one, and
//! windows and remainder are the counters' rise, to the microjoule.
//!
//! ```
//! use wattle_energy::{EnergyConfig, EnergyMonitor, WindowKind};
//!
//! let monitor = EnergyMonitor::from_config(&EnergyConfig::default())?;
//! monitor.close_window(WindowKind::Setup);
//! for _step in 0..3 {
//!     let forward = monitor.begin("forward");
//!     let forward_joules = forward.end().joules;
//!     let step = monitor.close_window(WindowKind::Step);
//!     assert!(forward_joules <= step.joules);
//! }
//! let totals = monitor.finish();
//! for domain in &totals.domains {
//!     assert_eq!(domain.attributed + domain.unattributed, domain.total);
//! }
//! println!("{} in {:.1} s", totals.joules, totals.duration.0);
//! println!("measuring took {:.2} % of one core", totals.overhead_share() * 100.0);
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
pub mod planner;
pub mod report;
pub mod units;
mod window;

pub use attribution::{Attribution, Split, Waste};
pub use carbon::{Accounting, Basis, CarbonFeed, GridIntensity, Period};
pub use clock::{Clock, ClockHand};
pub use config::{
    CarbonConfig, EmbodiedConfig, EnergyConfig, MeterChoice, ModelScope, Problem, ProviderConfig,
    ProviderKind, RaplScope,
};
pub use error::{Error, Result};
pub use ledger::{
    Completion, FILE_NAME as LEDGER_FILE_NAME, Ledger, MarkKind, Role, RunInfo, RunStatus, Spent, WindowTags,
    complete, host_name, merge,
};
pub use meter::detect::{Detected, Finding, detect, probe};
pub use meter::{Meter, MeterError, MeterErrorKind, Provenance};
pub use monitor::{EnergyMonitor, EnergyMonitorBuilder, Span};
pub use report::{Overrides, Report};
pub use units::{Grams, GramsPerKilowattHour, Joules, MicroJoules, Seconds, Watts};
pub use window::{DomainEnergy, DomainTotal, EnergyTotals, Overhead, SpanEnergy, WindowEnergy, WindowKind};
