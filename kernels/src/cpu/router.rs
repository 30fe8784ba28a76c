//! The router on the CPU, composed of the row-wise passes of [`routing`](super::routing). Sums over tokens are taken in
//! f64 in the order of tokens.

use crate::cpu::routing;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::router::{EPSILON, Losses, Routed, Rule};
use crate::tensor::Tensor;

pub(crate) fn forward(
    logits_te: &Tensor,
    bias_e: Option<&Tensor>,
    rule: Rule,
    routed: &mut Routed,
) -> Result<()> {
    let Routed { scores_te, indices_tk, weights_tk, lse_t, entropy_t } = routed;
    if rule.sigmoid {
        routing::sigmoid(logits_te, scores_te)?;
    } else {
        routing::softmax(logits_te, scores_te)?;
    }
    routing::top_k(scores_te, bias_e, indices_tk)?;
    routing::select(scores_te, indices_tk, weights_tk)?;
    for scores in weights_tk.data_mut::<f32>()?.chunks_exact_mut(rule.top_k) {
        let divisor = divisor(scores, rule);
        scores.iter_mut().for_each(|score| *score = *score / divisor * rule.scale);
    }
    if let Some(lse_t) = lse_t {
        routing::logsumexp(logits_te, lse_t)?;
    }
    routing::entropy(scores_te, entropy_t)
}

pub(crate) fn losses(scores_te: &Tensor, rule: Rule, losses: &Losses, losses_2: &mut Tensor) -> Result<()> {
    let balance = match losses.shares_ge {
        None => 0.0,
        Some(shares_ge) => losses.balance_coefficient * balance_loss(scores_te, shares_ge, rule)?,
    };
    let z = match losses.lse_t {
        None => 0.0,
        Some(lse_t) => losses.z_coefficient * mean_square(lse_t.data()?),
    };
    losses_2.data_mut::<f32>()?.copy_from_slice(&[balance, z]);
    Ok(())
}

pub(crate) fn backward(
    (dweights_r, token_to_rows_tk): (&Tensor, &Tensor),
    logits_te: &Tensor,
    routed: &Routed,
    rule: Rule,
    losses: &Losses,
    dlogits_te: &mut Tensor,
) -> Result<()> {
    let Routed { scores_te, indices_tk, .. } = routed;
    let mut chosen_tk = Tensor::scratch(indices_tk.shape(), DType::F32, Device::Cpu)?;
    routing::select(scores_te, indices_tk, &mut chosen_tk)?;
    let dweights_tk = in_token_order(dweights_r.data()?, token_to_rows_tk)?;
    let dchosen_tk = weigh_backward(dweights_tk, &chosen_tk, rule)?;
    let mut dscores_te = Tensor::zeros(scores_te.shape(), DType::F32, Device::Cpu)?;
    routing::select_backward(&dchosen_tk, indices_tk, &mut dscores_te)?;
    if let Some(shares_ge) = losses.shares_ge {
        add_balance_gradient(&mut dscores_te, scores_te, shares_ge, rule, losses.balance_coefficient)?;
    }
    if rule.sigmoid {
        routing::sigmoid_backward(&dscores_te, scores_te, dlogits_te)?;
    } else {
        routing::softmax_backward(&dscores_te, scores_te, dlogits_te)?;
    }
    if let Some(lse_t) = losses.lse_t {
        let scale = losses.z_coefficient * 2.0 / logits_te.num_rows() as f32;
        let dlse: Vec<f32> = lse_t.data::<f32>()?.iter().map(|lse| scale * lse).collect();
        let dlse_t = Tensor::from_slice(&dlse, lse_t.shape())?;
        routing::logsumexp_backward(&dlse_t, logits_te, lse_t, dlogits_te)?;
    }
    Ok(())
}

/// The gradient of each assignment's weight; 0 for one without a row.
fn in_token_order(dweights_r: &[f32], token_to_rows_tk: &Tensor) -> Result<Tensor> {
    let mut dweights_tk = Tensor::scratch(token_to_rows_tk.shape(), DType::F32, Device::Cpu)?;
    let rows = token_to_rows_tk.data::<i32>()?;
    for (dweight, &row) in dweights_tk.data_mut::<f32>()?.iter_mut().zip(rows) {
        *dweight = if row >= 0 { dweights_r[row as usize] } else { 0.0 };
    }
    Ok(dweights_tk)
}

/// ds_k = scale / D·(dw_k − Σ_j dw_j·s_j / D) when renormalised by D = Σ s.
fn weigh_backward(mut dweights_tk: Tensor, chosen_tk: &Tensor, rule: Rule) -> Result<Tensor> {
    let rows = dweights_tk.data_mut::<f32>()?.chunks_exact_mut(rule.top_k);
    for (dchosen, scores) in rows.zip(chosen_tk.data::<f32>()?.chunks_exact(rule.top_k)) {
        let divisor = divisor(scores, rule);
        let mean = if rule.renormalise {
            dchosen.iter().zip(scores).map(|(dw, s)| dw * s).sum::<f32>() / divisor
        } else {
            0.0
        };
        dchosen.iter_mut().for_each(|dw| *dw = rule.scale / divisor * (*dw - mean));
    }
    Ok(dweights_tk)
}

