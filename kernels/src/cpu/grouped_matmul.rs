//! Grouped matrix multiplication on the CPU: one product for each expert, all computed at once.

use crate::cpu::gemm::{Matrix, MatrixMut, Product, Values, ValuesMut, gemm_parallel};
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn forward(x_ri: &Tensor, w_eoi: &Tensor, offsets_e: &Tensor, y_ro: &mut Tensor) -> Result<()> {
    rows_times_weights(x_ri, w_eoi, offsets_e, y_ro, |w_oi| w_oi.t())
}

pub(crate) fn backward_input(
    dy_ro: &Tensor,
    w_eoi: &Tensor,
    offsets_e: &Tensor,
    dx_ri: &mut Tensor,
) -> Result<()> {
    rows_times_weights(dy_ro, w_eoi, offsets_e, dx_ri, |w_oi| w_oi)
}

pub(crate) fn backward_weight(
    dy_ro: &Tensor,
    x_ri: &Tensor,
    offsets_e: &Tensor,
    dw_eoi: &mut Tensor,
) -> Result<()> {
    let (o, i) = (dy_ro.last_dim(), x_ri.last_dim());
    let (dy, x, offsets) = (Values::of(dy_ro)?, Values::of(x_ri)?, offsets_e.data::<i32>()?);
    let mut dw = ValuesMut::of(dw_eoi)?;
    let mut products = Vec::with_capacity(offsets.len());
    for pair in offsets.windows(2) {
        let (start, rows) = (pair[0] as usize, (pair[1] - pair[0]) as usize);
        let (dw_oi, rest) = dw.split_at(o * i);
        dw = rest;
        products.push(Product {
            a: Matrix::new(dy.part(start * o, rows * o), rows, o, o).t(),
            b: Matrix::new(x.part(start * i, rows * i), rows, i, i),
            c: MatrixMut::new(dw_oi, o, i, i),
        });
    }
    gemm_parallel(&mut products, true)
}

/// Each expert's rows of `x` times `orient` of its weight into the same rows of `y`; rows behind the last expert's
/// become zero.
fn rows_times_weights(
    x: &Tensor,
    w: &Tensor,
    offsets_e: &Tensor,
    y: &mut Tensor,
    orient: impl for<'w> Fn(Matrix<'w>) -> Matrix<'w>,
) -> Result<()> {
    let (o, i) = (w.shape()[1], w.last_dim());
    let (x_cols, y_cols, num_rows) = (x.last_dim(), y.last_dim(), x.num_rows());
    let (x, w, offsets) = (Values::of(x)?, Values::of(w)?, offsets_e.data::<i32>()?);
    let mut y = ValuesMut::of(y)?;
    let mut products = Vec::with_capacity(offsets.len());
    let mut end = 0;
    for (e, pair) in offsets.windows(2).enumerate() {
        let (start, rows) = (end, (pair[1] - pair[0]) as usize);
        end += rows;
        let (y_rows, rest) = y.split_at(rows * y_cols);
        y = rest;
        products.push(Product {
            a: Matrix::new(x.part(start * x_cols, rows * x_cols), rows, x_cols, x_cols),
            b: orient(Matrix::new(w.part(e * o * i, o * i), o, i, i)),
            c: MatrixMut::new(y_rows, rows, y_cols, y_cols),
        });
    }
    MatrixMut::new(y, num_rows - end, y_cols, y_cols).fill_zero();
    gemm_parallel(&mut products, false)
}
