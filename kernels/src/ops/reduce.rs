//! Sums over whole tensors, the norm of a set of gradients and the factor that clips it.
//!
//! Shapes: any; f32 or bf16 in, f64 out. Sums are taken in f64 over fixed blocks, so the bits do not depend on the
//! thread count; NaN and infinity come through.
//! Napkin: one read of the tensor, 4 bytes an f32 element; memory-bound.

use crate::cuda::calls::reduce::Term;
use crate::device::Device;
use crate::error::Result;
use crate::ops::check;
use crate::profile::{self, Work};
use crate::tensor::Tensor;
use crate::{cpu, cuda};

/// Σ x.
///
/// # Errors
/// A tensor of integers.
pub fn sum(x: &Tensor) -> Result<f64> {
    check::float("sum", "x", x)?;
    let _span = profile::span("sum", x.dtype(), || Work::pass(x.size_in_bytes()));
    match x.device() {
        Device::Cpu => cpu::reduce::sum(x),
        Device::Cuda(_) => cuda::ops::reduce::sum("sum", Term::Value, x),
    }
}

/// Σ x².
///
/// # Errors
/// A tensor of integers.
pub fn sum_of_squares(x: &Tensor) -> Result<f64> {
    check::float("sum_of_squares", "x", x)?;
    let _span = profile::span("sum_of_squares", x.dtype(), || Work::pass(x.size_in_bytes()));
    match x.device() {
        Device::Cpu => cpu::reduce::sum_of_squares(x),
        Device::Cuda(_) => cuda::ops::reduce::sum("sum_of_squares", Term::Square, x),
    }
}

/// The Euclidean norm of all tensors taken as one vector.
///
/// # Errors
/// A tensor of integers.
pub fn global_norm(tensors: &[&Tensor]) -> Result<f64> {
    let mut total = 0.0;
    for tensor in tensors {
        total += sum_of_squares(tensor)?;
    }
    Ok(total.sqrt())
}

/// What to multiply gradients of norm `norm` by so that their norm is at most `max_norm`. A norm of NaN gives NaN:
/// a spoiled gradient must not pass for a small one.
pub fn clip_factor(norm: f64, max_norm: f32) -> f32 {
    let max_norm = f64::from(max_norm);
    if norm <= max_norm { 1.0 } else { (max_norm / norm) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::reference;
    use crate::testing::{in_pools, tensor, values};

    #[test]
    fn sums_follow_the_reference_in_both_dtypes() {
        for n in [0, 1, 31, 32, 33, 100_003] {
            let x = values(n, 1);
            for dtype in [DType::F32, DType::Bf16] {
                let tensor = tensor(&x, &[n], dtype);
                let near = |got: f64, want: f64| (got - want).abs() <= 1e-12 * n as f64;
                assert!(near(sum(&tensor).unwrap(), reference::reduce::sum(&x)), "{n} {dtype}");
                let want = reference::reduce::sum_of_squares(&x);
                assert!(near(sum_of_squares(&tensor).unwrap(), want), "{n} {dtype}");
            }
        }
    }

    #[test]
    fn sums_have_the_same_bits_for_any_thread_count() {
        let x = tensor(&values(100_003, 2), &[100_003], DType::F32);
        in_pools(|| (sum(&x).unwrap().to_bits(), sum_of_squares(&x).unwrap().to_bits()));
    }

    #[test]
    fn non_finite_values_come_through() {
        let mut x = values(1000, 3);
        x[700] = f64::INFINITY;
        assert_eq!(sum_of_squares(&tensor(&x, &[1000], DType::F32)).unwrap(), f64::INFINITY);
        x[999] = f64::NAN;
        assert!(sum(&tensor(&x, &[1000], DType::F32)).unwrap().is_nan());
        assert!(sum_of_squares(&tensor(&x, &[1000], DType::Bf16)).unwrap().is_nan());
    }

    #[test]
    fn the_global_norm_joins_tensors_of_different_shapes() {
        let a = tensor(&[3.0, 0.0], &[2], DType::F32);
        let b = tensor(&[0.0, 4.0, 12.0, 0.0], &[2, 2], DType::Bf16);
        assert_eq!(global_norm(&[&a, &b]).unwrap(), 13.0);
        assert_eq!(global_norm(&[]).unwrap(), 0.0);
    }

    #[test]
    fn clipping_scales_only_norms_above_the_limit() {
        assert_eq!(clip_factor(0.0, 1.0), 1.0);
        assert_eq!(clip_factor(1.0, 1.0), 1.0);
        assert_eq!(clip_factor(4.0, 1.0), 0.25);
        assert_eq!(clip_factor(f64::INFINITY, 1.0), 0.0);
        assert!(clip_factor(f64::NAN, 1.0).is_nan());
    }

    #[test]
    fn integers_are_refused() {
        let ids = Tensor::zeros(&[3], DType::I32, Device::Cpu).unwrap();
        assert_eq!(sum(&ids).unwrap_err().to_string(), "sum: x is i32, expected f32 or bf16");
        assert!(global_norm(&[&ids]).is_err());
    }
}
