//! From router logits to expert weights, a routing plan and the router's losses, and back to the logits' gradient.
//!
//! s = softmax(x) or sigmoid(x); the top-k experts by s + bias; weights w_k = scale·s_k, or scale·s_k / Σ_j s_j when
//! renormalised. With `top_k` 1, renormalised weights are 1 and pass no gradient to the logits (with sigmoid scores up
//! to an epsilon of 1e-7 in the sum). Weights are renormalised over all the chosen experts, dropped or not.
//! balance = c_b·E·Σ_e f_e·P_e; z = c_z·mean_t (ln Σ_e e^x)². All in f32.
//! Source of the z-loss: Zoph et al., ST-MoE, section 3.

use wattle_kernels::ops::routing as ops;
use wattle_kernels::{DType, Error as KernelError, Tensor};

use crate::balance;
use crate::config::{BalanceLoss, RouterConfig, Scoring};
use crate::error::{Error, Result};
use crate::plan::RoutingPlan;

/// Routes one micro-batch.
///
/// Shapes: logits_te and bias_e f32. The bias, where given, picks experts and never weights them. The tokens are
/// `num_sequences` runs of equal length; only the loss per sequence asks for that, others may pass 1.
///
/// `earlier_load_e` serves the loss over the global batch and is not read otherwise: the assignments per expert in
/// the earlier micro-batches of this optimizer step, of all ranks; none for the first. The micro-batch's own counts
/// are added here, so with several micro-batches on one rank the running sum of a
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
    earlier_load_e: Option<&[f32]>,
) -> Result<Routing> {
    let problems = config.validate();
    if !problems.is_empty() {
        return Err(Error::Config(problems));
    }
    let (num_tokens, num_experts) = (logits_te.num_rows(), config.num_experts);
    expect("route", "logits", logits_te, &[num_tokens, num_experts])?;

    let scores_te = match config.scoring {
        Scoring::Softmax => ops::softmax(logits_te)?,
        Scoring::Sigmoid => ops::sigmoid(logits_te)?,
    };
    let indices_tk = ops::top_k(&scores_te, bias_e, config.top_k)?;
    let weights_tk = weigh(ops::select(&scores_te, &indices_tk)?, config)?;
    let plan = RoutingPlan::new(&indices_tk, num_experts, config.capacity(num_tokens))?;
    let lse_t = if config.z_loss_coefficient > 0.0 { Some(ops::logsumexp(logits_te)?) } else { None };
    let z_loss = match &lse_t {
        Some(lse_t) => config.z_loss_coefficient * mean_square(lse_t.data()?),
        None => 0.0,
    };

    let load_shares_ge = match config.balance_loss {
        BalanceLoss::None => Vec::new(),
        BalanceLoss::MicroBatch => balance::load_shares(indices_tk.data()?, num_experts, 1),
        BalanceLoss::Sequence => {
            check_sequences(num_tokens, num_sequences)?;
            balance::load_shares(indices_tk.data()?, num_experts, num_sequences)
        }
        BalanceLoss::GlobalBatch => {
            let own = plan.tokens_per_expert.iter().map(|&tokens| tokens as f32);
            let mut load_e: Vec<f32> = own.collect();
            if let Some(earlier_load_e) = earlier_load_e {
                balance::expect_len("earlier_load_e", earlier_load_e, num_experts)?;
                load_e.iter_mut().zip(earlier_load_e).for_each(|(load, earlier)| *load += earlier);
            }
            balance::to_shares(&mut load_e);
            load_e
        }
    };
    let config = *config;
    let mut routing = Routing {
        scores_te,
        indices_tk,
        weights_tk,
        plan,
        balance_loss: 0.0,
        z_loss,
        config,
        lse_t,
        load_shares_ge,
    };
    routing.measure_balance()?;
    Ok(routing)
}

/// Where one micro-batch's tokens go, with what weight, and what the router pays for it.
#[derive(Clone, Debug)]
pub struct Routing {
    /// f32 `[t, e]`: softmax or sigmoid of the logits.
    pub scores_te: Tensor,
    /// i32 `[t, k]`: the chosen experts, best first.
    pub indices_tk: Tensor,
    /// f32 `[t, k]`: what each expert's output is multiplied by.
    pub weights_tk: Tensor,
    /// The way to the experts and back.
    pub plan: RoutingPlan,
    /// The load-balancing loss times its coefficient.
    pub balance_loss: f32,
    /// The z-loss times its coefficient.
    pub z_loss: f32,
    config: RouterConfig,
    /// Logsumexp of each token's logits; none without a z-loss.
    lse_t: Option<Tensor>,
    /// The share of the load that each expert has in each group of tokens; empty without a balance loss.
    load_shares_ge: Vec<f32>,
}

