//! What can go wrong in routing.

use crate::config::Problem;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// A setting, a tensor or a count does not fit.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The routing configuration contradicts itself; all problems are listed.
    #[error("the routing configuration does not work:{}", list(.0))]
    Config(Vec<Problem>),
    /// A tensor does not fit, or memory ran out.
    #[error(transparent)]
    Kernel(#[from] wattle_kernels::Error),
    /// A number handed in beside the tensors does not fit.
    #[error("{what} is {got}, expected {expected}")]
    Value {
        /// Which value.
        what: &'static str,
        /// The value given.
        got: String,
        /// The value wanted, and what to do.
        expected: String,
    },
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}
