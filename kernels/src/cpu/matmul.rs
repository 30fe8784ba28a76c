//! Matrix multiplication on the CPU: each form as one product of the packed GEMM.

use crate::cpu::gemm::{Matrix, MatrixMut, Product, Values, ValuesMut, gemm_parallel};
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn forward(x_ti: &Tensor, w_oi: &Tensor, y_to: &mut Tensor) -> Result<()> {
    let (a, b) = (matrix(x_ti)?, matrix(w_oi)?.t());
    gemm_parallel(&mut [Product { a, b, c: matrix_mut(y_to)? }], false)
}

pub(crate) fn backward_input(
    dy_to: &Tensor,
    w_oi: &Tensor,
    dx_ti: &mut Tensor,
    accumulate: bool,
) -> Result<()> {
    let (a, b) = (matrix(dy_to)?, matrix(w_oi)?);
    gemm_parallel(&mut [Product { a, b, c: matrix_mut(dx_ti)? }], accumulate)
}

pub(crate) fn backward_weight(dy_to: &Tensor, x_ti: &Tensor, dw_oi: &mut Tensor) -> Result<()> {
    let (a, b) = (matrix(dy_to)?.t(), matrix(x_ti)?);
    gemm_parallel(&mut [Product { a, b, c: matrix_mut(dw_oi)? }], true)
}

/// A tensor as a matrix, all dimensions but the last folded into its rows.
fn matrix(tensor: &Tensor) -> Result<Matrix<'_>> {
    Ok(Matrix::new(Values::of(tensor)?, tensor.num_rows(), tensor.last_dim(), tensor.last_dim()))
}

fn matrix_mut(tensor: &mut Tensor) -> Result<MatrixMut<'_>> {
    let (rows, cols) = (tensor.num_rows(), tensor.last_dim());
    Ok(MatrixMut::new(ValuesMut::of(tensor)?, rows, cols, cols))
}
