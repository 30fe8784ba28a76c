//! The router: scores, the chosen experts and their weights; its two losses; the gradient of the logits. All in f32.
//!
//! Shapes: logits_te, scores_te; bias_e; indices_tk (i32); weights_tk; weights in the order of the experts' rows
//! weights_r; lse_t and entropy_t one value a token; shares_ge of g equal runs of tokens; losses `[2]`.
//! s = softmax(x) or 1 / (1 + e^-x); the top k by s + bias; w = scale·s_k, or scale·s_k / Σ_j s_j when renormalised.
//! balance = c_b·E/T·Σ_t Σ_e f_ge·p_te with p = s / Σ s; z = c_z·mean_t (ln Σ_e e^x)².
//! NaN in a row stays in that row; it never panics and never touches another token.
//! On a GPU the indices and rows are not looked at: they come from [`forward`] and a plan. Up to 1024 experts and 32
//! choices there.
//! Napkin: a few passes over t·e values; 4096 tokens and 64 experts are 1 MiB.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::check;
use crate::profile::{self, Work, bytes_of};
use crate::tensor::Tensor;
use crate::{cpu, cuda};

/// Added to a sum of sigmoid scores before division, which may be 0. A much smaller one (1e-20) lets the router shrink
/// all its scores towards zero and so escape the balance loss.
pub(crate) const EPSILON: f32 = 1e-7;

/// How logits become the weights of experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// A sigmoid for each expert by itself, or else a softmax over all.
    pub sigmoid: bool,
    /// Divide the weights of a token by their sum.
    pub renormalise: bool,
    /// Factor on the weights.
    pub scale: f32,
    /// Experts that each token chooses.
    pub top_k: usize,
}

/// What the router makes of the logits.
#[derive(Clone, Debug)]
pub struct Routed {
    /// f32 `[t, e]`
    pub scores_te: Tensor,
    /// i32 `[t, k]`: the chosen experts, best first.
    pub indices_tk: Tensor,
    /// f32 `[t, k]`
    pub weights_tk: Tensor,
    /// f32 `[t]`: ln Σ e^x, what the z-loss squares; none when not asked for.
    pub lse_t: Option<Tensor>,
    /// f32 `[t]`: −Σ_e p·ln p in nats with p = s / Σ s.
    pub entropy_t: Tensor,
}

/// What the losses see beside the scores. A loss whose tensor is none is 0.
#[derive(Clone, Copy, Debug)]
pub struct Losses<'a> {
    /// f32 `[g, e]`: the share of each group's load that an expert has. Token n is of group n·g / t.
    pub shares_ge: Option<&'a Tensor>,
    /// c_b
    pub balance_coefficient: f32,
    /// Logsumexp of each token's logits.
    pub lse_t: Option<&'a Tensor>,
    /// c_z
    pub z_coefficient: f32,
}

/// Scores, choices and weights. The bias picks experts and never weights them; ties go to the lower index, NaN comes
/// after every number.
///
/// # Errors
/// Shapes or dtypes that do not fit; `top_k` outside 1..=e; more experts or choices than a GPU's kernel holds; out of
/// memory.
pub fn forward(logits_te: &Tensor, bias_e: Option<&Tensor>, rule: Rule, with_lse: bool) -> Result<Routed> {
    const OP: &str = "router";
    check::dtype(OP, "logits", logits_te, DType::F32)?;
    check::rank(OP, "logits", logits_te, 2)?;
    let (t, e, k) = (logits_te.num_rows(), logits_te.last_dim(), rule.top_k);
    if let Some(bias_e) = bias_e {
        check::dtype(OP, "bias", bias_e, DType::F32)?;
        check::shape(OP, "bias", bias_e, &[e])?;
    }
    if k == 0 || k > e {
        let expected = format!("1 to the {e} experts there are");
        return Err(Error::Value { op: OP, what: "top_k", got: k.to_string(), expected });
    }
    let chosen_bytes = t * k * (DType::I32.size_in_bytes() + DType::F32.size_in_bytes());
    let _span = profile::span(OP, DType::F32, || Work::pass(2 * logits_te.size_in_bytes() + chosen_bytes));
    let scratch = |shape: &[usize], dtype| Tensor::scratch(shape, dtype, logits_te.device());
    let mut routed = Routed {
        scores_te: scratch(&[t, e], DType::F32)?,
        indices_tk: scratch(&[t, k], DType::I32)?,
        weights_tk: scratch(&[t, k], DType::F32)?,
        lse_t: if with_lse { Some(scratch(&[t], DType::F32)?) } else { None },
        entropy_t: scratch(&[t], DType::F32)?,
    };
    match logits_te.device() {
        Device::Cpu => cpu::router::forward(logits_te, bias_e, rule, &mut routed)?,
        Device::Cuda(_) => cuda::ops::router::forward(logits_te, bias_e, rule, &mut routed)?,
    }
    Ok(routed)
}

