//! Attention: o = softmax(scale·q·kᵀ + mask)·v by head, with online softmax; no t x s matrix is ever held.
//!
//! Shapes: q_bthd, k_bsgd, v_bsgd, o_bthd, lse_bht (f32); t queries, s keys, h query heads, g key/value heads with h a
//! multiple of g: query head i reads key/value head i / (h / g). Row t of q stands at absolute position
//! `query_start + t`, row s of k at position s, so decoding with a cache of keys has t = 1 and s = query_start + 1.
//! lse = ln Σ_j exp(scale·q·k_j) over the visible keys; the backward pass rebuilds the probabilities from it:
//! p = exp(scale·q·kᵀ - lse), dv = pᵀ·do, dp = do·vᵀ, ds = p∘(dp - Σ_d do∘o), dq = scale·ds·k, dk = scale·dsᵀ·q.
//! Nothing accumulates into its outputs.
//! On a GPU: bf16 alone, and heads of 32, 64, 96 or 128; anything else is refused, never computed in another precision.
//! Napkin: 4·t·s·d FLOPs a head forward and 10·t·s·d backward, half of that with a causal mask and s = t.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::check;
use crate::profile::{self, Work, bytes_of};
use crate::tensor::Tensor;
use crate::{cpu, cuda};

/// Which keys a query sees. The default is everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mask {
    /// A query sees no key behind its own position.
    pub causal: bool,
    /// With `Some(w)`, query i and key j see each other only when |i - j| < w, but for global tokens.
    pub window: Option<usize>,
    /// The first positions that see, and are seen by, every position in spite of the window.
    pub num_global_tokens: usize,
}

impl Mask {
    /// Whether the query at absolute position `query` sees the key at position `key`.
    pub fn sees(&self, query: usize, key: usize) -> bool {
        let in_time = !self.causal || key <= query;
        let near = self.window.is_none_or(|window| query.abs_diff(key) < window);
        in_time && (near || key < self.num_global_tokens || query < self.num_global_tokens)
    }

    /// How many of the keys `0..num_keys` the query at absolute position `query` sees.
    pub(crate) fn num_visible(&self, query: usize, num_keys: usize) -> usize {
        let horizon = if self.causal { num_keys.min(query + 1) } else { num_keys };
        match self.window {
            Some(window) if query >= self.num_global_tokens => {
                let end = horizon.min(query.saturating_add(window));
                let start = (query + 1).saturating_sub(window).min(end);
                let global = self.num_global_tokens.min(horizon);
                global + end.saturating_sub(start.max(global))
            }
            _ => horizon,
        }
    }

    /// Refuses a window that hides every key.
    ///
    /// # Errors
    /// [`Error::Value`] for a window of 0.
    pub fn validate(&self) -> Result<()> {
        if self.window != Some(0) {
            return Ok(());
        }
        Err(Error::Value {
            op: "attention",
            what: "window",
            got: "0".into(),
            expected: "at least 1, or no window".into(),
        })
    }
}

/// The output o_bthd in the dtype of q, and lse_bht in f32. A query that sees no key gives zeros and lse = -inf.
///
/// # Errors
/// Shapes, dtypes or settings that do not fit; a causal query whose own key is missing; out of memory.
pub fn forward(
    q_bthd: &Tensor,
    k_bsgd: &Tensor,
    v_bsgd: &Tensor,
    mask: &Mask,
    scale: f32,
    query_start: usize,
) -> Result<(Tensor, Tensor)> {
    let problem = Problem::new("attention", [q_bthd, k_bsgd, v_bsgd], mask, scale, query_start)?;
    let bytes = || bytes_of(&[q_bthd, q_bthd, k_bsgd, v_bsgd]);
    let _span = profile::span("attention", q_bthd.dtype(), || problem.work(4, bytes()));
    let mut o_bthd = Tensor::scratch(q_bthd.shape(), q_bthd.dtype(), q_bthd.device())?;
    let mut lse_bht = Tensor::scratch(&problem.lse_shape(), DType::F32, q_bthd.device())?;
    match q_bthd.device() {
        Device::Cpu => cpu::attention::forward(&problem, q_bthd, k_bsgd, v_bsgd, &mut o_bthd, &mut lse_bht)?,
        Device::Cuda(_) => {
            cuda::ops::attention::forward(&problem, q_bthd, k_bsgd, v_bsgd, &mut o_bthd, &mut lse_bht)?;
        }
    }
    Ok((o_bthd, lse_bht))
}

