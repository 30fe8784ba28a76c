//! What a run will cost before it starts: time, joules and grams, each as a range with the source of every factor.
//!
//! The planner knows no models. It takes plain numbers: floating-point operations or hours, a peak, an efficiency,
//! watts. Of a mixture-of-experts model the parameters that count are the active ones, those one token goes through.
//!
//! ```
//! use wattle_energy::planner::{Factor, Inputs, Range, Work, hardware};
//!
//! let chip = hardware::find("H100 SXM")?;
//! let estimate = Inputs {
//!     work: Work::Compute {
//!         flops: 6.0 * 1.3e9 * 100e9,
//!         peak_flops: chip.peak_flops(),
//!         efficiency: Factor::new(Range { low: 0.30, mid: 0.35, high: 0.40 }, "runs of last month"),
//!         chips: 8.0,
//!     },
//!     watts_per_chip: chip.system_watts(),
//!     pue: Factor::new(Range::exact(1.2), "our hall"),
//!     grams_per_kwh: wattle_energy::carbon::lookup("FRA")?.into(),
//!     embodied: chip.embodied(),
//! }
//! .estimate();
//! println!("{}", estimate.to_text());
//! # Ok::<(), wattle_energy::Error>(())
//! ```

mod case;
mod estimate;
pub mod hardware;
mod quantity;
mod range;
mod render;

pub use case::Case;
pub use estimate::{Embodied, Estimate, Inputs, Work};
pub use hardware::Hardware;
pub use range::{Factor, Range};
