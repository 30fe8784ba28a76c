//! Grouped matrix multiplication on the CPU.

use rayon::prelude::*;

use crate::cpu::matmul::{axpy, dot, store};
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn forward(x_ri: &Tensor, w_eoi: &Tensor, offsets_e: &Tensor, y_ro: &mut Tensor) -> Result<()> {
    let (x, w, offsets) = (x_ri.to_f32_vec()?, w_eoi.to_f32_vec()?, offsets_e.data::<i32>()?);
    let (o, i) = (w_eoi.shape()[1], w_eoi.last_dim());
    store(y_ro, o, false, |r, out| match expert_of(offsets, r) {
        None => out.fill(0.0),
        Some(e) => {
            for (col, y) in out.iter_mut().enumerate() {
                *y = dot(&x[r * i..][..i], &w[(e * o + col) * i..][..i]);
            }
        }
    })
}

pub(crate) fn backward_input(dy_ro: &Tensor, w_eoi: &Tensor, offsets_e: &Tensor, dx_ri: &mut Tensor) -> Result<()> {
    let (dy, w, offsets) = (dy_ro.to_f32_vec()?, w_eoi.to_f32_vec()?, offsets_e.data::<i32>()?);
    let (o, i) = (w_eoi.shape()[1], w_eoi.last_dim());
    store(dx_ri, i, false, |r, out| {
        out.fill(0.0);
        if let Some(e) = expert_of(offsets, r) {
            for (col, &scale) in dy[r * o..][..o].iter().enumerate() {
                axpy(scale, &w[(e * o + col) * i..][..i], out);
            }
        }
    })
}

pub(crate) fn backward_weight(
    dy_ro: &Tensor,
    x_ri: &Tensor,
    offsets_e: &Tensor,
    dw_eoi: &mut Tensor,
) -> Result<()> {
    let (dy, x, offsets) = (dy_ro.to_f32_vec()?, x_ri.to_f32_vec()?, offsets_e.data::<i32>()?);
    let (o, i) = (dy_ro.last_dim(), x_ri.last_dim());
    dw_eoi.data_mut::<f32>()?.par_chunks_mut(i).enumerate().for_each(|(row, dw)| {
        let (e, col) = (row / o, row % o);
        for r in offsets[e] as usize..offsets[e + 1] as usize {
            axpy(dy[r * o + col], &x[r * i..][..i], dw);
        }
    });
    Ok(())
}

/// The expert that owns row `r`, or none for padding.
fn expert_of(offsets: &[i32], r: usize) -> Option<usize> {
    let e = offsets.partition_point(|&offset| offset as usize <= r);
    (e < offsets.len()).then(|| e - 1)
}