/// f32 `[2]`: the balance loss and the z-loss. No tokens have no loss.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn losses(scores_te: &Tensor, rule: Rule, losses: &Losses) -> Result<Tensor> {
    const OP: &str = "router_losses";
    check::dtype(OP, "scores", scores_te, DType::F32)?;
    check::rank(OP, "scores", scores_te, 2)?;
    check_losses(OP, scores_te, losses)?;
    let _span = profile::span(OP, DType::F32, || Work::pass(scores_te.size_in_bytes()));
    let mut losses_2 = Tensor::scratch(&[2], DType::F32, scores_te.device())?;
    match scores_te.device() {
        Device::Cpu => cpu::router::losses(scores_te, rule, losses, &mut losses_2)?,
        Device::Cuda(_) => cuda::ops::router::losses(scores_te, rule, losses, &mut losses_2)?,
    }
    Ok(losses_2)
}

/// dlogits_te from the gradient of the weights plus that of the losses. `dweights_r` comes in the order of the experts'
/// rows: that of assignment (t, k) is at `token_to_rows_tk`, and 0 where that is -1. The choice has no gradient.
///
/// # Errors
/// Shapes or dtypes that do not fit; an index that is no expert or no row; as [`forward`]; out of memory.
pub fn backward(
    dweights_r: &Tensor,
    token_to_rows_tk: &Tensor,
    logits_te: &Tensor,
    routed: &Routed,
    rule: Rule,
    losses: &Losses,
) -> Result<Tensor> {
    const OP: &str = "router_backward";
    let Routed { scores_te, indices_tk, .. } = routed;
    check::dtype(OP, "logits", logits_te, DType::F32)?;
    check::rank(OP, "logits", logits_te, 2)?;
    check::dtype(OP, "scores", scores_te, DType::F32)?;
    check::shape(OP, "scores", scores_te, logits_te.shape())?;
    let (t, e) = (logits_te.num_rows(), logits_te.last_dim());
    for (what, tensor) in [("indices", indices_tk), ("token_to_rows", token_to_rows_tk)] {
        check::dtype(OP, what, tensor, DType::I32)?;
        check::shape(OP, what, tensor, &[t, rule.top_k])?;
    }
    check::dtype(OP, "dweights", dweights_r, DType::F32)?;
    check::rank(OP, "dweights", dweights_r, 1)?;
    check_losses(OP, scores_te, losses)?;
    let bytes = || 2 * scores_te.size_in_bytes() + bytes_of(&[dweights_r, indices_tk, token_to_rows_tk]);
    let _span = profile::span(OP, DType::F32, || Work::pass(bytes()));
    let mut dlogits_te = Tensor::scratch(&[t, e], DType::F32, logits_te.device())?;
    let gradient = (dweights_r, token_to_rows_tk);
    match logits_te.device() {
        Device::Cpu => {
            check_below(OP, "indices", indices_tk, 0, e)?;
            check_below(OP, "token_to_rows", token_to_rows_tk, -1, dweights_r.num_elements())?;
            cpu::router::backward(gradient, logits_te, routed, rule, losses, &mut dlogits_te)?;
        }
        Device::Cuda(_) => {
            cuda::ops::router::backward(gradient, logits_te, routed, rule, losses, &mut dlogits_te)?;
        }
    }
    Ok(dlogits_te)
}

fn check_losses(op: &'static str, scores_te: &Tensor, losses: &Losses) -> Result<()> {
    if let Some(shares_ge) = losses.shares_ge {
        check::dtype(op, "shares", shares_ge, DType::F32)?;
        check::rank(op, "shares", shares_ge, 2)?;
        check::last_dim(op, "shares", shares_ge, scores_te.last_dim())?;
        if shares_ge.num_rows() == 0 {
            let (got, expected) = (shares_ge.shape().to_vec(), "at least one group".to_owned());
            return Err(Error::Shape { op, what: "shares", got, expected });
        }
    }
    if let Some(lse_t) = losses.lse_t {
        check::dtype(op, "lse", lse_t, DType::F32)?;
        check::shape(op, "lse", lse_t, &[scores_te.num_rows()])?;
    }
    Ok(())
}

