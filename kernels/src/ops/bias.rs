//! Bias of a projection: y = x + bias, the bias added to each row.
//!
//! Shapes: x, y, dy `[.., n]` in f32 or bf16; bias_n, dbias_n in f32. dbias_n += Σ over rows of dy: it accumulates. The
//! gradient of x is dy itself.
//! Napkin: 2 elements moved forward, 1 backward; memory-bound. Works in place when x is held once.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::check;
use crate::profile::{self, Work};
use crate::tensor::Tensor;
use crate::{cpu, cuda};

/// y in the dtype of x.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory when x is shared.
pub fn forward(mut x: Tensor, bias_n: &Tensor) -> Result<Tensor> {
    check_operands("bias", "x", &x, "bias", bias_n)?;
    let _span = profile::span("bias", x.dtype(), || Work::pass(2 * x.size_in_bytes()));
    match x.device() {
        Device::Cpu => cpu::bias::forward(&mut x, bias_n)?,
        Device::Cuda(_) => cuda::ops::bias::forward(&mut x, bias_n)?,
    }
    Ok(x)
}

/// dbias_n += Σ over rows of dy, each column summed in the order of the rows.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory when dbias is shared.
pub fn backward(dy: &Tensor, dbias_n: &mut Tensor) -> Result<()> {
    check_operands("bias_backward", "dy", dy, "dbias", dbias_n)?;
    let _span = profile::span("bias_backward", dy.dtype(), || Work::pass(dy.size_in_bytes()));
    match dy.device() {
        Device::Cpu => cpu::bias::backward(dy, dbias_n),
        Device::Cuda(_) => cuda::ops::reduce::add_column_sums("bias_backward", dy, dbias_n),
    }
}

fn check_operands(
    op: &'static str,
    what: &'static str,
    rows: &Tensor,
    of_bias: &'static str,
    bias_n: &Tensor,
) -> Result<()> {
    check::float(op, what, rows)?;
    check::dtype(op, of_bias, bias_n, DType::F32)?;
    check::shape(op, of_bias, bias_n, &[rows.last_dim()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{assert_close, bits, in_pools, tensor, values};

    const TOLERANCES: [(DType, f64); 2] = [(DType::F32, 1e-6), (DType::Bf16, 1.0 / 128.0)];

    #[test]
    fn forward_and_backward_follow_the_reference() {
        for [r, n] in [[1, 1], [3, 5], [0, 4], [300, 127], [70, 1030]] {
            let (x, bias, dy, before) = (values(r * n, 1), values(n, 2), values(r * n, 3), values(n, 4));
            for (dtype, rel) in TOLERANCES {
                let y = forward(tensor(&x, &[r, n], dtype), &tensor(&bias, &[n], DType::F32)).unwrap();
                assert_close(&y, &reference::bias::forward(&x, &bias), rel);
                let mut dbias = tensor(&before, &[n], DType::F32);
                backward(&tensor(&dy, &[r, n], dtype), &mut dbias).unwrap();
                assert_close(&dbias, &reference::bias::backward(&dy, &before), 1e-5);
            }
        }
    }

    #[test]
    fn a_shared_input_stays_as_it_was() {
        let x = tensor(&values(8, 1), &[2, 4], DType::F32);
        let before = bits(&x);
        let y = forward(x.clone(), &tensor(&values(4, 2), &[4], DType::F32)).unwrap();
        assert_eq!(bits(&x), before);
        assert_ne!(bits(&y), before);
    }

    #[test]
    fn results_have_the_same_bits_for_any_thread_count() {
        let dy = tensor(&values(400 * 700, 5), &[20, 20, 700], DType::F32);
        in_pools(|| {
            let mut dbias = Tensor::zeros(&[700], DType::F32, Device::Cpu).unwrap();
            backward(&dy, &mut dbias).unwrap();
            bits(&dbias)
        });
    }

    #[test]
    fn operands_that_do_not_fit_are_named() {
        let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, Device::Cpu).unwrap();
        let error = |x, bias: &Tensor| forward(x, bias).unwrap_err().to_string();
        assert_eq!(
            error(zeros(&[2, 4], DType::F32), &zeros(&[3], DType::F32)),
            "bias: bias has shape [3], expected [4]"
        );
        assert_eq!(
            error(zeros(&[2, 4], DType::F32), &zeros(&[4], DType::Bf16)),
            "bias: bias is bf16, expected f32"
        );
        assert_eq!(
            error(zeros(&[2, 4], DType::I32), &zeros(&[4], DType::F32)),
            "bias: x is i32, expected f32 or bf16"
        );
    }
}
