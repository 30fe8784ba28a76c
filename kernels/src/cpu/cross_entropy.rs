//! Fused linear layer and cross-entropy on the CPU.
//!
//! The rows that have a target are gathered in chunks, so that ignored tokens cost nothing. A chunk's logits become
//! its dlogits in place, between the matrix products of `ops::matmul`.

use crate::cpu::float::Float;
use crate::cpu::simd::vectorised;
use crate::cpu::{parallel, softmax};
use crate::device::Device;
use crate::dtype::{DType, bf16};
use crate::error::Result;
use crate::ops::matmul;
use crate::tensor::Tensor;

/// The most logits a chunk has, 8 MiB, unless a chunk of [`MIN_CHUNK_ROWS`] has more.
const CHUNK_LOGITS: usize = 2 << 20;
/// With fewer rows than this, reading and writing dw would take longer than its product.
const MIN_CHUNK_ROWS: usize = 128;
/// Lanes of maxima and sums: two registers of the widest kind.
const LANES: usize = 32;

/// A token that is not ignored.
#[derive(Clone, Copy)]
struct Token {
    row: usize,
    target: usize,
}

pub(crate) fn forward(x_td: &Tensor, w_vd: &Tensor, targets_t: &Tensor, losses_t: &mut Tensor) -> Result<()> {
    let losses_t = losses_t.data_mut::<f32>()?;
    losses_t.fill(0.0);
    for tokens in tokens(targets_t)?.chunks(chunk_rows(w_vd)) {
        let mut logits_tv = matmul::forward(&gather(x_td, tokens)?, w_vd, DType::F32)?;
        take_losses(&mut logits_tv, tokens, None, losses_t)?;
    }
    Ok(())
}

pub(crate) fn forward_backward(
    x_td: &Tensor,
    w_vd: &Tensor,
    targets_t: &Tensor,
    grad_scale: f32,
    losses_t: &mut Tensor,
    dx_td: &mut Tensor,
    dw_vd: &mut Tensor,
) -> Result<()> {
    let losses_t = losses_t.data_mut::<f32>()?;
    losses_t.fill(0.0);
    dx_td.fill_zero()?;
    for tokens in tokens(targets_t)?.chunks(chunk_rows(w_vd)) {
        let x_chunk = gather(x_td, tokens)?;
        let mut logits_tv = matmul::forward(&x_chunk, w_vd, DType::F32)?;
        take_losses(&mut logits_tv, tokens, Some(grad_scale), losses_t)?;
        let dlogits_tv = match x_td.dtype() {
            DType::Bf16 => narrow(&logits_tv)?,
            _ => logits_tv,
        };
        matmul::backward_weight(&dlogits_tv, &x_chunk, dw_vd)?;
        scatter(&matmul::backward_input(&dlogits_tv, w_vd, None)?, tokens, dx_td)?;
    }
    Ok(())
}

/// The tokens that have a target. Targets were checked to lie in the vocabulary.
fn tokens(targets_t: &Tensor) -> Result<Vec<Token>> {
    let targets = targets_t.data::<i32>()?.iter().enumerate();
    Ok(targets
        .filter_map(|(row, &target)| Some(Token { row, target: usize::try_from(target).ok()? }))
        .collect())
}

/// Rows of a chunk: from the shape alone, so that sums over chunks do not depend on the machine.
fn chunk_rows(w_vd: &Tensor) -> usize {
    (CHUNK_LOGITS / w_vd.shape()[0].max(1)).max(MIN_CHUNK_ROWS)
}

