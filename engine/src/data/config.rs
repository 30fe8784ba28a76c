//! The `[data]` and `[tokenizer]` sections of a configuration.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cargo_registry::CARGO_REGISTRY;
use super::tokenizer::SMALLEST_BPE_VOCABULARY;
use crate::config::Problem;

/// What text a run learns from and how it is cut into samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Training text: files, directories (walked in sorted order) and patterns such as "books/**/*.txt". Read
    /// as JSON lines (.jsonl), Parquet (.parquet) or, with any other name, UTF-8 text; a further .gz or .zst
    /// is unpacked. The entry "cargo-registry" is the sources and documents of the crates in Cargo.lock.
    pub train: Vec<String>,
    /// Held-out text, named in the same way. Empty: part of the training text is held out.
    pub validation: Vec<String>,
    /// The part of the training text that is held out when `validation` is empty, at least 0 and below 1.
    pub held_out_fraction: f64,
    /// How the held-out part is chosen.
    pub held_out_by: HeldOutBy,
    /// The field of a JSON line, or the column of a Parquet file, that holds the text.
    pub text_field: String,
    /// Tokens in one sample.
    pub sequence_length: usize,
    /// Whether each epoch visits the samples in a new random order; otherwise in the order of the text.
    pub shuffle: bool,
    /// Read no more than this many bytes of text from each of `train` and `validation`, in their order.
    pub max_bytes: Option<u64>,
}

/// How the held-out part of the training text is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HeldOutBy {
    /// Whole documents, by a hash of their text and the run's seed: a document stays on its side of the split
    /// when others are added.
    Document,
    /// The last bytes of the corpus: for a corpus that is one long file.
    Tail,
}

/// How text becomes token ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokenizerConfig {
    /// Which tokenizer.
    pub kind: TokenizerKind,
    /// Size of the vocabulary that "bpe" learns; the other kinds bring their own.
    pub vocab_size: usize,
    /// The tokenizer.json of kind "file".
    pub path: Option<PathBuf>,
    /// How many bytes of training text "bpe" learns from, taken evenly over the corpus.
    pub training_bytes: u64,
}

/// Where a tokenizer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerKind {
    /// Byte-level byte-pair encoding, learned from the training text.
    Bpe,
    /// One token for each byte, and one for the end of a document: 257 in all.
    Byte,
    /// A tokenizer.json in the Hugging Face format, named by `path`.
    File,
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            train: Vec::new(),
            validation: Vec::new(),
            held_out_fraction: 0.05,
            held_out_by: HeldOutBy::Document,
            text_field: "text".into(),
            sequence_length: 256,
            shuffle: true,
            max_bytes: None,
        }
    }
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        TokenizerConfig { kind: TokenizerKind::Bpe, vocab_size: 4096, path: None, training_bytes: 8_000_000 }
    }
}

impl DataConfig {
    /// Everything that is wrong with the values, before any file is opened.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut check = |good: bool, key: &str, message: String| {
            if !good {
                problems.push(Problem { key: format!("data.{key}"), message });
            }
        };
        let entries = "expected files, directories or patterns";
        check(
            !self.train.is_empty(),
            "train",
            format!("is empty, {entries}, or \"{CARGO_REGISTRY}\" for the sources of this build's crates"),
        );
        for (key, list) in [("train", &self.train), ("validation", &self.validation)] {
            check(
                !list.iter().any(|entry| entry.trim().is_empty()),
                key,
                format!("has an empty entry, {entries}"),
            );
        }
        check(
            (0.0..1.0).contains(&self.held_out_fraction),
            "held_out_fraction",
            format!("is {}, expected at least 0 and below 1", self.held_out_fraction),
        );
        check(!self.text_field.is_empty(), "text_field", "is empty, expected the name of a field".into());
        check(
            (1..=1 << 24).contains(&self.sequence_length),
            "sequence_length",
            format!("is {}, expected 1 to {}", self.sequence_length, 1 << 24),
        );
        check(self.max_bytes != Some(0), "max_bytes", "is 0, expected at least 1, or no such line".into());
        problems
    }
}

impl TokenizerConfig {
    /// Everything that is wrong with the values, before any file is opened.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut check = |good: bool, key: &str, message: String| {
            if !good {
                problems.push(Problem { key: format!("tokenizer.{key}"), message });
            }
        };
        let is_bpe = self.kind == TokenizerKind::Bpe;
        check(
            !is_bpe || (SMALLEST_BPE_VOCABULARY..=1 << 20).contains(&self.vocab_size),
            "vocab_size",
            format!(
                "is {}, expected {SMALLEST_BPE_VOCABULARY} (256 bytes and the end of a document) to {}",
                self.vocab_size,
                1 << 20
            ),
        );
        check(!is_bpe || self.training_bytes > 0, "training_bytes", "is 0, expected at least 1".into());
        let is_file = self.kind == TokenizerKind::File;
        check(
            is_file == self.path.is_some(),
            "path",
            match is_file {
                true => "is missing, expected the tokenizer.json that kind = \"file\" loads".into(),
                false => {
                    "is given, but only kind = \"file\" reads it; remove it or change tokenizer.kind".into()
                }
            },
        );
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_listed_with_its_key() {
        let data = DataConfig {
            held_out_fraction: f64::NAN,
            sequence_length: 0,
            max_bytes: Some(0),
            text_field: String::new(),
            validation: vec![" ".into()],
            ..DataConfig::default()
        };
        let tokenizer = TokenizerConfig {
            vocab_size: 256,
            training_bytes: 0,
            path: Some("tokenizer.json".into()),
            ..TokenizerConfig::default()
        };
        let keys: Vec<String> =
            data.validate().into_iter().chain(tokenizer.validate()).map(|problem| problem.key).collect();
        assert_eq!(
            keys,
            [
                "data.train",
                "data.validation",
                "data.held_out_fraction",
                "data.text_field",
                "data.sequence_length",
                "data.max_bytes",
                "tokenizer.vocab_size",
                "tokenizer.training_bytes",
                "tokenizer.path"
            ]
        );
    }

    #[test]
    fn the_defaults_need_only_a_path() {
        let data = DataConfig { train: vec!["books".into()], ..DataConfig::default() };
        assert_eq!(data.validate(), []);
        assert_eq!(TokenizerConfig::default().validate(), []);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(toml::from_str::<DataConfig>("train = ['a']\ntext_feild = 'b'").is_err());
        assert!(toml::from_str::<TokenizerConfig>("kind = 'byte'").is_ok());
    }
}
