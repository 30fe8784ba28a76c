//! Fused linear layer and cross-entropy, in chunks of rows.
//!
//! A chunk's f32 logits come from a product, one kernel takes its losses and turns the logits into their gradient, and
//! two products take that to dx and dw. Ignored tokens are computed with the rest: which ones they are is known on the
//! device alone.

use std::ops::Range;

use super::Operation;
use crate::cuda::Floats;
use crate::cuda::calls::cross_entropy as calls;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::matmul;
use crate::tensor::Tensor;

/// The most bytes of f32 logits that a chunk has, unless a single row has more. Every chunk reads and writes the whole
/// of dw, 8·v·d bytes beside the 6·rows·v·d FLOPs of its three products, so fewer chunks are faster. At 50,304 words a
/// chunk is 1,280 rows, 960 FLOPs for each of those bytes, where an H100 does some 300 in the time of one (990 TFLOP/s
/// and 3.35 TB/s by its data sheet): the traffic can stay hidden. Smaller chunks come near that; larger ones take memory
/// from the activations.
const CHUNK_BYTES: usize = 256 << 20;
/// A small vocabulary would have chunks of any length; beyond this many rows dw's traffic is a twentieth of the products.
const MAX_CHUNK_ROWS: usize = 8192;
/// Rows of a tile of a product: a chunk is a multiple where it can be.
const TILE_ROWS: usize = 128;

pub(crate) fn forward(x_td: &Tensor, w_vd: &Tensor, targets_t: &Tensor, losses_t: &mut Tensor) -> Result<()> {
    let op = Operation::on("cross_entropy", x_td)?;
    let v = w_vd.num_rows();
    for rows in chunks(x_td.num_rows(), v) {
        let logits_tv = matmul::forward(&rows_of(&op, x_td, &rows)?, w_vd, DType::F32)?;
        let [targets, losses] = [op.read("targets", targets_t)?, op.write("losses", losses_t)?]
            .map(|each| each.byte_offset(rows.start * 4));
        let call =
            calls::losses(op.floats("logits", &logits_tv)?, targets, losses, None, [rows.len(), v], 1.0)?;
        // SAFETY: the op checked that there is a target for each row of x, losses has their shape, and the rows are
        // within; the logits were made for them.
        unsafe { op.launch(&call) }?;
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
    let op = Operation::on("cross_entropy_backward", x_td)?;
    let (t, v) = (x_td.num_rows(), w_vd.num_rows());
    for rows in chunks(t, v) {
        let x_chunk = rows_of(&op, x_td, &rows)?;
        let mut logits_tv = matmul::forward(&x_chunk, w_vd, DType::F32)?;
        let [targets, losses] = [op.read("targets", targets_t)?, op.write("losses", losses_t)?]
            .map(|each| each.byte_offset(rows.start * 4));
        let mut narrow_tv = match x_td.dtype() {
            DType::Bf16 => Some(Tensor::scratch(logits_tv.shape(), DType::Bf16, x_td.device())?),
            _ => None,
        };
        // The gradient takes the logits' place where it has their type.
        let dlogits_pointer = op.write("dlogits", narrow_tv.as_mut().unwrap_or(&mut logits_tv))?;
        let dlogits = Some(Floats { pointer: dlogits_pointer, dtype: x_td.dtype() });
        let shape = [rows.len(), v];
        let call =
            calls::losses(op.floats("logits", &logits_tv)?, targets, losses, dlogits, shape, grad_scale)?;
        // SAFETY: as in `forward`; dlogits has the shape of the logits.
        unsafe { op.launch(&call) }?;
        let dlogits_tv = narrow_tv.unwrap_or(logits_tv);
        matmul::backward_weight(&dlogits_tv, &x_chunk, dw_vd)?;
        let dx_chunk = matmul::backward_input(&dlogits_tv, w_vd, None)?;
        if rows.len() == t {
            *dx_td = dx_chunk.reshape(x_td.shape())?;
        } else {
            op.copy_rows(&dx_chunk, 0, dx_td, rows.start, rows.len())?;
        }
    }
    Ok(())
}

/// The rows of each chunk, by the shape alone, so that sums over chunks are the same bits on every device.
fn chunks(t: usize, v: usize) -> impl Iterator<Item = Range<usize>> {
    let fitting = CHUNK_BYTES / (size_of::<f32>() * v.max(1));
    let whole_tiles = fitting / TILE_ROWS * TILE_ROWS;
    let rows = if whole_tiles > 0 { whole_tiles.min(MAX_CHUNK_ROWS) } else { fitting.max(1) };
    (0..t).step_by(rows).map(move |start| start..t.min(start + rows))
}

/// Those rows of x: itself where they are all of them, else a copy, which is small beside their logits.
fn rows_of(op: &Operation, x_td: &Tensor, rows: &Range<usize>) -> Result<Tensor> {
    let d = x_td.last_dim();
    if rows.len() == x_td.num_rows() {
        return x_td.reshape(&[rows.len(), d]);
    }
    let mut chunk = Tensor::scratch(&[rows.len(), d], x_td.dtype(), x_td.device())?;
    op.copy_rows(x_td, rows.start, &mut chunk, 0, rows.len())?;
    Ok(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(t: usize, v: usize) -> Vec<usize> {
        let mut next = 0;
        let lengths = chunks(t, v).map(|rows| {
            assert_eq!(rows.start, next);
            next = rows.end;
            rows.len()
        });
        let lengths = lengths.collect();
        assert_eq!(next, t);
        lengths
    }

    #[test]
    fn chunks_follow_each_other_and_hold_256_mib_of_logits_at_most() {
        assert_eq!(lengths(16_384, 50_304), [vec![1280; 12], vec![1024]].concat());
        assert_eq!(lengths(4096, 4096), [4096]);
        assert_eq!(lengths(8200, 3), [8192, 8]);
        assert_eq!(lengths(3, 1 << 30), [1, 1, 1]);
        assert_eq!(lengths(200, 700_000), [95, 95, 10]);
        assert_eq!(lengths(0, 10), [0; 0]);
    }
}