/// What a token's chosen scores are divided by. The best k of e softmax scores sum to at least k / e; sigmoid scores
/// can all be 0.
fn divisor(chosen: &[f32], rule: Rule) -> f32 {
    match (rule.renormalise, rule.sigmoid) {
        (false, _) => 1.0,
        (true, false) => chosen.iter().sum(),
        (true, true) => chosen.iter().sum::<f32>() + EPSILON,
    }
}

fn mean_square(values: &[f32]) -> f32 {
    if values.is_empty() {
        return 0.0;
    }
    let sum: f64 = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    (sum / values.len() as f64) as f32
}

/// E/T·Σ_t f_g(t)·p_t.
fn balance_loss(scores_te: &Tensor, shares_ge: &Tensor, rule: Rule) -> Result<f32> {
    let (num_tokens, num_experts) = (scores_te.num_rows(), scores_te.last_dim());
    if num_tokens == 0 {
        return Ok(0.0);
    }
    let (shares_ge, group) = (shares_ge.data::<f32>()?, group_of(num_tokens, shares_ge.num_rows()));
    let mut sum = 0.0;
    for (t, scores) in scores_te.data::<f32>()?.chunks_exact(num_experts).enumerate() {
        let shares = &shares_ge[group(t) * num_experts..][..num_experts];
        let dot: f32 = scores.iter().zip(shares).map(|(s, f)| s * f).sum();
        sum += f64::from(dot * scale_to_probabilities(scores, rule));
    }
    Ok((sum * num_experts as f64 / num_tokens as f64) as f32)
}

/// dscores_te += `scale` times the gradient of [`balance_loss`].
fn add_balance_gradient(
    dscores_te: &mut Tensor,
    scores_te: &Tensor,
    shares_ge: &Tensor,
    rule: Rule,
    scale: f32,
) -> Result<()> {
    let (num_tokens, num_experts) = (scores_te.num_rows(), scores_te.last_dim());
    let (shares_ge, group) = (shares_ge.data::<f32>()?, group_of(num_tokens, shares_ge.num_rows()));
    let scale = scale * num_experts as f32 / num_tokens as f32;
    let scores_te = scores_te.data::<f32>()?.chunks_exact(num_experts);
    let rows = dscores_te.data_mut::<f32>()?.chunks_exact_mut(num_experts).zip(scores_te);
    for (t, (dscores, scores)) in rows.enumerate() {
        let shares = &shares_ge[group(t) * num_experts..][..num_experts];
        let normaliser = scale_to_probabilities(scores, rule);
        // The derivative of p = s / (Σ s + ε): each p_j falls as s_e grows. A softmax carries that in its own backward.
        let mean_share = if rule.sigmoid {
            scores.iter().zip(shares).map(|(s, f)| s * f).sum::<f32>() * normaliser
        } else {
            0.0
        };
        for (dscore, share) in dscores.iter_mut().zip(shares) {
            *dscore += scale * normaliser * (share - mean_share);
        }
    }
    Ok(())
}

/// The factor that makes a token's scores probabilities.
fn scale_to_probabilities(scores: &[f32], rule: Rule) -> f32 {
    if rule.sigmoid { 1.0 / (scores.iter().sum::<f32>() + EPSILON) } else { 1.0 }
}

/// The group of each token, of `num_groups` equal runs.
fn group_of(num_tokens: usize, num_groups: usize) -> impl Fn(usize) -> usize {
    move |t| t * num_groups / num_tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(scores: &[f32], shares: &[f32], sigmoid: bool) -> f32 {
        let rows = |values: &[f32]| Tensor::from_slice(values, &[values.len() / 4, 4]).unwrap();
        let rule = Rule { sigmoid, renormalise: false, scale: 1.0, top_k: 1 };
        balance_loss(&rows(scores), &rows(shares), rule).unwrap()
    }

    #[test]
    fn the_balance_loss_is_one_when_balanced_and_e_when_all_goes_to_one_expert() {
        assert_eq!(loss(&[0.25; 16], &[0.25; 4], false), 1.0);
        let one = [0.0, 1.0, 0.0, 0.0];
        assert_eq!(loss(&one.repeat(4), &one, false), 4.0);
    }

    #[test]
    fn shrinking_all_sigmoid_scores_does_not_escape_the_balance_loss() {
        let shares = [0.7, 0.1, 0.1, 0.1];
        let large = loss(&[0.8, 0.2, 0.2, 0.2], &shares, true);
        let small = loss(&[0.8e-3, 0.2e-3, 0.2e-3, 0.2e-3], &shares, true);
        assert!((large - small).abs() < 1e-3 * large, "{large} {small}");
    }
}
