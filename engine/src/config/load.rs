//! From a TOML file and `--set` overrides to a checked configuration, or to every problem at once.
//!
//! Serde stops at the first error, so each key is read alone: syntax first (nothing else makes sense without
//! it), then unknown and missing keys, then the type of each value, then the rules between values.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Schema;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::Config;
use super::error::{ConfigError, PlacedProblem};
use super::problem::Problem;
use super::resolved::{Origin, Resolved};
use super::schema::{expected, nearest_key, nearest_section, properties, required, schema, summary};

impl Config {
    /// Loads a configuration file and lays the `--set` overrides (`section.key=value`) over it.
    ///
    /// # Errors
    /// [`ConfigError::Read`] when the file cannot be read, else [`ConfigError::Invalid`] with every problem.
    pub fn load(path: &Path, sets: &[String]) -> Result<Resolved, ConfigError> {
        let bytes =
            std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&path.display().to_string(), &bytes, sets)
    }

    /// Reads a configuration from the bytes of `file`, whose name stands in messages only.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every problem.
    pub fn parse(file: &str, bytes: &[u8], sets: &[String]) -> Result<Resolved, ConfigError> {
        let mut loader = Loader { schema: schema(), origins: BTreeMap::new(), problems: Vec::new() };
        let config = loader.config(bytes, sets);
        if !loader.problems.is_empty() {
            // By place: the lines of the file, then --set, then what is missing.
            loader.problems.sort_by_key(|problem| problem.origin);
            return Err(ConfigError::Invalid { file: file.to_owned(), problems: loader.problems });
        }
        Ok(Resolved { config, origins: loader.origins })
    }
}

struct Loader {
    schema: Schema,
    /// Origin of every key and section that is given, known or not.
    origins: BTreeMap<String, Origin>,
    problems: Vec<PlacedProblem>,
}

impl Loader {
    /// The configuration; of use only when there are no problems.
    fn config(&mut self, bytes: &[u8], sets: &[String]) -> Config {
        let mut table = self.syntax(bytes);
        if !self.problems.is_empty() {
            return Config::default();
        }
        for set in sets {
            self.apply_set(&mut table, set);
        }
        self.check_names(&table);
        self.check_required(&table);
        let mut config = Config {
            run: self.section("run", &table),
            device: self.section("device", &table),
            model: self.section("model", &table),
            moe: table.contains_key("moe").then(|| self.section("moe", &table)),
            optimizer: self.section("optimizer", &table),
            schedule: self.section("schedule", &table),
            precision: self.section("precision", &table),
            checkpoint: self.section("checkpoint", &table),
            eval: self.section("eval", &table),
            telemetry: self.section("telemetry", &table),
        };
        for problem in config.validate() {
            // A value that could not be read stands at its default; what is wrong with that is no news.
            if !self.problems.iter().any(|known| known.problem.key == problem.key) {
                self.report(problem);
            }
        }
        config.fill_derived();
        config
    }

