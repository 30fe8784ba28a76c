//! Keeping the load of the experts even: the load-balancing loss and the expert bias.
//!
//! loss = E·Σ_e f_e·P_e, where f_e is the share of assignments that went to expert e (the shares sum to 1) and P_e
//! the mean probability of e. It is 1 when the load is even. f comes from counts and has no gradient, so with groups
//! of equal size the loss is a plain sum over tokens, E/T·Σ_t f_g(t)·p_t, and dp_te = E/T·f_ge: the probabilities of
//! a popular expert are pushed down in proportion to its load.
//! Source: Fedus et al., Switch Transformers, section 2.2; per sequence: DeepSeek-V3 section 2.1.2; over the global
//! batch: Qiu et al., "Demons in the Detail" (2025).

use crate::config::Scoring;
use crate::error::{Error, Result};

/// Added to a sum of sigmoid scores before division. A much smaller one (1e-20) lets the router shrink all its scores
/// towards zero and so escape the loss.
pub(crate) const EPSILON: f32 = 1e-7;

/// Moves each expert's bias by `rate` towards an even load: up where the expert had fewer tokens than the mean, down
/// where it had more, not at all where it had the mean.
///
/// To be called once per optimizer step with the counts of the whole step, of all micro-batches and all ranks
/// ([`LoadAccumulator::load_e`](crate::LoadAccumulator::load_e)). The bias belongs in the checkpoint.
/// Source: Wang et al., Auxiliary-Loss-Free Load Balancing (2024).
///
/// # Errors
/// Lengths that differ.
pub fn update_bias(bias_e: &mut [f32], tokens_per_expert: &[f32], rate: f32) -> Result<()> {
    expect_len("tokens_per_expert", tokens_per_expert, bias_e.len())?;
    let total: f64 = tokens_per_expert.iter().copied().map(f64::from).sum();
    let mean = total / bias_e.len() as f64;
    for (bias, &tokens) in bias_e.iter_mut().zip(tokens_per_expert) {
        let tokens = f64::from(tokens);
        if tokens < mean {
            *bias += rate;
        } else if tokens > mean {
            *bias -= rate;
        }
    }
    Ok(())
}

/// f_ge: the share of each group's assignments that went to each expert; zeros in a group without any. Group g holds
/// the g-th of `num_groups` equal runs of tokens.
pub(crate) fn load_shares(indices_tk: &[i32], num_experts: usize, num_groups: usize) -> Vec<f32> {
    let mut shares_ge = vec![0.0; num_groups * num_experts];
    if indices_tk.is_empty() {
        return shares_ge;
    }
    let group_size = indices_tk.len() / num_groups;
    for (indices, shares) in indices_tk.chunks_exact(group_size).zip(shares_ge.chunks_exact_mut(num_experts))
    {
        for &expert in indices {
            shares[expert as usize] += 1.0;
        }
        to_shares(shares);
    }
    shares_ge
}

/// Divides counts by their sum; leaves zeros alone.
pub(crate) fn to_shares(counts: &mut [f32]) {
    let total: f64 = counts.iter().copied().map(f64::from).sum();
    if total > 0.0 {
        for count in counts {
            *count = (f64::from(*count) / total) as f32;
        }
    }
}

/// E/T·Σ_t f_g(t)·p_t, without its coefficient.
pub(crate) fn loss(scores_te: &[f32], shares_ge: &[f32], num_experts: usize, scoring: Scoring) -> f32 {
    let num_tokens = scores_te.len() / num_experts;
    if num_tokens == 0 {
        return 0.0;
    }
    let group = group_of(num_tokens, shares_ge.len() / num_experts);
    let mut sum = 0.0;
    for (t, scores) in scores_te.chunks_exact(num_experts).enumerate() {
        let shares = &shares_ge[group(t) * num_experts..][..num_experts];
        let dot: f32 = scores.iter().zip(shares).map(|(s, f)| s * f).sum();
        sum += f64::from(dot * scale_to_probabilities(scores, scoring));
    }
    (sum * num_experts as f64 / num_tokens as f64) as f32
}

