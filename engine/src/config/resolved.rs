//! A configuration with every value filled in, and where each value comes from.

use std::collections::BTreeMap;
use std::fmt;

use super::Config;
use super::schema::{properties, schema};

/// A configuration that passed every check, with the origin of its values.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The values.
    pub config: Config,
    /// Where the value of each key that was given comes from, by dotted path. The rest are defaults.
    pub origins: BTreeMap<String, Origin>,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A line of the configuration file, counted from 1.
    File {
        /// The line.
        line: usize,
    },
    /// The command line's `--set`.
    Set,
    /// Nobody gave one: the default, or what follows from other values.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { line } => write!(f, "file, line {line}"),
            Origin::Set => f.write_str("--set"),
            Origin::Default => f.write_str("default"),
        }
    }
}

impl Resolved {
    /// Where the value of a key comes from.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).copied().unwrap_or(Origin::Default)
    }

    /// Every value as TOML, for the run directory's `config.toml`. Loads again to the same [`Config`].
    ///
    /// # Errors
    /// When a value that was set by the program and not by a file has no form in TOML: a path that is not
    /// Unicode or a seed above `i64::MAX`.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(&self.config)
    }

    /// Every value with its origin in a comment. The text is a valid configuration itself.
    ///
    /// # Errors
    /// As [`Resolved::to_toml`].
    pub fn show(&self) -> Result<String, toml::ser::Error> {
        let values = toml::Table::try_from(&self.config)?;
        let schema = schema();
        let mut text = String::new();
        for (section, keys) in properties(&schema).into_iter().flatten() {
            if !text.is_empty() {
                text.push('\n');
            }
            let Some(values) = values.get(section).and_then(toml::Value::as_table) else {
                text.push_str(&format!("# [{section}] is not given\n"));
                continue;
            };
            text.push_str(&format!("[{section}]\n"));
            for key in properties(keys).into_iter().flat_map(|keys| keys.keys()) {
                let line = match values.get(key) {
                    Some(value) => {
                        let origin = self.origin(&format!("{section}.{key}"));
                        format!("{:<39} # {origin}\n", format!("{key} = {value}"))
                    }
                    None => format!("# {key} is not given\n"),
                };
                text.push_str(&line);
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{MINIMAL, load};

    #[test]
    fn show_prints_each_value_with_its_origin() {
        let shown = load(MINIMAL, &["optimizer.beta2=0.99"]).unwrap().show().unwrap();
        let line = |start: &str| shown.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
        assert!(line("max_tokens").ends_with("# file, line 2"), "{shown}");
        assert!(line("beta2 = 0.99").ends_with("# --set"), "{shown}");
        assert!(line("beta1 = 0.9").ends_with("# default"), "{shown}");
        assert!(line("head_dim = 8").ends_with("# default"), "{shown}");
        assert!(shown.contains("# [moe] is not given"), "{shown}");
    }

    #[test]
    fn what_show_prints_and_what_the_run_keeps_load_to_the_same_config() {
        let moe = "\n[moe]\nnum_experts = 4\ntop_k = 2\nexpert_ffn_size = 8\ncapacity_factor = 1.25\n";
        for text in [MINIMAL.to_owned(), format!("{MINIMAL}{moe}")] {
            let resolved =
                load(&text, &["run.name=\"a b\" ", "run.name=again", "schedule.kind=cosine"]).unwrap();
            for again in [resolved.to_toml().unwrap(), resolved.show().unwrap()] {
                assert_eq!(load(&again, &[]).unwrap().config, resolved.config, "{again}");
            }
        }
    }
}
