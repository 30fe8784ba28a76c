//! Samples of a token stream, each found by its index alone.
//!
//! Sample `n` of an epoch is the window of `sequence_length + 1` tokens at `n * sequence_length`: its last
//! target is the first id of the next one, so that every token but the stream's first is a target once. The
//! order of an epoch is a permutation that is computed, not stored: a Feistel network over the next power of
//! four, walked until it falls inside (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA
//! 2002).

use std::sync::Arc;

use wattle_kernels::rng::{Philox, Purpose};
use wattle_kernels::{Result as KernelResult, Tensor};

use super::corpus::TokenStream;
use super::error::{Error, Result};

/// The target of a position that has none.
pub const IGNORED: i32 = -1;

/// A stream cut into samples.
#[derive(Clone, Debug)]
pub struct Dataset {
    tokens: Arc<TokenStream>,
    sequence_length: usize,
    /// The seed of the order; `None` for the order of the text.
    shuffle_seed: Option<u64>,
}

/// Consecutive samples, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, [batch, sequence_length].
    pub ids: Vec<i32>,
    /// The token after each id, [batch, sequence_length]; [`IGNORED`] where there is none.
    pub targets: Vec<i32>,
    /// Number of samples.
    pub batch: usize,
    /// Tokens in each.
    pub sequence_length: usize,
}

impl Dataset {
    /// Samples of `sequence_length` tokens, in a random order of each epoch if `shuffle`.
    ///
    /// Errors: the stream is too short for one sample.
    pub fn new(tokens: Arc<TokenStream>, sequence_length: usize, shuffle: bool, seed: u64) -> Result<Self> {
        if sequence_length == 0 || tokens.len() <= sequence_length {
            return Err(Error::TooShort { num_tokens: tokens.len(), sequence_length });
        }
        Ok(Dataset { tokens, sequence_length, shuffle_seed: shuffle.then_some(seed) })
    }

    /// Tokens in a sample.
    pub fn sequence_length(&self) -> usize {
        self.sequence_length
    }

    /// Whole samples in one epoch.
    pub fn num_samples(&self) -> u64 {
        ((self.tokens.len() - 1) / self.sequence_length) as u64
    }

    /// Samples `first_index..first_index + batch_size` of the whole run: epoch follows epoch.
    pub fn batch(&self, first_index: u64, batch_size: usize) -> Batch {
        let mut batch = Batch::with_capacity(batch_size, self.sequence_length);
        for index in first_index..first_index + batch_size as u64 {
            batch.push_window(&self.tokens, self.window(index));
        }
        batch
    }

    /// Number of the window that sample `index` of the run shows.
    fn window(&self, index: u64) -> usize {
        let (epoch, place) = (index / self.num_samples(), index % self.num_samples());
        let window = match self.shuffle_seed {
            None => place,
            Some(seed) => permute(place, self.num_samples(), &Philox::new(seed, Purpose::Shuffle, epoch)),
        };
        window as usize
    }
}

/// The batches of an evaluation: every token of the stream but its first is a target exactly once, in the
/// order of the text, in batches of at most `batch_size` samples; the last sample is filled up with ignored
/// targets.
///
/// Errors: there is nothing to predict.
pub fn evaluation_batches(
    tokens: &TokenStream,
    sequence_length: usize,
    batch_size: usize,
) -> Result<impl Iterator<Item = Batch> + '_> {
    if tokens.len() < 2 {
        return Err(Error::NoData {
            what: format!("the held-out text has {} tokens, expected at least 2", tokens.len()),
            remedy: "set data.held_out_fraction above 0, or name text in data.validation",
        });
    }
    let (sequence_length, batch_size) = (sequence_length.max(1), batch_size.max(1));
    let num_windows = (tokens.len() - 1).div_ceil(sequence_length);
    Ok((0..num_windows).step_by(batch_size).map(move |first| {
        let last = (first + batch_size).min(num_windows);
        let mut batch = Batch::with_capacity(last - first, sequence_length);
        (first..last).for_each(|window| batch.push_window(tokens, window));
        batch
    }))
}

impl Batch {
    /// The ids and the targets as tensors `[batch, sequence_length]`.
    ///
    /// Errors: out of memory.
    pub fn tensors(&self) -> KernelResult<(Tensor, Tensor)> {
        let shape = [self.batch, self.sequence_length];
        Ok((Tensor::from_slice(&self.ids, &shape)?, Tensor::from_slice(&self.targets, &shape)?))
    }

    fn with_capacity(batch_size: usize, sequence_length: usize) -> Self {
        let ids = Vec::with_capacity(batch_size * sequence_length);
        let targets = Vec::with_capacity(batch_size * sequence_length);
        Batch { ids, targets, batch: 0, sequence_length }
    }

