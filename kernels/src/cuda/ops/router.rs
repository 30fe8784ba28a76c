//! The router.

use super::Operation;
use crate::cuda::Argument;
use crate::cuda::calls::router as calls;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::router::{Losses, Routed, Rule};
use crate::tensor::Tensor;

pub(crate) fn forward(
    logits_te: &Tensor,
    bias_e: Option<&Tensor>,
    rule: Rule,
    routed: &mut Routed,
) -> Result<()> {
    let op = Operation::on("router", logits_te)?;
    let buffers = calls::Forward {
        logits: op.read("logits", logits_te)?,
        bias: op.read_optional("bias", bias_e)?,
        scores: op.write("scores", &mut routed.scores_te)?,
        indices: op.write("indices", &mut routed.indices_tk)?,
        weights: op.write("weights", &mut routed.weights_tk)?,
        lse: routed.lse_t.as_mut().map_or(Ok(Argument::NULL), |lse_t| op.write("lse", lse_t))?,
        entropy: op.write("entropy", &mut routed.entropy_t)?,
    };
    let call = calls::forward(&buffers, [logits_te.num_rows(), logits_te.last_dim()], rule)?;
    // SAFETY: the op checked shapes and dtypes and made the outputs.
    unsafe { op.launch(&call) }
}

pub(crate) fn losses(scores_te: &Tensor, rule: Rule, losses: &Losses, losses_2: &mut Tensor) -> Result<()> {
    let op = Operation::on("router_losses", scores_te)?;
    let shape @ [t, _] = [scores_te.num_rows(), scores_te.last_dim()];
    let mut terms_t = Tensor::scratch(&[t], DType::F32, scores_te.device())?;
    let mut terms = Argument::NULL;
    if let Some(shares_ge) = losses.shares_ge {
        terms = op.write("terms", &mut terms_t)?;
        let buffers = [op.read("scores", scores_te)?, op.read("shares", shares_ge)?, terms];
        let call = calls::balance_terms(buffers, shape, shares_ge.num_rows(), rule)?;
        // SAFETY: the op checked shapes and dtypes, and there is a term for each token.
        unsafe { op.launch(&call) }?;
    }
    let buffers = [terms, op.read_optional("lse", losses.lse_t)?, op.write("losses", losses_2)?];
    let call = calls::losses(buffers, shape, [losses.balance_coefficient, losses.z_coefficient]);
    // SAFETY: the terms were just written, lse has a value a token, and the losses are two.
    unsafe { op.launch(&call) }
}

pub(crate) fn backward(
    (dweights_r, token_to_rows_tk): (&Tensor, &Tensor),
    logits_te: &Tensor,
    routed: &Routed,
    rule: Rule,
    losses: &Losses,
    dlogits_te: &mut Tensor,
) -> Result<()> {
    let op = Operation::on("router_backward", logits_te)?;
    let buffers = calls::Backward {
        dweights: op.read("dweights", dweights_r)?,
        token_to_rows: op.read("token_to_rows", token_to_rows_tk)?,
        scores: op.read("scores", &routed.scores_te)?,
        indices: op.read("indices", &routed.indices_tk)?,
        shares: op.read_optional("shares", losses.shares_ge)?,
        logits: op.read("logits", logits_te)?,
        lse: op.read_optional("lse", losses.lse_t)?,
        dlogits: op.write("dlogits", dlogits_te)?,
    };
    let shape = [logits_te.num_rows(), logits_te.last_dim()];
    let groups = losses.shares_ge.map_or(1, Tensor::num_rows);
    let coefficients = [losses.balance_coefficient, losses.z_coefficient];
    let call = calls::backward(&buffers, shape, groups, rule, coefficients)?;
    // SAFETY: the op checked shapes and dtypes; that indices are experts and rows have a gradient is the promise of the
    // router's forward and of the plan.
    unsafe { op.launch(&call) }
}
