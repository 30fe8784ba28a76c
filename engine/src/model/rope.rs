//! Rotary positions of a model: which part of a head turns, and how positions are stretched beyond the length that
//! the weights were first trained on.
//!
//! Sources: linear interpolation, arXiv:2306.15595; YaRN, arXiv:2309.00071; the Llama 3.1 rule and all key names as in
//! Hugging Face transformers.

use std::f64::consts::TAU;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wattle_kernels::Result;
use wattle_kernels::ops::rope::{self, RopeTable};

use crate::config::Problem;
use crate::model::config::ModelConfig;

/// `[model.rope_scaling]`: positions stretched beyond the length of the first training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Every frequency divided by the factor.
    Linear {
        /// How many times longer.
        factor: f64,
    },
    /// The rule of Llama 3.1: long wavelengths divided by the factor, short ones kept, a blend between.
    Llama3 {
        /// How many times longer.
        factor: f64,
        /// Wavelengths above the original length over this are divided.
        low_freq_factor: f64,
        /// Wavelengths below the original length over this are kept.
        high_freq_factor: f64,
        /// Length of the first training, in tokens.
        original_max_positions: usize,
    },
    /// YaRN: pairs that turn seldom are divided, pairs that turn often are kept, and attention is sharpened.
    Yarn {
        /// How many times longer.
        factor: f64,
        /// Pairs that turn more often than this over the original length are kept.
        beta_fast: f64,
        /// Pairs that turn less often than this over the original length are divided.
        beta_slow: f64,
        /// Multiplies what turns; 0.1·ln(factor) + 1 is the paper's.
        attention_factor: f64,
        /// Length of the first training, in tokens.
        original_max_positions: usize,
    },
}

impl RopeScaling {
    /// Everything that is wrong in this section.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut at_least = |key: &str, value: f64, least: f64| {
            if value.is_nan() || value < least {
                let message = format!("is {value}, expected at least {least}");
                problems.push(Problem::new(format!("model.rope_scaling.{key}"), message));
            }
        };
        match *self {
            RopeScaling::Linear { factor } => at_least("factor", factor, 1.0),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                at_least("factor", factor, 1.0);
                at_least("low_freq_factor", low_freq_factor, f64::MIN_POSITIVE);
                // Equal factors would leave no room for the blend.
                at_least("high_freq_factor", high_freq_factor, low_freq_factor * (1.0 + 1e-9));
                at_least("original_max_positions", original_max_positions as f64, 1.0);
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, attention_factor, original_max_positions } => {
                at_least("factor", factor, 1.0);
                at_least("beta_slow", beta_slow, f64::MIN_POSITIVE);
                at_least("beta_fast", beta_fast, beta_slow);
                at_least("attention_factor", attention_factor, f64::MIN_POSITIVE);
                at_least("original_max_positions", original_max_positions as f64, 1.0);
            }
        }
        problems
    }

    fn stretch(&self, frequencies: &mut [f64], theta: f64) {
        match *self {
            RopeScaling::Linear { factor } => {
                frequencies.iter_mut().for_each(|frequency| *frequency /= factor)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                for frequency in frequencies {
                    let turns = original_max_positions as f64 * *frequency / TAU;
                    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    *frequency = blend(*frequency, factor, kept.clamp(0.0, 1.0));
                }
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, .. } => {
                let rotary_dim = 2.0 * frequencies.len() as f64;
                // The pair that turns so many times over the original length.
                let pair_of = |turns: f64| {
                    rotary_dim * (original_max_positions as f64 / (turns * TAU)).ln() / (2.0 * theta.ln())
                };
                let first = pair_of(beta_fast).floor().max(0.0);
                let last = pair_of(beta_slow).ceil().min(rotary_dim - 1.0);
                // As transformers does, so that a span of nothing does not divide by zero.
                let span = if last > first { last - first } else { 0.001 };
                for (pair, frequency) in frequencies.iter_mut().enumerate() {
                    let divided = ((pair as f64 - first) / span).clamp(0.0, 1.0);
                    *frequency = blend(*frequency, factor, 1.0 - divided);
                }
            }
        }
    }

    fn amplitude(&self) -> f64 {
        match *self {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => 1.0,
        }
    }
}

/// Between the divided frequency (0) and the kept one (1).
fn blend(frequency: f64, factor: f64, kept: f64) -> f64 {
    frequency / factor * (1.0 - kept) + frequency * kept
}

/// The table of a model's rotary positions.
///
/// # Errors
/// Out of memory.
pub(super) fn table(config: &ModelConfig, max_positions: usize) -> Result<RopeTable> {
    let mut frequencies = rope::frequencies(config.rotary_dim(), config.rope_theta);
    if let Some(scaling) = &config.rope_scaling {
        scaling.stretch(&mut frequencies, config.rope_theta);
    }
    let amplitude = config.rope_scaling.as_ref().map_or(1.0, RopeScaling::amplitude);
    RopeTable::from_frequencies(max_positions, &frequencies, amplitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretched(scaling: RopeScaling, pairs: usize, theta: f64) -> Vec<f64> {
        let mut frequencies = rope::frequencies(2 * pairs, theta);
        scaling.stretch(&mut frequencies, theta);
        frequencies
    }

    fn assert_near(got: &[f64], want: &[f64]) {
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= 2e-7 * want, "{got:e} {want:e}");
        }
        assert_eq!(got.len(), want.len());
    }

    #[test]
    fn linear_divides_every_frequency() {
        assert_near(&stretched(RopeScaling::Linear { factor: 4.0 }, 2, 100.0), &[0.25, 0.025]);
    }

    /// Origin: `transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS` of transformers 5.23, head size 16, theta 10000.
    #[test]
    fn llama3_and_yarn_give_the_frequencies_of_transformers() {
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 64,
        };
        let expected = [
            1.0,
            0.24438458681106567,
            0.013042256236076355,
            0.0039528473280370235,
            0.0012499999720603228,
            0.00039528473280370235,
            0.0001250000059371814,
            3.9528473280370235e-05,
        ];
        assert_near(&stretched(llama3, 8, 10_000.0), &expected);
        let yarn = RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.0,
            original_max_positions: 64,
        };
        let expected = [
            1.0,
            0.23717081546783447,
            0.04999999701976776,
            0.007905694656074047,
            0.0024999999441206455,
            0.0007905694656074047,
            0.0002500000118743628,
            7.905694656074047e-05,
        ];
        assert_near(&stretched(yarn, 8, 10_000.0), &expected);
    }
}
