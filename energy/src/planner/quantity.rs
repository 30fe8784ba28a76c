//! Large numbers as people write them: `600e9` or `"600B"`.

/// Suffixes and the powers of ten they stand for.
const SUFFIXES: [(char, f64); 4] = [('T', 1e12), ('B', 1e9), ('M', 1e6), ('K', 1e3)];

/// The number in a text: digits with an optional suffix `k`, `M`, `B` or `T`, in any case; `None` when it is none.
pub(super) fn parse(text: &str) -> Option<f64> {
    let text = text.trim();
    let last = text.chars().next_back()?.to_ascii_uppercase();
    let (number, power) = match SUFFIXES.iter().find(|(suffix, _)| *suffix == last) {
        // The suffix is one byte: it is an ASCII letter.
        Some((_, power)) => (text[..text.len() - 1].trim_end(), *power),
        None => (text, 1.0),
    };
    // Rust also reads "inf", "nan" and signs.
    let is_plain = number.starts_with(|c: char| c.is_ascii_digit());
    let value: f64 = number.replace('_', "").parse().ok()?;
    Some(value * power).filter(|value| is_plain && value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_powers_of_a_thousand() {
        for (text, value) in [
            ("600B", 600e9),
            ("11b", 11e9),
            ("1.2 T", 1.2e12),
            ("320k", 320e3),
            ("1_000", 1e3),
            ("6e11", 6e11),
            ("3.5", 3.5),
        ] {
            assert_eq!(parse(text), Some(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", "B", "x", "-3B", "inf", "nan", "1.2.3", "20é", "3X", "1e400"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