impl Routing {
    /// Takes `load_e`, the assignments per expert of the whole global batch with this micro-batch in it, as the load
    /// that the global-batch loss and its gradient see, in place of what [`route`] put together. The load has no part
    /// in the forward pass, so data-parallel ranks can sum it while the experts run, up to [`route_backward`]. Without
    /// effect for the other kinds of balance loss.
    ///
    /// # Errors
    /// A load of another length than the number of experts.
    pub fn set_global_load(&mut self, load_e: &[f32]) -> Result<()> {
        balance::expect_len("load_e", load_e, self.config.num_experts)?;
        if self.config.balance_loss == BalanceLoss::GlobalBatch {
            self.load_shares_ge = load_e.to_vec();
            balance::to_shares(&mut self.load_shares_ge);
            self.measure_balance()?;
        }
        Ok(())
    }

    fn measure_balance(&mut self) -> Result<()> {
        if !self.load_shares_ge.is_empty() {
            let RouterConfig { num_experts, scoring, balance_loss_coefficient, .. } = self.config;
            let loss = balance::loss(self.scores_te.data()?, &self.load_shares_ge, num_experts, scoring);
            self.balance_loss = balance_loss_coefficient * loss;
        }
        Ok(())
    }
}

/// dlogits_te from the gradient of the weights, plus `loss_scale` times the gradients of the balance and z losses.
///
/// The logits are those given to [`route`]. `loss_scale` is what the caller multiplies its own loss by, for instance
/// 1 / number of micro-batches. The selection itself has no gradient.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn route_backward(
    routing: &Routing,
    logits_te: &Tensor,
    dweights_tk: &Tensor,
    loss_scale: f32,
) -> Result<Tensor> {
    const OP: &str = "route_backward";
    let Routing { scores_te, indices_tk, config, .. } = routing;
    expect(OP, "logits", logits_te, scores_te.shape())?;
    expect(OP, "dweights", dweights_tk, indices_tk.shape())?;

    let dchosen_tk = weigh_backward(dweights_tk, &ops::select(scores_te, indices_tk)?, config)?;
    let mut dscores_te = ops::select_backward(&dchosen_tk, indices_tk, config.num_experts)?;
    if !routing.load_shares_ge.is_empty() {
        balance::add_gradient(
            dscores_te.data_mut()?,
            scores_te.data()?,
            &routing.load_shares_ge,
            config.num_experts,
            config.scoring,
            loss_scale * config.balance_loss_coefficient,
        );
    }
    let mut dlogits_te = match config.scoring {
        Scoring::Softmax => ops::softmax_backward(&dscores_te, scores_te)?,
        Scoring::Sigmoid => ops::sigmoid_backward(&dscores_te, scores_te)?,
    };
    if let Some(lse_t) = &routing.lse_t {
        let scale = loss_scale * config.z_loss_coefficient * 2.0 / logits_te.num_rows() as f32;
        let dlse: Vec<f32> = lse_t.data::<f32>()?.iter().map(|lse| scale * lse).collect();
        let dlse_t = Tensor::from_slice(&dlse, lse_t.shape())?;
        ops::logsumexp_backward(&dlse_t, logits_te, lse_t, &mut dlogits_te)?;
    }
    Ok(dlogits_te)
}

/// The weights of the chosen experts from their scores.
fn weigh(mut chosen_tk: Tensor, config: &RouterConfig) -> Result<Tensor> {
    for scores in chosen_tk.data_mut::<f32>()?.chunks_exact_mut(config.top_k) {
        let divisor = divisor(scores, config);
        scores.iter_mut().for_each(|score| *score = *score / divisor * config.routed_scaling_factor);
    }
    Ok(chosen_tk)
}

/// The backward of [`weigh`]: ds_k = scale / D·(dw_k − Σ_j dw_j·s_j / D) when renormalised by D = Σ s.
fn weigh_backward(dweights_tk: &Tensor, chosen_tk: &Tensor, config: &RouterConfig) -> Result<Tensor> {
    let mut dchosen_tk = dweights_tk.clone();
    let rows = dchosen_tk.data_mut::<f32>()?.chunks_exact_mut(config.top_k);
    for (dchosen, scores) in rows.zip(chosen_tk.data::<f32>()?.chunks_exact(config.top_k)) {
        let divisor = divisor(scores, config);
        let mean = if config.renormalise {
            dchosen.iter().zip(scores).map(|(dw, s)| dw * s).sum::<f32>() / divisor
        } else {
            0.0
        };
        dchosen.iter_mut().for_each(|dw| *dw = config.routed_scaling_factor / divisor * (*dw - mean));
    }
    Ok(dchosen_tk)
}

/// What a token's chosen scores are divided by. The best k of e softmax scores sum to at least k / e; sigmoid scores
/// can all be 0.
fn divisor(chosen: &[f32], config: &RouterConfig) -> f32 {
    match (config.renormalise, config.scoring) {
        (false, _) => 1.0,
        (true, Scoring::Softmax) => chosen.iter().sum(),
        (true, Scoring::Sigmoid) => chosen.iter().sum::<f32>() + balance::EPSILON,
    }
}

fn mean_square(values: &[f32]) -> f32 {
    if values.is_empty() {
        return 0.0;
    }
    let sum: f64 = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    (sum / values.len() as f64) as f32
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
