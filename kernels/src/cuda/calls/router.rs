//! `router.cu`.

use super::super::{Argument, Call, geometry};
use crate::error::{Error, Result};
use crate::ops::router::Rule;

/// The buffers of the forward. `bias`, `lse` and `entropy` may be null.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// f32 `[t, e]`
    pub logits: Argument,
    /// f32 `[e]`
    pub bias: Argument,
    /// f32 `[t, e]`
    pub scores: Argument,
    /// i32 `[t, k]`
    pub indices: Argument,
    /// f32 `[t, k]`
    pub weights: Argument,
    /// f32 `[t]`
    pub lse: Argument,
    /// f32 `[t]`
    pub entropy: Argument,
}

/// The buffers of the backward. `shares` is null without a balance loss, `lse` without a z-loss.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// f32 `[r]`
    pub dweights: Argument,
    /// i32 `[t, k]`
    pub token_to_rows: Argument,
    /// f32 `[t, e]`
    pub scores: Argument,
    /// i32 `[t, k]`
    pub indices: Argument,
    /// f32 `[groups, e]`
    pub shares: Argument,
    /// f32 `[t, e]`
    pub logits: Argument,
    /// f32 `[t]`
    pub lse: Argument,
    /// f32 `[t, e]`
    pub dlogits: Argument,
}

/// Scores, choices and weights of `t` tokens over `e` experts.
///
/// # Errors
/// [`Error::Shape`] for more experts or choices than the kernels hold.
pub fn forward(buffers: &Forward, [t, e]: [usize; 2], rule: Rule) -> Result<Call> {
    let Forward { logits, bias, scores, indices, weights, lse, entropy } = *buffers;
    let mut arguments = vec![logits, bias, scores, indices, weights, lse, entropy];
    arguments.extend([Argument::long(t), Argument::int(e)?, Argument::int(rule.top_k)?]);
    arguments.extend([flags(rule), Argument::F32(rule.scale)]);
    by_experts("forward", [t, e], rule, arguments)
}

/// dlogits. `balance_coefficient` and `z_coefficient` are the losses' own factors times what the caller scales them by.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    buffers: &Backward,
    [t, e]: [usize; 2],
    groups: usize,
    rule: Rule,
    [balance_coefficient, z_coefficient]: [f32; 2],
) -> Result<Call> {
    let Backward { dweights, token_to_rows, scores, indices, shares, logits, lse, dlogits } = *buffers;
    let mut arguments = vec![dweights, token_to_rows, scores, indices, shares, logits, lse, dlogits];
    arguments.extend([Argument::long(t), Argument::int(e)?, Argument::int(rule.top_k)?]);
    arguments.extend([Argument::int(groups)?, flags(rule), Argument::F32(rule.scale)]);
    let balance_scale = balance_coefficient * e as f32 / t as f32;
    arguments.extend([Argument::F32(balance_scale), Argument::F32(z_coefficient * 2.0 / t as f32)]);
    by_experts("backward", [t, e], rule, arguments)
}

/// terms (f32 `[t]`): each token's part of the balance loss, before its factor.
///
/// # Errors
/// More experts or groups than an `int`.
pub fn balance_terms(
    [scores, shares, terms]: [Argument; 3],
    [t, e]: [usize; 2],
    groups: usize,
    rule: Rule,
) -> Result<Call> {
    let mut arguments = vec![scores, shares, terms, Argument::long(t)];
    arguments.extend([Argument::int(e)?, Argument::int(groups)?, flags(rule)]);
    Ok(call("router_balance_terms".to_owned(), geometry::router(t), arguments))
}

/// losses (f32 `[2]`) from terms and lse, which may be null.
pub fn losses(
    [terms, lse, losses]: [Argument; 3],
    [t, e]: [usize; 2],
    [balance_coefficient, z_coefficient]: [f32; 2],
) -> Call {
    // The sums over no tokens are 0, and so must their means be.
    let num_tokens = t.max(1) as f32;
    let balance_scale = balance_coefficient * e as f32 / num_tokens;
    let mut arguments = vec![terms, lse, losses, Argument::long(t)];
    arguments.extend([Argument::F32(balance_scale), Argument::F32(z_coefficient / num_tokens)]);
    call("router_losses".to_owned(), geometry::router_losses(), arguments)
}

fn by_experts(pass: &str, [t, e]: [usize; 2], rule: Rule, arguments: Vec<Argument>) -> Result<Call> {
    let most = geometry::router_kernel(e, rule.top_k).ok_or_else(|| Error::Shape {
        op: "router",
        what: "logits",
        got: vec![t, e],
        expected: format!(
            "at most 1024 experts of which a token takes at most 32, not {}; more only run on the cpu",
            rule.top_k
        ),
    })?;
    Ok(call(format!("router_{pass}_{most}"), geometry::router(t), arguments))
}

/// As `Flags` of the source.
fn flags(rule: Rule) -> Argument {
    Argument::I32(i32::from(rule.sigmoid) | i32::from(rule.renormalise) << 1)
}

fn call(kernel: String, launch: geometry::Launch, arguments: Vec<Argument>) -> Call {
    Call { source: "router.cu", kernel, launch, arguments }
}
