//! Sums, scaling and casts, element by element.
//!
//! Shapes: any; both operands have one shape. Arithmetic is in f32; results are stored in the operands' dtype.
//! The gradient of a sum is the gradient of each term, so no backward stands here.
//! Napkin: add moves 3 values an element, add_assign 3, scale_assign 2, cast 2; memory-bound.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::check;
use crate::profile::{self, Work, bytes_of};
use crate::tensor::Tensor;
use crate::{cpu, cuda};

/// a + b, in their one dtype.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check_pair("add", a, b)?;
    let _span = profile::span("add", a.dtype(), || Work::pass(3 * a.size_in_bytes()));
    let mut sum = Tensor::scratch(a.shape(), a.dtype(), a.device())?;
    match a.device() {
        Device::Cpu => cpu::elementwise::add(a, b, &mut sum)?,
        Device::Cuda(_) => cuda::ops::elementwise::add(a, b, &mut sum)?,
    }
    Ok(sum)
}

/// a += b.
///
/// # Errors
/// As [`add`].
pub fn add_assign(a: &mut Tensor, b: &Tensor) -> Result<()> {
    check_pair("add_assign", a, b)?;
    let _span = profile::span("add_assign", a.dtype(), || Work::pass(3 * a.size_in_bytes()));
    match a.device() {
        Device::Cpu => cpu::elementwise::add_assign(a, b),
        Device::Cuda(_) => cuda::ops::elementwise::add_assign(a, b),
    }
}

/// a *= factor.
///
/// # Errors
/// A tensor of integers; out of memory when it is shared.
pub fn scale_assign(a: &mut Tensor, factor: f32) -> Result<()> {
    check::float("scale_assign", "a", a)?;
    let _span = profile::span("scale_assign", a.dtype(), || Work::pass(2 * a.size_in_bytes()));
    match a.device() {
        Device::Cpu => cpu::elementwise::scale_assign(a, factor),
        Device::Cuda(_) => cuda::ops::elementwise::scale_assign(a, factor),
    }
}

/// x as `dtype`, f32 or bf16: to the nearest value, ties to even, NaN stays NaN. The same dtype shares the memory.
///
/// # Errors
/// A dtype of integers on either side; out of memory.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        check::float("cast", "x", x)?;
        return Ok(x.clone());
    }
    let mut out = Tensor::scratch(x.shape(), dtype, x.device())?;
    cast_into(x, &mut out)?;
    Ok(out)
}

/// Writes x into `out` in the dtype of `out`; as [`cast`].
///
/// # Errors
/// Shapes that differ; a tensor of integers; out of memory when `out` is shared.
pub fn cast_into(x: &Tensor, out: &mut Tensor) -> Result<()> {
    check::float("cast", "x", x)?;
    check::float("cast", "out", out)?;
    check::shape("cast", "out", out, x.shape())?;
    let _span = profile::span("cast", x.dtype(), || Work::pass(bytes_of(&[x, &*out])));
    match x.device() {
        Device::Cpu => cpu::elementwise::cast_into(x, out),
        Device::Cuda(_) => cuda::ops::elementwise::cast_into(x, out),
    }
}

fn check_pair(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    check::float(op, "a", a)?;
    check::dtype(op, "b", b, a.dtype())?;
    check::shape(op, "b", b, a.shape())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::bf16;
    use crate::reference;
    use crate::testing::{assert_close, bits, in_pools, tensor, values};

    const TOLERANCES: [(DType, f64); 2] = [(DType::F32, 1e-7), (DType::Bf16, 1.0 / 256.0)];

    #[test]
    fn sums_and_scaling_follow_the_reference() {
        for n in [0, 1, 17, 50_001] {
            let (a, b) = (values(n, 1), values(n, 2));
            for (dtype, rel) in TOLERANCES {
                let mut x = tensor(&a, &[n], dtype);
                let y = tensor(&b, &[n], dtype);
                let want = reference::elementwise::add(&a, &b);
                assert_close(&add(&x, &y).unwrap(), &want, rel);
                add_assign(&mut x, &y).unwrap();
                assert_close(&x, &want, rel);
                let mut scaled = y.clone();
                scale_assign(&mut scaled, -0.3).unwrap();
                assert_close(&scaled, &reference::elementwise::scale(&b, -0.3), rel);
                assert_close(&y, &b, 0.0);
            }
        }
    }

    #[test]
    fn results_have_the_same_bits_for_any_thread_count() {
        let (a, b) = (values(50_001, 3), values(50_001, 4));
        let (a, b) = (tensor(&a, &[50_001], DType::Bf16), tensor(&b, &[50_001], DType::Bf16));
        in_pools(|| bits(&add(&a, &b).unwrap()));
    }

    #[test]
    fn a_cast_rounds_to_even_and_back_without_loss() {
        // 1 + 2^-8 lies midway between 1 and 1 + 2^-7; 1 + 3·2^-8 midway between 1 + 2^-7 and 1 + 2^-6.
        let x = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX, f32::NEG_INFINITY, f32::NAN, -0.0];
        let narrow = cast(&Tensor::from_slice(&x, &[2, 3]).unwrap(), DType::Bf16).unwrap();
        let wide = cast(&narrow, DType::F32).unwrap();
        let got = wide.data::<f32>().unwrap();
        assert_eq!(got[..2], [1.0, 1.0 + 1.0 / 64.0]);
        assert_eq!(got[2..4], [f32::INFINITY, f32::NEG_INFINITY]);
        assert!(got[4].is_nan());
        assert_eq!(got[5].to_bits(), (-0.0f32).to_bits());
        assert_eq!(wide.shape(), [2, 3]);
    }

    #[test]
    fn a_cast_to_the_same_dtype_shares_the_memory() {
        let x = tensor(&[1.0, 2.0], &[2], DType::Bf16);
        let same = cast(&x, DType::Bf16).unwrap();
        assert!(std::ptr::eq(x.data::<bf16>().unwrap(), same.data::<bf16>().unwrap()));
        let mut out = Tensor::zeros(&[2], DType::Bf16, Device::Cpu).unwrap();
        cast_into(&x, &mut out).unwrap();
        assert_eq!(bits(&out), bits(&x));
    }

    #[test]
    fn operands_that_do_not_fit_are_named() {
        let a = tensor(&[1.0, 2.0], &[2], DType::F32);
        let long = tensor(&[1.0, 2.0, 3.0], &[3], DType::F32);
        let ids = Tensor::zeros(&[2], DType::I32, Device::Cpu).unwrap();
        assert_eq!(add(&a, &long).unwrap_err().to_string(), "add: b has shape [3], expected [2]");
        let narrow = tensor(&[1.0, 2.0], &[2], DType::Bf16);
        assert_eq!(add(&a, &narrow).unwrap_err().to_string(), "add: b is bf16, expected f32");
        assert_eq!(cast(&ids, DType::F32).unwrap_err().to_string(), "cast: x is i32, expected f32 or bf16");
        assert_eq!(cast(&a, DType::I32).unwrap_err().to_string(), "cast: out is i32, expected f32 or bf16");
        assert!(cast(&ids, DType::I32).is_err());
        assert!(scale_assign(&mut ids.clone(), 2.0).is_err());
    }
}
