//! The text a tokenizer learns from: spread evenly over the training text, in one pass and bounded memory.

use crate::data::config::DataConfig;
use crate::data::error::Result;
use crate::data::split::{Split, open_train};

/// Long documents are taken in pieces of this size.
const PIECE_BYTES: usize = 16 << 10;

/// At most `max_bytes` of the training text; at least half of that if there is so much. Held-out text is left
/// out.
pub(super) fn training_sample(config: &DataConfig, seed: u64, max_bytes: u64) -> Result<Vec<String>> {
    let mut split = Split::new(config, seed)?;
    let mut sample = Sample::new(max_bytes);
    for document in open_train(config)? {
        let Some(text) = split.divide(document?.text).train else { continue };
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
            sample.offer(piece);
            rest = after;
        }
    }
    Ok(sample.pieces.into_iter().map(|(_, piece)| piece).collect())
}

/// Every `stride`-th piece; the stride doubles whenever the kept ones grow beyond the limit.
struct Sample {
    max_bytes: u64,
    stride: u64,
    num_offered: u64,
    /// Each with its number among those offered.
    pieces: Vec<(u64, String)>,
    num_bytes: u64,
}

impl Sample {
    fn new(max_bytes: u64) -> Self {
        Sample { max_bytes, stride: 1, num_offered: 0, pieces: Vec::new(), num_bytes: 0 }
    }

    fn offer(&mut self, piece: &str) {
        let number = self.num_offered;
        self.num_offered += 1;
        if !number.is_multiple_of(self.stride) {
            return;
        }
        self.num_bytes += piece.len() as u64;
        self.pieces.push((number, piece.to_owned()));
        while self.num_bytes > self.max_bytes && self.pieces.len() > 1 {
            self.stride *= 2;
            self.pieces.retain(|(number, _)| number.is_multiple_of(self.stride));
            self.num_bytes = self.pieces.iter().map(|(_, piece)| piece.len() as u64).sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_bounded_and_reaches_over_the_whole_text() {
        let mut sample = Sample::new(1000);
        for number in 0..10_000 {
            sample.offer(&format!("{number:010}"));
        }
        assert!((500..=1000).contains(&sample.num_bytes), "{}", sample.num_bytes);
        let numbers: Vec<u64> = sample.pieces.iter().map(|(number, _)| *number).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] - pair[0] == sample.stride));
        assert!(numbers[numbers.len() - 1] + sample.stride >= 10_000);
    }

    #[test]
    fn a_small_corpus_is_taken_whole_but_for_what_is_held_out() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..50 {
            std::fs::write(directory.path().join(format!("{number:02}.txt")), format!("{number:02}"))
                .unwrap();
        }
        let train = vec![directory.path().display().to_string()];
        let config = DataConfig { train, held_out_fraction: 0.5, ..DataConfig::default() };
        let sample = training_sample(&config, 3, 1000).unwrap();
        let mut split = Split::new(&config, 3).unwrap();
        let expected: Vec<String> =
            (0..50).filter_map(|number| split.divide(format!("{number:02}")).train).collect();
        assert_eq!(sample, expected);
        assert!((10..40).contains(&sample.len()));
    }
}