/// Puts the loss of every row of the chunk in its token's place. The logits become dlogits, or are used up where no
/// gradient is asked for.
fn take_losses(
    logits_tv: &mut Tensor,
    tokens: &[Token],
    grad_scale: Option<f32>,
    losses_t: &mut [f32],
) -> Result<()> {
    let vocab = logits_tv.last_dim();
    let block = parallel::rows_per_block(vocab * size_of::<f32>());
    let blocks = logits_tv.data_mut::<f32>()?.chunks_mut(block * vocab).zip(tokens.chunks(block));
    let losses = parallel::map(blocks, |(logits, tokens)| {
        let mut losses = vec![0.0; tokens.len()];
        vectorised(
            #[inline(always)]
            || {
                let rows = logits.chunks_exact_mut(vocab).zip(tokens);
                for (loss, (logits, token)) in losses.iter_mut().zip(rows) {
                    *loss = row(logits, token.target, grad_scale);
                }
            },
        );
        losses
    });
    for (token, loss) in tokens.iter().zip(losses.into_iter().flatten()) {
        losses_t[token.row] = loss;
    }
    Ok(())
}

/// The loss of one row; with a scale its logits become dlogits.
#[inline(always)]
fn row(logits_v: &mut [f32], target: usize, grad_scale: Option<f32>) -> f32 {
    let target_logit = logits_v[target];
    let (max, sum) = weigh(logits_v);
    if let Some(grad_scale) = grad_scale {
        let factor = grad_scale / sum;
        logits_v.iter_mut().for_each(|weight| *weight *= factor);
        logits_v[target] -= grad_scale;
    }
    sum.ln() + (max - target_logit)
}

/// Replaces logits by exp(logit - max); gives max and the sum of the weights.
#[inline(always)]
fn weigh(logits_v: &mut [f32]) -> (f32, f32) {
    let max = softmax::max::<LANES>(logits_v, f32::NEG_INFINITY);
    let mut sum = [0.0; LANES];
    softmax::exponentiate(logits_v, max, &mut sum);
    (max, softmax::total(sum))
}

fn narrow(x: &Tensor) -> Result<Tensor> {
    let mut narrow = Tensor::scratch(x.shape(), DType::Bf16, Device::Cpu)?;
    let block = parallel::rows_per_block(size_of::<f32>() + size_of::<bf16>());
    let blocks = narrow.data_mut::<bf16>()?.chunks_mut(block).zip(x.data::<f32>()?.chunks(block));
    parallel::for_each(blocks, |(to, from)| {
        vectorised(
            #[inline(always)]
            || to.iter_mut().zip(from).for_each(|(to, from)| *to = bf16::store(*from)),
        );
    });
    Ok(narrow)
}

/// The rows of `tokens`, one behind the other.
fn gather(x_td: &Tensor, tokens: &[Token]) -> Result<Tensor> {
    fn copy<F: Float>(x_td: &Tensor, tokens: &[Token], to: &mut Tensor) -> Result<()> {
        let (d, x) = (x_td.last_dim(), x_td.data::<F>()?);
        let to = to.data_mut::<F>()?;
        for (index, token) in tokens.iter().enumerate() {
            to[index * d..][..d].copy_from_slice(&x[token.row * d..][..d]);
        }
        Ok(())
    }
    let mut x_chunk = Tensor::scratch(&[tokens.len(), x_td.last_dim()], x_td.dtype(), x_td.device())?;
    match x_td.dtype() {
        DType::Bf16 => copy::<bf16>(x_td, tokens, &mut x_chunk)?,
        _ => copy::<f32>(x_td, tokens, &mut x_chunk)?,
    }
    Ok(x_chunk)
}

/// Puts the rows of a chunk into their tokens' places.
fn scatter(dx_chunk: &Tensor, tokens: &[Token], dx_td: &mut Tensor) -> Result<()> {
    fn copy<F: Float>(dx_chunk: &Tensor, tokens: &[Token], to: &mut Tensor) -> Result<()> {
        let (d, dx) = (dx_chunk.last_dim(), dx_chunk.data::<F>()?);
        let to = to.data_mut::<F>()?;
        for (index, token) in tokens.iter().enumerate() {
            to[token.row * d..][..d].copy_from_slice(&dx[index * d..][..d]);
        }
        Ok(())
    }
    match dx_chunk.dtype() {
        DType::Bf16 => copy::<bf16>(dx_chunk, tokens, dx_td),
        _ => copy::<f32>(dx_chunk, tokens, dx_td),
    }
}