/// dscores_te += `scale` times the gradient of [`loss`].
pub(crate) fn add_gradient(
    dscores_te: &mut [f32],
    scores_te: &[f32],
    shares_ge: &[f32],
    num_experts: usize,
    scoring: Scoring,
    scale: f32,
) {
    let num_tokens = scores_te.len() / num_experts;
    let group = group_of(num_tokens, shares_ge.len() / num_experts);
    let scale = scale * num_experts as f32 / num_tokens as f32;
    let rows = dscores_te.chunks_exact_mut(num_experts).zip(scores_te.chunks_exact(num_experts));
    for (t, (dscores, scores)) in rows.enumerate() {
        let shares = &shares_ge[group(t) * num_experts..][..num_experts];
        let normaliser = scale_to_probabilities(scores, scoring);
        // The derivative of p = s / (Σ s + ε): each p_j falls as s_e grows. A softmax carries that in its own backward.
        let mean_share = match scoring {
            Scoring::Softmax => 0.0,
            Scoring::Sigmoid => scores.iter().zip(shares).map(|(s, f)| s * f).sum::<f32>() * normaliser,
        };
        for (dscore, share) in dscores.iter_mut().zip(shares) {
            *dscore += scale * normaliser * (share - mean_share);
        }
    }
}

/// The factor that makes a token's scores probabilities.
fn scale_to_probabilities(scores: &[f32], scoring: Scoring) -> f32 {
    match scoring {
        Scoring::Softmax => 1.0,
        Scoring::Sigmoid => 1.0 / (scores.iter().sum::<f32>() + EPSILON),
    }
}

/// The group of each token, of `num_groups` equal runs.
fn group_of(num_tokens: usize, num_groups: usize) -> impl Fn(usize) -> usize {
    move |t| t * num_groups / num_tokens
}

pub(crate) fn expect_len(what: &'static str, values: &[f32], num_experts: usize) -> Result<()> {
    if values.len() == num_experts {
        return Ok(());
    }
    let expected = format!("one value for each of {num_experts} experts");
    Err(Error::Value { what, got: format!("{} values", values.len()), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bias_moves_against_the_load_by_the_rate() {
        let mut bias_e = [0.0, 0.5, -0.5, 0.0];
        update_bias(&mut bias_e, &[1.0, 9.0, 2.0, 4.0], 0.001).unwrap();
        assert_eq!(bias_e, [0.001, 0.499, -0.499, 0.0]);
    }

    #[test]
    fn an_even_load_and_a_rate_of_zero_leave_the_bias_alone() {
        let mut bias_e = [0.25, -0.25, 0.0];
        update_bias(&mut bias_e, &[7.0; 3], 0.1).unwrap();
        update_bias(&mut bias_e, &[0.0, 0.0, 9.0], 0.0).unwrap();
        assert_eq!(bias_e, [0.25, -0.25, 0.0]);
    }

    #[test]
    fn counts_of_another_length_are_an_error() {
        let error = update_bias(&mut [0.0; 2], &[1.0; 3], 0.1).unwrap_err().to_string();
        assert_eq!(error, "tokens_per_expert is 3 values, expected one value for each of 2 experts");
    }

    #[test]
    fn shares_sum_to_one_in_each_group() {
        let shares_ge = load_shares(&[0, 1, 0, 2, 2, 1, 2, 0], 3, 2);
        assert_eq!(shares_ge, [0.5, 0.25, 0.25, 0.25, 0.25, 0.5]);
        assert_eq!(load_shares(&[], 3, 2), [0.0; 6]);
    }

    #[test]
    fn the_loss_is_one_when_balanced_and_e_when_all_goes_to_one_expert() {
        let even = [0.25; 16];
        assert_eq!(loss(&even, &[0.25; 4], 4, Scoring::Softmax), 1.0);
        let one = [0.0, 1.0, 0.0, 0.0].repeat(4);
        assert_eq!(loss(&one, &[0.0, 1.0, 0.0, 0.0], 4, Scoring::Softmax), 4.0);
    }

    #[test]
    fn shrinking_all_sigmoid_scores_does_not_escape_the_loss() {
        let shares = [0.7, 0.1, 0.1, 0.1];
        let large = loss(&[0.8, 0.2, 0.2, 0.2], &shares, 4, Scoring::Sigmoid);
        let small = loss(&[0.8e-3, 0.2e-3, 0.2e-3, 0.2e-3], &shares, 4, Scoring::Sigmoid);
        assert!((large - small).abs() < 1e-3 * large, "{large} {small}");
    }
}