    /// Appends the window of that number; what it lacks at the end of the stream is ignored.
    fn push_window(&mut self, tokens: &TokenStream, window: usize) {
        let first = window * self.sequence_length;
        let len = self.sequence_length.min(tokens.len() - 1 - first);
        tokens.copy_to(first, len, &mut self.ids);
        tokens.copy_to(first + 1, len, &mut self.targets);
        self.batch += 1;
        self.ids.resize(self.batch * self.sequence_length, 0);
        self.targets.resize(self.batch * self.sequence_length, IGNORED);
    }
}

/// A permutation of `0..count`, another for each `rng`. `place` must be below `count`.
fn permute(place: u64, count: u64, rng: &Philox) -> u64 {
    // Two halves of equal width whose product covers `count`; fewer than four walks are expected.
    let bits = u64::BITS - (count - 1).leading_zeros();
    let half_bits = bits.div_ceil(2).max(1);
    let mask = (1 << half_bits) - 1;
    let mut value = place;
    loop {
        let (mut left, mut right) = (value >> half_bits, value & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (rng.word(round << 32 | right) & mask));
        }
        value = left << half_bits | right;
        if value < count {
            return value;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(num_tokens: u32) -> TokenStream {
        let ids: Vec<u32> = (0..num_tokens).collect();
        TokenStream::from_ids(&ids, 1 << 20, num_tokens.into())
    }

    fn dataset(num_tokens: u32, sequence_length: usize, shuffle: bool) -> Dataset {
        Dataset::new(Arc::new(stream(num_tokens)), sequence_length, shuffle, 5).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_order_of_an_epoch_is_a_permutation(count in 1u64..3000, seed: u64, epoch in 0u64..9) {
            let rng = Philox::new(seed, Purpose::Shuffle, epoch);
            let mut seen = vec![false; count as usize];
            for place in 0..count {
                let value = permute(place, count, &rng) as usize;
                prop_assert!(!std::mem::replace(&mut seen[value], true));
            }
        }

        #[test]
        fn a_batch_depends_on_its_indices_alone(
            first in 0u64..200, sizes in prop::collection::vec(1usize..7, 1..5),
        ) {
            let data = dataset(321, 10, true);
            let whole = data.batch(first, sizes.iter().sum());
            let mut next = first;
            let mut parts = Batch::with_capacity(0, 10);
            for size in sizes {
                let batch = data.batch(next, size);
                parts.ids.extend(batch.ids);
                parts.targets.extend(batch.targets);
                parts.batch += batch.batch;
                next += size as u64;
            }
            prop_assert_eq!(whole, parts);
        }

        #[test]
        fn every_held_out_token_but_the_first_is_predicted_once(
            num_tokens in 2u32..200, sequence_length in 1usize..9, batch_size in 1usize..6,
        ) {
            let stream = stream(num_tokens);
            let mut expected = 1;
            for batch in evaluation_batches(&stream, sequence_length, batch_size).unwrap() {
                prop_assert!(batch.batch <= batch_size);
                prop_assert_eq!(batch.ids.len(), batch.batch * sequence_length);
                for (&id, &target) in batch.ids.iter().zip(&batch.targets) {
                    if target != IGNORED {
                        prop_assert_eq!((id, target), (expected - 1, expected));
                        expected += 1;
                    }
                }
            }
            prop_assert_eq!(expected, num_tokens as i32);
        }
    }

    #[test]
    fn an_epoch_shows_each_sample_once_and_the_next_in_another_order() {
        let data = dataset(1001, 10, true);
        assert_eq!(data.num_samples(), 100);
        let epochs: Vec<Vec<i32>> = (0..2)
            .map(|epoch| data.batch(epoch * 100, 100).ids.iter().step_by(10).copied().collect())
            .collect();
        assert_ne!(epochs[0], epochs[1]);
        for mut firsts in epochs {
            assert_ne!(firsts[..20], (0..200).step_by(10).collect::<Vec<_>>(), "in the order of the text");
            firsts.sort();
            assert_eq!(firsts, (0..1000).step_by(10).collect::<Vec<_>>());
        }
    }

    #[test]
    fn without_shuffle_the_text_comes_in_its_order_and_starts_again() {
        let data = dataset(8, 3, false);
        let batch = data.batch(0, 3);
        assert_eq!(batch.ids, [0, 1, 2, 3, 4, 5, 0, 1, 2]);
        assert_eq!(batch.targets, [1, 2, 3, 4, 5, 6, 1, 2, 3]);
    }

    #[test]
    fn a_stream_shorter_than_one_sample_is_refused() {
        let error = Dataset::new(Arc::new(stream(3)), 3, false, 0).unwrap_err().to_string();
        assert!(error.contains("has 3 tokens") && error.contains("needs 4"), "{error}");
        assert!(evaluation_batches(&stream(1), 3, 1).is_err());
    }
}