    /// Parses the text and notes the line of every key.
    fn syntax(&mut self, bytes: &[u8]) -> Table {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
            Err(error) => {
                let line = line_at(bytes, error.valid_up_to());
                self.report_at(Origin::File { line }, "", "is not UTF-8 text");
                return Table::new();
            }
        };
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let line = error.span().map_or(1, |span| line_at(text.as_bytes(), span.start));
            self.report_at(Origin::File { line }, "", &format!("is no TOML: {}", error.message()));
        }
        note_lines(document.get_ref(), "", text, &mut self.origins);
        // Cannot fail after the parse above; an error would be reported all the same.
        text.parse().unwrap_or_default()
    }

    /// Lays one `section.key=value` over the table.
    fn apply_set(&mut self, table: &mut Table, set: &str) {
        let Some((path, text)) = set.split_once('=') else {
            return self.report_at(
                Origin::Set,
                set,
                "is no override, expected KEY=VALUE such as moe.top_k=1",
            );
        };
        let (path, text) = (path.trim(), text.trim());
        let Some((section, key)) = path
            .split_once('.')
            .filter(|(section, key)| !section.is_empty() && !key.is_empty() && !key.contains('.'))
        else {
            return self.report_at(Origin::Set, path, "is no key, expected SECTION.KEY such as moe.top_k");
        };
        let key_schema = self.schema.pointer(&format!("/properties/{section}/properties/{key}"));
        let is_text = key_schema.and_then(|key| key.get("type")).is_some_and(|kind| kind == "string");
        let value = match text.parse::<Value>() {
            // `run.name=2026` means the text; only quotes are taken off.
            Ok(value) if !is_text || value.is_str() => value,
            Err(error) if text.starts_with(['"', '\'', '[', '{']) => {
                return self.report_at(
                    Origin::Set,
                    path,
                    &format!("{text} is no TOML value: {}", error.message()),
                );
            }
            _ => Value::String(text.to_owned()),
        };
        let keys = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        if let Some(keys) = keys.as_table_mut() {
            keys.insert(key.to_owned(), value);
            self.origins.insert(path.to_owned(), Origin::Set);
            self.origins.entry(section.to_owned()).or_insert(Origin::Set);
        }
    }

    /// Reports sections and keys that are not known.
    fn check_names(&mut self, table: &Table) {
        let mut problems = Vec::new();
        for (section, value) in table {
            let known = self.schema.get("properties").and_then(|sections| sections.get(section));
            match (known.and_then(properties), value) {
                (None, Value::Table(_)) => problems.push(self.unknown_section(section)),
                (None, _) => problems.push(self.unknown_key("", section, section)),
                (Some(known), Value::Table(keys)) => {
                    for key in keys.keys().filter(|key| !known.contains_key(*key)) {
                        problems.push(self.unknown_key(section, key, &format!("{section}.{key}")));
                    }
                }
                (Some(_), value) => problems.push(Problem::new(
                    section,
                    format!("is {value}, expected a section: a line [{section}] and its keys below"),
                )),
            }
        }
        problems.into_iter().for_each(|problem| self.report(problem));
    }

    fn unknown_section(&self, section: &str) -> Problem {
        let help = match nearest_section(&self.schema, section) {
            Some(nearest) => format!("the nearest known section is [{nearest}]"),
            None => {
                let known = properties(&self.schema).into_iter().flat_map(|sections| sections.keys());
                format!("it has {}", known.map(|name| format!("[{name}]")).collect::<Vec<_>>().join(" "))
            }
        };
        Problem::new(section, format!("this build has no section [{section}]; {help}"))
    }

    fn unknown_key(&self, section: &str, key: &str, path: &str) -> Problem {
        let nearest = nearest_key(&self.schema, section, key).unwrap_or_default();
        Problem::new(path, format!("is no known key; the nearest known key is {nearest}"))
    }

    /// Reports keys without a default that are not given. An optional section asks for its keys only when it
    /// is there.
    fn check_required(&mut self, table: &Table) {
        let mut problems = Vec::new();
        for (section, keys) in properties(&self.schema).into_iter().flatten() {
            let given = table.get(section);
            if given.is_none() && section == "moe" {
                continue;
            }
            for name in required(keys) {
                if given.is_none_or(|given| given.get(name).is_none()) {
                    let key = properties(keys).and_then(|keys| keys.get(name));
                    let what = key.map(summary).unwrap_or_default();
                    problems.push(Problem::new(format!("{section}.{name}"), format!("is missing: {what}")));
                }
            }
        }
        problems.into_iter().for_each(|problem| self.report(problem));
    }

    /// Reads one section, key by key; a key whose value cannot be read stays at its default.
    fn section<T: Default + Serialize + DeserializeOwned>(&mut self, section: &str, table: &Table) -> T {
        let Ok(mut values) = Table::try_from(T::default()) else { return T::default() };
        let known = self.schema.pointer(&format!("/properties/{section}/properties")).cloned();
        let keys = table.get(section).and_then(Value::as_table).into_iter().flatten();
        for (key, value) in keys {
            let Some(key_schema) = known.as_ref().and_then(|known| known.get(key)) else { continue };
            let before = values.insert(key.clone(), value.clone());
            if let Err(error) = values.clone().try_into::<T>() {
                let message = match expected(key_schema) {
                    Some(expected) => format!("is {value}, expected {expected}"),
                    None => error.message().to_owned(),
                };
                self.report(Problem::new(format!("{section}.{key}"), message));
                match before {
                    Some(before) => values.insert(key.clone(), before),
                    None => values.remove(key),
                };
            }
        }
        values.try_into().unwrap_or_default()
    }

    /// Adds a problem at the place of its key.
    fn report(&mut self, problem: Problem) {
        let origin = self.origins.get(&problem.key).copied().unwrap_or(Origin::Default);
        self.problems.push(PlacedProblem { origin, problem });
    }

    fn report_at(&mut self, origin: Origin, key: &str, message: &str) {
        self.problems.push(PlacedProblem { origin, problem: Problem::new(key, message) });
    }
}

/// Notes the line of every key below `prefix`.
fn note_lines(table: &DeTable<'_>, prefix: &str, text: &str, origins: &mut BTreeMap<String, Origin>) {
    for (key, value) in table {
        let path =
            if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
        let line = line_at(text.as_bytes(), key.span().start);
        if let DeValue::Table(keys) = Spanned::get_ref(value) {
            note_lines(keys, &path, text, origins);
        }
        origins.insert(path, Origin::File { line });
    }
}

/// The line, counted from 1, of a byte of the text.
fn line_at(text: &[u8], offset: usize) -> usize {
    1 + text.iter().take(offset).filter(|byte| **byte == b'\n').count()
}