/// Each of the host's `indices` must lie in `least..bound`.
pub(crate) fn check_below(
    op: &'static str,
    what: &'static str,
    indices: &Tensor,
    least: i32,
    bound: usize,
) -> Result<()> {
    let fits = |index: i32| index >= least && i64::from(index) < bound as i64;
    match indices.data::<i32>()?.iter().find(|&&index| !fits(index)) {
        None => Ok(()),
        Some(index) => {
            let expected = format!("{least} or more and below {bound}");
            Err(Error::Value { op, what, got: index.to_string(), expected })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{tensor, values};

    const RULE: Rule = Rule { sigmoid: false, renormalise: true, scale: 1.0, top_k: 2 };
    const NO_LOSSES: Losses =
        Losses { shares_ge: None, balance_coefficient: 1.0, lse_t: None, z_coefficient: 1.0 };

    fn matrix(rows: usize, columns: usize) -> Tensor {
        tensor(&values(rows * columns, 1), &[rows, columns], DType::F32)
    }

    #[test]
    fn logits_a_bias_or_choices_that_do_not_fit_are_errors() {
        let (logits_te, bias_e) = (matrix(2, 4), tensor(&[0.0; 3], &[3], DType::F32));
        let bf16 = tensor(&values(4, 1), &[1, 4], DType::Bf16);
        assert!(matches!(forward(&bf16, None, RULE, true), Err(Error::DType { what: "logits", .. })));
        assert!(matches!(forward(&bias_e, None, RULE, true), Err(Error::Shape { what: "logits", .. })));
        let with_bias = forward(&logits_te, Some(&bias_e), RULE, true);
        assert!(matches!(with_bias, Err(Error::Shape { what: "bias", .. })));
        for top_k in [0, 5] {
            let result = forward(&logits_te, None, Rule { top_k, ..RULE }, true);
            assert!(matches!(result, Err(Error::Value { what: "top_k", .. })));
        }
    }

    #[test]
    fn losses_that_do_not_fit_are_errors() {
        let (scores_te, narrow, none) = (matrix(2, 4), matrix(1, 3), matrix(0, 4));
        let of = |shares_ge| losses(&scores_te, RULE, &Losses { shares_ge: Some(shares_ge), ..NO_LOSSES });
        assert!(matches!(of(&narrow), Err(Error::Shape { what: "shares", .. })));
        assert!(matches!(of(&none), Err(Error::Shape { what: "shares", .. })));
        let lse_t = tensor(&[0.0; 3], &[3], DType::F32);
        let result = losses(&scores_te, RULE, &Losses { lse_t: Some(&lse_t), ..NO_LOSSES });
        assert!(matches!(result, Err(Error::Shape { what: "lse", .. })));
        assert_eq!(losses(&scores_te, RULE, &NO_LOSSES).unwrap().data::<f32>().unwrap(), [0.0; 2]);
    }

    #[test]
    fn an_index_or_a_row_outside_is_an_error() {
        let logits_te = matrix(2, 4);
        let routed = forward(&logits_te, None, RULE, false).unwrap();
        let dweights_r = tensor(&values(4, 2), &[4], DType::F32);
        let run = |rows: [i32; 4], routed: &Routed| {
            let rows = Tensor::from_slice(&rows, &[2, 2]).unwrap();
            backward(&dweights_r, &rows, &logits_te, routed, RULE, &NO_LOSSES)
        };
        run([0, 1, -1, 3], &routed).unwrap();
        for outside in [4, -2] {
            let result = run([0, 1, 2, outside], &routed);
            assert!(matches!(result, Err(Error::Value { what: "token_to_rows", .. })));
            let indices_tk = Tensor::from_slice(&[0, 1, 2, outside], &[2, 2]).unwrap();
            let result = run([0, 1, 2, 3], &Routed { indices_tk, ..routed.clone() });
            assert!(matches!(result, Err(Error::Value { what: "indices", .. })));
        }
    }
}
