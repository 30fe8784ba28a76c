//! The `[energy]` and `[carbon]` sections of a configuration.

mod carbon;
mod energy;

pub(crate) use carbon::pue_problem;
pub use carbon::{CarbonConfig, EmbodiedConfig, ProviderConfig, ProviderKind};
pub use energy::{EnergyConfig, MeterChoice, ModelScope, RaplScope};

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, with its section: `carbon.pue`.
    pub key: String,
    /// What is wrong, what is expected.
    pub message: String,
}

fn problem(key: &str, got: impl std::fmt::Display, expected: &str) -> Problem {
    Problem { key: key.into(), message: format!("is {got}, expected {expected}") }
}
