//! A case: a run described by the figures that papers publish, in a small TOML file.
//!
//! Two forms. Either the time is known: `chips`, `chip_watts`, `hours` (or `chip_hours` alone). Or it follows from
//! the work: `active_params`, `tokens`, `peak_tflops`, `efficiency`, `chips`, `system_watts`. Both take `pue` and
//! `grams_per_kwh` or `location`. Numbers may carry a suffix: `"600B"`.

use std::path::Path;

use toml::{Table, Value};

use super::estimate::{Inputs, Work};
use super::quantity;
use super::range::{Factor, Range};
use crate::carbon;
use crate::config::Problem;
use crate::error::{Error, Result};

/// A published run.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// What it is called.
    pub name: Option<String>,
    /// Parameters that one token goes through: of a mixture of experts the dense-equivalent ones.
    pub active_params: Option<f64>,
    /// All parameters; nothing is computed from them.
    pub total_params: Option<f64>,
    /// Training tokens.
    pub tokens: Option<f64>,
    /// What its cost follows from.
    pub inputs: Inputs,
}

/// Training costs six operations for each active parameter and token: two forward, four backward.
const FLOPS_PER_PARAMETER_AND_TOKEN: f64 = 6.0;

/// Every key, with what it is.
const KEYS: [(&str, &str); 15] = [
    ("name", "what the run is called"),
    ("chips", "the number of chips, such as 512"),
    ("chip_watts", "the mean power of one chip with its share of the computer, such as 330"),
    ("system_watts", "the mean power of one chip with its share of the computer, such as 330"),
    ("hours", "the hours from start to end, such as 355.2"),
    ("chip_hours", "hours times chips, such as \"1.72M\""),
    (
        "active_params",
        "the parameters one token goes through, such as \"175B\"; never all of a mixture of experts",
    ),
    ("total_params", "all parameters, such as \"1.2T\""),
    ("tokens", "the training tokens, such as \"300B\""),
    ("peak_tflops", "the peak of one chip in 1e12 operations per second, such as 125"),
    ("efficiency", "the share of the peak that is reached, such as 0.35"),
    ("pue", "what the building draws over what its computers draw, such as 1.1"),
    ("grams_per_kwh", "the carbon intensity of the electricity, such as 429"),
    ("location", "where the electricity comes from, such as \"FRA\""),
    ("source", "who published it"),
];

/// Keys that decide the same thing; at most one may be given.
const RIVALS: [(&str, &str); 5] = [
    ("chip_watts", "system_watts"),
    ("hours", "chip_hours"),
    ("hours", "efficiency"),
    ("chip_hours", "efficiency"),
    ("grams_per_kwh", "location"),
];

impl Case {
    /// Reads a case from the bytes of `file`, whose name stands in messages only.
    ///
    /// # Errors
    /// [`Error::Case`] with every problem.
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::default();
        let case = reader.case(bytes);
        match case.filter(|_| reader.problems.is_empty()) {
            Some(case) => Ok(case),
            None => Err(Error::Case { file: file.to_owned(), problems: reader.problems }),
        }
    }
}

#[derive(Default)]
struct Reader {
    table: Table,
    problems: Vec<Problem>,
}

impl Reader {
    /// The case; of use only when there are no problems.
    fn case(&mut self, bytes: &[u8]) -> Option<Case> {
        self.syntax(bytes);
        if !self.problems.is_empty() {
            return None;
        }
        self.check_names();
        self.check_rivals();
        let has = |key: &str| self.table.contains_key(key);
        let is_timed = has("hours") || has("chip_hours");
        // Whoever gives a part of the work but no time means the second form.
        let is_computed = !is_timed
            && ["efficiency", "active_params", "total_params", "tokens", "peak_tflops"]
                .iter()
                .any(|key| has(key));
        let given = Given::read(self);
        let work = match (is_timed, is_computed) {
            (false, false) => {
                self.report(
                    "hours",
                    "is missing, expected chips, chip_watts and hours; or active_params, tokens, peak_tflops, \
                     efficiency, chips and system_watts",
                );
                None
            }
            (true, _) => self.timed_work(&given),
            (false, true) => self.computed_work(&given),
        };
        let watts = self.watts(&given, is_computed);
        let grams_per_kwh = self.intensity(&given);
        let pue = match given.pue {
            Some(pue) => Factor::new(Range::exact(pue), "given"),
            None => Factor::new(Range::exact(1.0), "not given: the computers alone, without the building"),
        };
        Some(Case {
            name: given.name,
            active_params: given.active_params,
            total_params: given.total_params,
            tokens: given.tokens,
            inputs: Inputs {
                work: work?,
                watts_per_chip: Some(watts?),
                pue,
                grams_per_kwh: grams_per_kwh?,
                embodied: None,
            },
        })
    }

