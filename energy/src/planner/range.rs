//! A number that is not known exactly: low, likely, high; and where it comes from.

use std::borrow::Cow;
use std::ops::{Div, Mul};

use serde::Serialize;

/// A positive quantity between `low` and `high`, likely `mid`. Products and quotients take the extremes together, so
/// a range never gets narrower than its parts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Range {
    /// The least that is likely.
    pub low: f64,
    /// The best guess.
    pub mid: f64,
    /// The most that is likely.
    pub high: f64,
}

/// A range with where it comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Factor {
    /// The figure.
    #[serde(flatten)]
    pub range: Range,
    /// Who says so, or how it was measured.
    pub source: Cow<'static, str>,
}

impl Range {
    /// A number taken as it is.
    pub fn exact(value: f64) -> Self {
        Range { low: value, mid: value, high: value }
    }

    /// `mid` with the same share off on both sides: 0.2 is twenty per cent.
    pub fn around(mid: f64, share: f64) -> Self {
        Range { low: mid * (1.0 - share), mid, high: mid * (1.0 + share) }
    }

    /// From the least to the greatest of several observations, with their median between; `None` without any.
    pub fn of_observations(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let mid = match values.len() {
            0 => return None,
            n if n % 2 == 1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        Some(Range { low: values[0], mid, high: values[values.len() - 1] })
    }

    /// Whether the number was taken as it is.
    pub fn is_exact(self) -> bool {
        self.low == self.high
    }
}

impl Mul for Range {
    type Output = Range;
    fn mul(self, other: Range) -> Range {
        Range { low: self.low * other.low, mid: self.mid * other.mid, high: self.high * other.high }
    }
}

impl Div for Range {
    type Output = Range;
    fn div(self, other: Range) -> Range {
        Range { low: self.low / other.high, mid: self.mid / other.mid, high: self.high / other.low }
    }
}

impl Factor {
    /// A figure and its source.
    pub fn new(range: Range, source: impl Into<Cow<'static, str>>) -> Self {
        Factor { range, source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quotient_is_least_when_its_divisor_is_greatest() {
        let hours = Range::exact(12.0) / Range { low: 2.0, mid: 3.0, high: 4.0 };
        assert_eq!(hours, Range { low: 3.0, mid: 4.0, high: 6.0 });
        assert_eq!(hours * Range::around(10.0, 0.5), Range { low: 15.0, mid: 40.0, high: 90.0 });
    }

    #[test]
    fn observations_give_their_median_and_extremes() {
        let range = Range::of_observations([0.5, 0.125, 0.375, 0.25]).unwrap();
        assert_eq!(range, Range { low: 0.125, mid: 0.3125, high: 0.5 });
        assert!(Range::of_observations([0.4]).unwrap().is_exact());
        assert_eq!(Range::of_observations([]), None);
    }
}
