//! From router logits to expert weights, a routing plan and the router's losses, and back to the logits' gradient.
//!
//! s = softmax(x) or sigmoid(x); the top-k experts by s + bias; weights w_k = scale·s_k, or scale·s_k / Σ_j s_j when
//! renormalised. With `top_k` 1, renormalised weights are 1 and pass no gradient to the logits (with sigmoid scores up
//! to an epsilon of 1e-7 in the sum). Weights are renormalised over all the chosen experts, dropped or not.
//! balance = c_b·E·Σ_e f_e·P_e; z = c_z·mean_t (ln Σ_e e^x)². All in f32.
//! Source of the z-loss: Zoph et al., ST-MoE, section 3.

use wattle_kernels::ops::router::{self as ops, Losses, Routed, Rule};
use wattle_kernels::ops::{routing_load, routing_plan};
use wattle_kernels::{DType, Device, Error as KernelError, Tensor};

use crate::RoutingPlan;
use crate::config::{BalanceLoss, RouterConfig, Scoring};
use crate::error::{Error, Result};

/// Routes one micro-batch.
///
/// Shapes: logits_te and bias_e f32. The bias, where given, picks experts and never weights them. The tokens are
/// `num_sequences` runs of equal length; only the loss per sequence asks for that, others may pass 1.
///
/// `earlier_load_e` (i32 `[e]`) serves the loss over the global batch and is not read otherwise: the assignments per
/// expert in the earlier micro-batches of this optimizer step, of all ranks; none for the first. The micro-batch's own
/// counts are added here, so with several micro-batches on one rank the running sum of a
/// [`LoadAccumulator`](crate::LoadAccumulator) is all that is needed. Where ranks run side by side their present
/// counts are known only after this call: see [`Routing::set_global_load`].
///
/// # Errors
/// A configuration with problems; shapes or dtypes that do not fit; tokens that do not divide into sequences; out of
/// memory. NaN logits are no error: they come out as NaN weights and losses.
pub fn route(
    logits_te: &Tensor,
    bias_e: Option<&Tensor>,
    config: &RouterConfig,
    num_sequences: usize,
    earlier_load_e: Option<&Tensor>,
) -> Result<Routing> {
    let problems = config.validate();
    if !problems.is_empty() {
        return Err(Error::Config(problems));
    }
    let (num_tokens, num_experts) = (logits_te.num_rows(), config.num_experts);
    expect("route", "logits", logits_te, &[num_tokens, num_experts])?;

    let routed = ops::forward(logits_te, bias_e, rule(config), config.z_loss_coefficient > 0.0)?;
    let capacity = config.capacity(num_tokens);
    let plan = routing_plan::plan(&routed.indices_tk, &routed.weights_tk, num_experts, capacity)?;
    let load_1e = plan.tokens_per_expert_e.reshape(&[1, num_experts])?;
    let shares_ge = match config.balance_loss {
        BalanceLoss::None => None,
        BalanceLoss::MicroBatch => Some(routing_load::shares(&load_1e, None)?),
        BalanceLoss::Sequence => {
            check_sequences(num_tokens, num_sequences)?;
            let load_ge = routing_load::by_group(&routed.indices_tk, num_sequences, num_experts)?;
            Some(routing_load::shares(&load_ge, None)?)
        }
        BalanceLoss::GlobalBatch => Some(routing_load::shares(&load_1e, earlier_load_e)?),
    };
    let losses =
        ops::losses(&routed.scores_te, rule(config), &losses(config, shares_ge.as_ref(), &routed, 1.0))?;
    Ok(Routing { routed, plan, losses: PendingLosses(losses), config: *config, shares_ge })
}

/// Where one micro-batch's tokens go, with what weight, and what the router pays for it.
#[derive(Clone, Debug)]
pub struct Routing {
    /// Scores, chosen experts and their weights.
    pub routed: Routed,
    /// The way to the experts and back, and the weights in the order of its rows.
    pub plan: RoutingPlan,
    /// What the router pays for it.
    pub losses: PendingLosses,
    config: RouterConfig,
    /// The share of the load that each expert has in each group of tokens; none without a balance loss.
    shares_ge: Option<Tensor>,
}