    fn syntax(&mut self, bytes: &[u8]) {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
            Err(_) => return self.report("", "is not UTF-8 text"),
        };
        match text.parse() {
            Ok(table) => self.table = table,
            Err(error) => {
                let error: toml::de::Error = error;
                let offset = error.span().map_or(0, |span| span.start);
                let line = 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
                self.report(&format!("line {line}"), &format!("is no TOML: {}", error.message()));
            }
        }
    }

    fn check_names(&mut self) {
        let is_known = |key: &str| KEYS.iter().any(|(known, _)| *known == key);
        let unknown: Vec<String> = self.table.keys().filter(|key| !is_known(key)).cloned().collect();
        for key in unknown {
            let nearest = KEYS.iter().min_by_key(|(known, _)| strsim::damerau_levenshtein(known, &key));
            let nearest = nearest.map_or("", |(known, _)| known);
            self.report(&key, &format!("is no known key; the nearest known key is {nearest}"));
        }
    }

    fn check_rivals(&mut self) {
        for (first, second) in RIVALS {
            if self.table.contains_key(first) && self.table.contains_key(second) {
                self.report(second, &format!("contradicts {first}: both decide the same; give one of them"));
            }
        }
    }

    fn timed_work(&mut self, given: &Given) -> Option<Work> {
        let flops = given.flops();
        if self.table.contains_key("chip_hours") {
            return Some(Work::Time { chip_hours: given.chip_hours?, chips: given.chips, flops });
        }
        self.require("chips");
        Some(Work::Time { chip_hours: given.chips? * given.hours?, chips: given.chips, flops })
    }

    fn computed_work(&mut self, given: &Given) -> Option<Work> {
        for key in ["active_params", "tokens", "peak_tflops", "efficiency", "chips"] {
            self.require(key);
        }
        let as_given = |value| Factor::new(Range::exact(value), "given");
        Some(Work::Compute {
            flops: given.flops()?,
            peak_flops: as_given(given.peak_tflops? * 1e12),
            efficiency: as_given(given.efficiency?),
            chips: given.chips?,
        })
    }

    fn watts(&mut self, given: &Given, is_computed: bool) -> Option<Factor> {
        if !self.table.contains_key("chip_watts") && !self.table.contains_key("system_watts") {
            self.require(if is_computed { "system_watts" } else { "chip_watts" });
        }
        let watts = given.chip_watts.or(given.system_watts)?;
        Some(Factor::new(
            Range::around(watts, 0.20),
            "given; estimates of power differ from a meter at the wall by 20 % on average (Cao 2020)",
        ))
    }

    fn intensity(&mut self, given: &Given) -> Option<Factor> {
        if let Some(grams) = given.grams_per_kwh {
            return Some(Factor::new(Range::exact(grams), "given"));
        }
        match carbon::lookup(given.location.as_deref().unwrap_or("World")) {
            Ok(intensity) => Some(intensity.into()),
            Err(Error::Location { given, nearest }) => {
                let nearest = nearest.join(", ");
                self.report(
                    "location",
                    &format!("is {given:?}, which nobody knows; nearest known: {nearest}"),
                );
                None
            }
            Err(error) => {
                self.report("location", &error.to_string());
                None
            }
        }
    }

    /// Reports a key that is not given.
    fn require(&mut self, key: &str) {
        if !self.table.contains_key(key) {
            self.report(key, &format!("is missing, expected {}", what(key)));
        }
    }

    /// A number of a key, when it is given and can be used.
    fn number(&mut self, key: &str, accept: fn(f64) -> bool, expected: &str) -> Option<f64> {
        let value = self.table.get(key)?;
        let number = match value {
            Value::Integer(whole) => Some(*whole as f64),
            Value::Float(float) => Some(*float),
            Value::String(text) => quantity::parse(text),
            _ => None,
        };
        match number {
            Some(number) if number.is_finite() && accept(number) => return Some(number),
            Some(_) => self.report(key, &format!("is {value}, expected {expected}")),
            None => self.report(key, &format!("is {value}, expected {}", what(key))),
        }
        None
    }

    fn text(&mut self, key: &str) -> Option<String> {
        match self.table.get(key)? {
            Value::String(text) => Some(text.clone()),
            value => {
                let message = format!("is {value}, expected {} in quotes", what(key));
                self.report(key, &message);
                None
            }
        }
    }

    fn report(&mut self, key: &str, message: &str) {
        self.problems.push(Problem { key: key.to_owned(), message: message.to_owned() });
    }
}

/// The values that could be read.
struct Given {
    name: Option<String>,
    location: Option<String>,
    chips: Option<f64>,
    chip_watts: Option<f64>,
    system_watts: Option<f64>,
    hours: Option<f64>,
    chip_hours: Option<f64>,
    active_params: Option<f64>,
    total_params: Option<f64>,
    tokens: Option<f64>,
    peak_tflops: Option<f64>,
    efficiency: Option<f64>,
    pue: Option<f64>,
    grams_per_kwh: Option<f64>,
}

impl Given {
    fn read(reader: &mut Reader) -> Self {
        let mut positive =
            |key: &str| reader.number(key, |x| x > 0.0 && x <= 1e15, "above 0 and at most 1e15");
        let given = Given {
            chips: positive("chips"),
            chip_watts: positive("chip_watts"),
            system_watts: positive("system_watts"),
            hours: positive("hours"),
            chip_hours: positive("chip_hours"),
            active_params: positive("active_params"),
            total_params: positive("total_params"),
            tokens: positive("tokens"),
            peak_tflops: positive("peak_tflops"),
            efficiency: reader.number("efficiency", |x| x > 0.0 && x <= 1.0, "a share above 0 and at most 1"),
            pue: reader.number("pue", |x| (1.0..=10.0).contains(&x), "1.0 to 10.0"),
            grams_per_kwh: reader.number("grams_per_kwh", |x| (0.0..=5000.0).contains(&x), "0 to 5000"),
            name: reader.text("name"),
            location: reader.text("location"),
        };
        reader.text("source");
        if let (Some(active), Some(total)) = (given.active_params, given.total_params)
            && active > total
        {
            let message = format!("is {active:.3e}, expected at most total_params = {total:.3e}");
            reader.report("active_params", &message);
        }
        given
    }

    fn flops(&self) -> Option<f64> {
        Some(FLOPS_PER_PARAMETER_AND_TOKEN * self.active_params? * self.tokens?)
    }
}

/// What a key is.
fn what(key: &str) -> &'static str {
    KEYS.iter().find(|(known, _)| *known == key).map_or("", |(_, what)| what)
}

#[cfg(test)]
mod tests;
