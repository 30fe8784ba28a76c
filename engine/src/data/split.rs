//! Which text is trained on and which is held out.

use wattle_kernels::rng::{Philox, Purpose};

use super::config::{DataConfig, HeldOutBy};
use super::error::Result;
use super::source::Documents;

/// Divides the documents of `data.train`, one after another.
pub(super) struct Split {
    rule: Rule,
}

/// What of one document is trained on and what is held out.
pub(super) struct Parts {
    pub(super) train: Option<String>,
    pub(super) held_out: Option<String>,
}

enum Rule {
    AllTrain,
    Document {
        fraction: f64,
        rng: Philox,
    },
    Tail {
        /// Bytes before the held-out tail that have not passed by.
        remaining_bytes: u64,
    },
}

impl Split {
    /// The split of a configuration; by tail, the corpus is read once to learn its length.
    pub(super) fn new(config: &DataConfig, seed: u64) -> Result<Self> {
        let fraction = config.held_out_fraction;
        let rule = if !config.validation.is_empty() || fraction == 0.0 {
            Rule::AllTrain
        } else if config.held_out_by == HeldOutBy::Document {
            Rule::Document { fraction, rng: Philox::new(seed, Purpose::Split, 0) }
        } else {
            let mut documents = open_train(config)?;
            documents.by_ref().try_for_each(|document| document.map(drop))?;
            let num_bytes = documents.summary().num_bytes;
            Rule::Tail { remaining_bytes: num_bytes - (num_bytes as f64 * fraction) as u64 }
        };
        Ok(Split { rule })
    }

    /// Divides the next document.
    pub(super) fn divide(&mut self, text: String) -> Parts {
        match &mut self.rule {
            Rule::AllTrain => Parts { train: Some(text), held_out: None },
            Rule::Document { fraction, rng } => {
                // Equal texts stay together, so that no held-out document is also trained on.
                let hash = blake3::hash(text.as_bytes());
                let index =
                    hash.as_bytes().iter().take(8).fold(0, |index, &byte| index << 8 | u64::from(byte));
                match rng.uniform(index) < *fraction {
                    true => Parts { train: None, held_out: Some(text) },
                    false => Parts { train: Some(text), held_out: None },
                }
            }
            Rule::Tail { remaining_bytes } => {
                let mut head = text;
                let cut = head.floor_char_boundary((*remaining_bytes).min(head.len() as u64) as usize);
                let tail = head.split_off(cut);
                // A document that is cut ends the head, even if a character there straddles the cut.
                *remaining_bytes = if tail.is_empty() { *remaining_bytes - head.len() as u64 } else { 0 };
                let some = |text: String| Some(text).filter(|text| !text.is_empty());
                Parts { train: some(head), held_out: some(tail) }
            }
        }
    }
}

/// The documents of `data.train`.
pub(super) fn open_train(config: &DataConfig) -> Result<Documents> {
    Documents::open("data.train", &config.train, &config.text_field, config.max_bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn held_out(texts: &[String], fraction: f64, seed: u64) -> BTreeSet<String> {
        let config = DataConfig { held_out_fraction: fraction, ..DataConfig::default() };
        let mut split = Split::new(&config, seed).unwrap();
        texts.iter().filter_map(|text| split.divide(text.clone()).held_out).collect()
    }

    #[test]
    fn a_document_stays_on_its_side_when_others_are_added() {
        let texts: Vec<String> = (0..2000).map(|i| format!("document {i}")).collect();
        let few = held_out(&texts[500..1000], 0.1, 7);
        let all = held_out(&texts, 0.1, 7);
        assert!(few.is_subset(&all));
        assert_eq!(all.iter().filter(|text| texts[500..1000].contains(text)).count(), few.len());
        // 2000 draws at 0.1: mean 200, standard deviation 13.4.
        assert!((140..260).contains(&all.len()), "{}", all.len());
        assert_ne!(all, held_out(&texts, 0.1, 8));
    }

    #[test]
    fn the_tail_is_the_last_part_of_the_bytes_and_nothing_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let texts = ["one \u{1F33E}\u{1F33E}", "two", "three"];
        let train: Vec<String> = (0..3).map(|i| format!("{}/{i}.txt", directory.path().display())).collect();
        train.iter().zip(texts).for_each(|(path, text)| std::fs::write(path, text).unwrap());
        for fraction in [0.05, 0.3, 0.4, 0.5, 0.6, 0.99] {
            let held_out_by = HeldOutBy::Tail;
            let config = DataConfig {
                held_out_fraction: fraction,
                held_out_by,
                train: train.clone(),
                ..DataConfig::default()
            };
            let mut split = Split::new(&config, 0).unwrap();
            let parts: Vec<Parts> = texts.iter().map(|text| split.divide((*text).into())).collect();
            let head: String = parts.iter().filter_map(|parts| parts.train.clone()).collect();
            let tail: String = parts.iter().filter_map(|parts| parts.held_out.clone()).collect();
            assert_eq!(format!("{head}{tail}"), texts.concat());
            let wanted = (texts.concat().len() as f64 * fraction) as usize;
            assert!((wanted..wanted + 4).contains(&tail.len()), "{fraction}: {} for {wanted}", tail.len());
        }
    }
}
