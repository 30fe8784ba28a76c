//! A number of tokens as people write it: `20000000` or `"20M"`.

use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of tokens. Read from a whole number or from text with a suffix `k`, `M`, `B` or `T` (powers of a
/// thousand): `"320k"`, `"1.5B"`. Never above `i64::MAX`, the largest whole number that TOML holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TokenCount(u64);

/// Suffixes from the largest down, with the number of decimal digits each stands for.
const SUFFIXES: [(char, u32); 4] = [('T', 12), ('B', 9), ('M', 6), ('k', 3)];

impl TokenCount {
    /// No tokens.
    pub const ZERO: TokenCount = TokenCount(0);

    /// A count of `tokens`; above `i64::MAX` it is that.
    pub const fn new(tokens: u64) -> Self {
        const MAX: u64 = i64::MAX as u64;
        TokenCount(if tokens > MAX { MAX } else { tokens })
    }

    /// The number of tokens.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A text that is no number of tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is {got:?}, expected a number of tokens such as 20000000 or \"20M\" (k, M, B, T; {why})")]
pub struct TokenCountError {
    got: String,
    why: &'static str,
}

impl FromStr for TokenCount {
    type Err = TokenCountError;

    fn from_str(text: &str) -> Result<Self, TokenCountError> {
        let error = |why| TokenCountError { got: text.to_owned(), why };
        let trimmed = text.trim();
        let suffix = SUFFIXES
            .iter()
            .find(|(c, _)| trimmed.ends_with([*c, c.to_ascii_lowercase(), c.to_ascii_uppercase()]));
        let (number, power) = match suffix {
            Some((_, power)) => (trimmed[..trimmed.len() - 1].trim_end(), *power),
            None => (trimmed, 0),
        };
        let number = number.replace('_', "");
        let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
        let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) || number.ends_with('.') {
            return Err(error("digits, at most one point, then the suffix"));
        }
        let fraction = fraction.trim_end_matches('0');
        let Some(missing_digits) = power.checked_sub(fraction.len() as u32) else {
            return Err(error("tokens are whole"));
        };
        // Digits are joined and not multiplied as floats: "1.1B" must be exactly 1,100,000,000.
        let too_many = || error("at most 9223372036854775807");
        let digits: u64 = format!("{whole}{fraction}").parse().map_err(|_| too_many())?;
        let tokens = digits.checked_mul(10_u64.pow(missing_digits)).ok_or_else(too_many)?;
        if i64::try_from(tokens).is_err() {
            return Err(too_many());
        }
        Ok(TokenCount(tokens))
    }
}

impl fmt::Display for TokenCount {
    /// The shortest exact form: `20M`, `102.4k`, `1234`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, power) in SUFFIXES {
            let unit = 10_u64.pow(power);
            // At most one decimal: "102.4k" reads well, "102.417k" no better than 102417.
            if self.0 >= unit && self.0.is_multiple_of(unit / 10) {
                let tenths = self.0 % unit / (unit / 10);
                return match tenths {
                    0 => write!(f, "{}{suffix}", self.0 / unit),
                    _ => write!(f, "{}.{tenths}{suffix}", self.0 / unit),
                };
            }
        }
        write!(f, "{}", self.0)
    }
}

impl Serialize for TokenCount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.to_string();
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            serializer.serialize_u64(self.0)
        } else {
            serializer.serialize_str(&text)
        }
    }
}

impl<'de> Deserialize<'de> for TokenCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TokenCountVisitor;
        impl Visitor<'_> for TokenCountVisitor {
            type Value = TokenCount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of tokens such as 20000000 or \"20M\"")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<TokenCount, E> {
                u64::try_from(value)
                    .map(TokenCount)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<TokenCount, E> {
                i64::try_from(value)
                    .map(|_| TokenCount(value))
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(value), &self))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<TokenCount, E> {
                value.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(TokenCountVisitor)
    }
}

impl JsonSchema for TokenCount {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TokenCount".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9_]+(\\.[0-9_]+)? *[kKmMbBtT]?$" }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_exact_powers_of_a_thousand() {
        for (text, tokens) in [
            ("0", 0),
            ("1234", 1234),
            ("200k", 200_000),
            ("200K", 200_000),
            ("20M", 20_000_000),
            ("20 m", 20_000_000),
            ("1.5B", 1_500_000_000),
            ("1.1b", 1_100_000_000),
            ("2.000k", 2_000),
            ("0.5M", 500_000),
            ("2T", 2_000_000_000_000),
            ("1_000_000", 1_000_000),
        ] {
            assert_eq!(text.parse::<TokenCount>().unwrap().get(), tokens, "{text}");
        }
    }

    #[test]
    fn text_that_is_no_whole_number_of_tokens_is_refused() {
        for text in
            ["", "M", "-1", "20X", "1.2.3k", ".5k", "5.k", "1.5", "1.2345k", "1e6", "10000000T", "20é"]
        {
            let error = text.parse::<TokenCount>().unwrap_err().to_string();
            assert!(error.contains("expected a number of tokens"), "{text}: {error}");
        }
    }

    #[test]
    fn the_short_form_is_read_back_to_the_same_count() {
        for (tokens, text) in [
            (0, "0"),
            (999, "999"),
            (102_400, "102.4k"),
            (102_417, "102417"),
            (1_500_000, "1.5M"),
            (20_000_000, "20M"),
            (1_250_000, "1250k"),
        ] {
            assert_eq!(TokenCount(tokens).to_string(), text);
            assert_eq!(text.parse::<TokenCount>().unwrap(), TokenCount(tokens));
        }
    }

    proptest::proptest! {
        #[test]
        fn every_count_survives_its_text(tokens in 0..=i64::MAX as u64) {
            let count = TokenCount::new(tokens);
            proptest::prop_assert_eq!(count.to_string().parse::<TokenCount>().unwrap(), count);
        }
    }
}
