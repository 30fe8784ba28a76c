//! One thing that is wrong in a configuration.

/// One thing that is wrong in a configuration: the key and, in words, what it is, what was expected and
/// what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path of the key, such as `moe.top_k`; a section's name when the whole section is meant.
    pub key: String,
    /// What is wrong and what was expected; reads on from the key.
    pub message: String,
}

impl Problem {
    /// A problem of `key`.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Problem { key: key.into(), message: message.into() }
    }
}

/// Checks a count that must be at least one.
pub(crate) fn at_least_one(problems: &mut Vec<Problem>, key: &str, value: usize) {
    if value == 0 {
        problems.push(Problem::new(key, "is 0, expected at least 1"));
    }
}

/// Checks a number against a range given as a test and in words.
pub(crate) fn in_range(
    problems: &mut Vec<Problem>,
    key: &str,
    value: f64,
    accept: fn(f64) -> bool,
    expected: &str,
) {
    if !(value.is_finite() && accept(value)) {
        problems.push(Problem::new(key, format!("is {value}, expected {expected}")));
    }
}