/// The losses on the device that computes them, f32 `[2]`.
#[derive(Clone, Debug)]
pub struct PendingLosses(Tensor);

impl PendingLosses {
    /// The losses. Waits for a GPU until it has computed them: read those of all layers together, or a step late.
    ///
    /// # Errors
    /// A copy that fails.
    pub fn read(&self) -> Result<RouterLosses> {
        let losses = self.0.to_device(Device::Cpu)?;
        let &[balance, z] = losses.data::<f32>()? else { unreachable!("the router has two losses") };
        Ok(RouterLosses { balance, z })
    }
}

/// What the router pays, each loss times its coefficient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterLosses {
    /// The load-balancing loss.
    pub balance: f32,
    /// The z-loss.
    pub z: f32,
}

impl Routing {
    /// Takes `load_e` (i32 `[e]`), the assignments per expert of the whole global batch with this micro-batch in it, as
    /// the load that the global-batch loss and its gradient see, in place of what [`route`] put together. The load has no
    /// part in the forward pass, so data-parallel ranks can sum it while the experts run, up to [`route_backward`].
    /// Without effect for the other kinds of balance loss.
    ///
    /// # Errors
    /// A load of another length than the number of experts.
    pub fn set_global_load(&mut self, load_e: &Tensor) -> Result<()> {
        let load_1e = load_e.reshape(&[1, self.config.num_experts])?;
        if self.config.balance_loss == BalanceLoss::GlobalBatch {
            self.shares_ge = Some(routing_load::shares(&load_1e, None)?);
            let losses = losses(&self.config, self.shares_ge.as_ref(), &self.routed, 1.0);
            self.losses = PendingLosses(ops::losses(&self.routed.scores_te, rule(&self.config), &losses)?);
        }
        Ok(())
    }
}

/// dlogits_te from the gradient of the weights, plus `loss_scale` times the gradients of the balance and z losses.
///
/// The logits are those given to [`route`]; `dweights_r` is in the order of the plan's rows. `loss_scale` is what the
/// caller multiplies its own loss by, for instance 1 / number of micro-batches. The selection itself has no gradient.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn route_backward(
    routing: &Routing,
    logits_te: &Tensor,
    dweights_r: &Tensor,
    loss_scale: f32,
) -> Result<Tensor> {
    let Routing { routed, plan, config, shares_ge, .. } = routing;
    expect("route_backward", "dweights", dweights_r, &[plan.num_rows()])?;
    let losses = losses(config, shares_ge.as_ref(), routed, loss_scale);
    Ok(ops::backward(dweights_r, &plan.token_to_rows_tk, logits_te, routed, rule(config), &losses)?)
}

fn rule(config: &RouterConfig) -> Rule {
    Rule {
        sigmoid: config.scoring == Scoring::Sigmoid,
        renormalise: config.renormalise,
        scale: config.routed_scaling_factor,
        top_k: config.top_k,
    }
}

fn losses<'a>(
    config: &RouterConfig,
    shares_ge: Option<&'a Tensor>,
    routed: &'a Routed,
    scale: f32,
) -> Losses<'a> {
    Losses {
        shares_ge,
        balance_coefficient: scale * config.balance_loss_coefficient,
        lse_t: routed.lse_t.as_ref(),
        z_coefficient: scale * config.z_loss_coefficient,
    }
}

fn check_sequences(num_tokens: usize, num_sequences: usize) -> Result<()> {
    if num_sequences > 0 && num_tokens.is_multiple_of(num_sequences) {
        return Ok(());
    }
    Err(Error::Value {
        what: "num_sequences",
        got: num_sequences.to_string(),
        expected: format!(
            "a divisor of the {num_tokens} tokens: the balance loss per sequence needs equal lengths"
        ),
    })
}

/// `tensor` must be f32 of exactly `shape`.
fn expect(op: &'static str, what: &'static str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.dtype() != DType::F32 {
        return Err(KernelError::DType { op, what, got: tensor.dtype(), expected: DType::F32.name() }.into());
    }
    if tensor.shape() != shape {
        let (got, expected) = (tensor.shape().to_vec(), format!("{shape:?}"));
        return Err(KernelError::Shape { op, what, got, expected }.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
