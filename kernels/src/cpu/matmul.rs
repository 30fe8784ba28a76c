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

#[cfg(test)]
mod tests {
    use crate::dtype::DType;
    use crate::ops::matmul::{backward_input, backward_weight, forward};
    use crate::reference;
    use crate::tensor::Tensor;

    /// Small whole numbers: every product and sum is exact in f32, and in bf16 up to 256.
    fn whole(shape: &[usize], period: usize) -> Tensor {
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|i: usize| (i * 7 % period) as f32 - 2.0).collect();
        Tensor::from_slice(&values, shape).unwrap()
    }

    fn f64s(tensor: &Tensor) -> Vec<f64> {
        tensor.to_f32_vec().unwrap().into_iter().map(f64::from).collect()
    }

    #[test]
    fn leading_dimensions_are_folded_and_sums_of_whole_numbers_are_exact() {
        let (b, t, o, i) = (2, 5, 33, 19);
        let (x, w, dy) = (whole(&[b, t, i], 5), whole(&[o, i], 4), whole(&[b, t, o], 3));
        let shape = [b * t, o, i];
        let y = forward(&x, &w, DType::F32).unwrap();
        assert_eq!(y.shape(), [b, t, o]);
        assert_eq!(f64s(&y), reference::matmul::forward(&f64s(&x), &f64s(&w), shape));

        let dx = backward_input(&dy, &w, None).unwrap();
        let want = reference::matmul::backward_input(&f64s(&dy), &f64s(&w), shape);
        assert_eq!(f64s(&dx), want);
        let twice = backward_input(&dy, &w, Some(dx)).unwrap();
        assert_eq!(f64s(&twice), want.iter().map(|x| 2.0 * x).collect::<Vec<_>>());

        let mut dw = Tensor::from_slice(&vec![1.0f32; o * i], &[o, i]).unwrap();
        backward_weight(&dy, &x, &mut dw).unwrap();
        let want = reference::matmul::backward_weight(&f64s(&dy), &f64s(&x), shape);
        assert_eq!(f64s(&dw), want.iter().map(|x| 1.0 + x).collect::<Vec<_>>());
    }

    #[test]
    fn no_rows_give_an_empty_result_and_leave_gradients_alone() {
        let (x, w, dy) = (whole(&[0, 4], 5), whole(&[3, 4], 5), whole(&[0, 3], 5));
        assert_eq!(forward(&x, &w, DType::Bf16).unwrap().shape(), [0, 3]);
        assert_eq!(backward_input(&dy, &w, None).unwrap().shape(), [0, 4]);
        let mut dw = whole(&[3, 4], 3);
        backward_weight(&dy, &x, &mut dw).unwrap();
        assert_eq!(f64s(&dw), f64s(&whole(&[3, 4], 3)));
    }
}
