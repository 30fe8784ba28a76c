//! Why a configuration cannot be used, with every problem and its place.

use std::fmt;
use std::path::PathBuf;

use super::problem::Problem;
use super::resolved::Origin;
use crate::exit;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read ({source}), expected a configuration file in TOML; `wattle config schema` prints its keys", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file, or what `--set` makes of it, is no valid configuration.
    #[error("{}", list(file, problems))]
    Invalid {
        /// The file, as it was named.
        file: String,
        /// All problems, in the order of the file.
        problems: Vec<PlacedProblem>,
    },
}

/// A problem and where the value that has it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedProblem {
    /// Where the value comes from; [`Origin::Default`] also when there is no value.
    pub origin: Origin,
    /// The problem.
    pub problem: Problem,
}

impl ConfigError {
    /// The exit code of a command that this error ends: 74 for a file that cannot be read, 78 for a bad
    /// configuration.
    pub fn exit_code(&self) -> u8 {
        match self {
            ConfigError::Read { .. } => exit::INPUT_OUTPUT,
            ConfigError::Invalid { .. } => exit::BAD_CONFIGURATION,
        }
    }
}

impl fmt::Display for PlacedProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { key, message } = &self.problem;
        match self.origin {
            Origin::Default => {}
            Origin::File { line } => write!(f, "line {line}: ")?,
            Origin::Set => write!(f, "--set: ")?,
        }
        if key.is_empty() { write!(f, "{message}") } else { write!(f, "{key}: {message}") }
    }
}

fn list(file: &str, problems: &[PlacedProblem]) -> String {
    let count = match problems.len() {
        1 => "1 problem".to_owned(),
        len => format!("{len} problems"),
    };
    problems.iter().fold(format!("{file}: {count}"), |text, problem| format!("{text}\n  {problem}"))
}