/// (dq_bthd, dk_bsgd, dv_bsgd) from the gradient do of the output and what `forward` was given and returned.
///
/// # Errors
/// As [`forward`].
#[allow(clippy::too_many_arguments)] // what forward took and gave, one by one
pub fn backward(
    do_bthd: &Tensor,
    q_bthd: &Tensor,
    k_bsgd: &Tensor,
    v_bsgd: &Tensor,
    o_bthd: &Tensor,
    lse_bht: &Tensor,
    mask: &Mask,
    scale: f32,
    query_start: usize,
) -> Result<(Tensor, Tensor, Tensor)> {
    const OP: &str = "attention_backward";
    let problem = Problem::new(OP, [q_bthd, k_bsgd, v_bsgd], mask, scale, query_start)?;
    let bytes = || bytes_of(&[q_bthd, do_bthd, o_bthd, q_bthd, k_bsgd, v_bsgd, k_bsgd, v_bsgd]);
    let _span = profile::span(OP, q_bthd.dtype(), || problem.work(10, bytes()));
    for (what, tensor) in [("do", do_bthd), ("o", o_bthd)] {
        check::shape(OP, what, tensor, q_bthd.shape())?;
        check::dtype(OP, what, tensor, q_bthd.dtype())?;
    }
    check::shape(OP, "lse", lse_bht, &problem.lse_shape())?;
    check::dtype(OP, "lse", lse_bht, DType::F32)?;
    let mut dq_bthd = Tensor::scratch(q_bthd.shape(), q_bthd.dtype(), q_bthd.device())?;
    let mut dk_bsgd = Tensor::scratch(k_bsgd.shape(), k_bsgd.dtype(), k_bsgd.device())?;
    let mut dv_bsgd = Tensor::scratch(v_bsgd.shape(), v_bsgd.dtype(), v_bsgd.device())?;
    match q_bthd.device() {
        Device::Cpu => cpu::attention::backward(
            &problem,
            [do_bthd, q_bthd, k_bsgd, v_bsgd, o_bthd, lse_bht],
            [&mut dq_bthd, &mut dk_bsgd, &mut dv_bsgd],
        )?,
        Device::Cuda(_) => cuda::ops::attention::backward(
            &problem,
            [do_bthd, q_bthd, k_bsgd, v_bsgd, o_bthd, lse_bht],
            [&mut dq_bthd, &mut dk_bsgd, &mut dv_bsgd],
        )?,
    }
    Ok((dq_bthd, dk_bsgd, dv_bsgd))
}

/// The checked sizes and settings of one call.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    /// b
    pub batch: usize,
    /// t
    pub num_queries: usize,
    /// s
    pub num_keys: usize,
    /// h, a multiple of `num_kv_heads`
    pub num_heads: usize,
    /// g, at least 1
    pub num_kv_heads: usize,
    /// d, at least 1
    pub head_dim: usize,
    /// Which keys a query sees.
    pub mask: Mask,
    /// Of the scores, finite.
    pub scale: f32,
    /// Position of the first query among the keys.
    pub query_start: usize,
}

impl Problem {
    fn new(
        op: &'static str,
        [q_bthd, k_bsgd, v_bsgd]: [&Tensor; 3],
        mask: &Mask,
        scale: f32,
        query_start: usize,
    ) -> Result<Self> {
        check::float(op, "q", q_bthd)?;
        check::dtype(op, "k", k_bsgd, q_bthd.dtype())?;
        check::dtype(op, "v", v_bsgd, q_bthd.dtype())?;
        check::rank(op, "q", q_bthd, 4)?;
        check::rank(op, "k", k_bsgd, 4)?;
        let dim = |tensor: &Tensor, dim: usize| tensor.shape()[dim];
        let problem = Problem {
            batch: dim(q_bthd, 0),
            num_queries: dim(q_bthd, 1),
            num_keys: dim(k_bsgd, 1),
            num_heads: dim(q_bthd, 2),
            num_kv_heads: dim(k_bsgd, 2),
            head_dim: dim(q_bthd, 3),
            mask: *mask,
            scale,
            query_start,
        };
        let Problem { batch: b, num_keys: s, num_heads: h, num_kv_heads: g, head_dim: d, .. } = problem;
        check::shape(op, "k", k_bsgd, &[b, s, g, d])?;
        check::shape(op, "v", v_bsgd, &[b, s, g, d])?;
        if d == 0 || g == 0 || h % g != 0 {
            return Err(Error::Shape {
                op,
                what: "q",
                got: q_bthd.shape().to_vec(),
                expected: format!("head size of 1 or more, number of heads a multiple of k's, {g}"),
            });
        }
        mask.validate()?;
        problem.check_settings(op)?;
        Ok(problem)
    }

    fn check_settings(&self, op: &'static str) -> Result<()> {
        let error = |what, got: String, expected: String| Err(Error::Value { op, what, got, expected });
        if !self.scale.is_finite() {
            return error("scale", self.scale.to_string(), "a finite number".into());
        }
        let end = self.query_start.checked_add(self.num_queries);
        if end.is_none_or(|end| self.mask.causal && end > self.num_keys) {
            let expected = format!("a start whose {} queries end within the keys", self.num_queries);
            return error("query_start", format!("{} of {} keys", self.query_start, self.num_keys), expected);
        }
        Ok(())
    }

    /// What a pass of `flops_each` FLOPs for each element of head size and visible pair of query and key does.
    fn work(&self, flops_each: usize, bytes: usize) -> Work {
        let Problem { batch: b, num_queries: t, num_keys: s, num_heads: h, head_dim: d, .. } = *self;
        let queries = self.query_start..self.query_start + t;
        let visible: usize = queries.map(|query| self.mask.num_visible(query, s)).sum();
        Work::products(&[b, t, s, h, self.num_kv_heads, d], flops_each * b * h * visible * d, bytes)
    }

    fn lse_shape(&self) -> [usize; 3] {
        [self.batch, self.num_heads, self.num_queries]
    }
}

#[cfg(test)]
mod tests;
