//! Root-mean-square normalisation, y = w·x·rstd with rstd = 1 / sqrt(mean(x²) + eps), row by row.
//!
//! Shapes: x, y, dx, dy `[.., d]`, w_d, rstd `[..]` in f32. The rows are tokens (d_model) or heads (QK-norm).
//! dx = rstd·(w·dy - n·mean(w·dy·n)) with n = x·rstd; dw += Σ_t dy·n. dw accumulates; dx on request.
//! Napkin: forward moves 2·t·d elements, backward 3·t·d (4 with `onto`); about 4 and 10 FLOPs each, memory-bound.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::check;
use crate::profile::{self, Work};
use crate::tensor::Tensor;
use crate::{cpu, cuda};

/// (y in the dtype of x, rstd in f32). w is f32 or has the dtype of x.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn forward(x: &Tensor, w_d: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    const OP: &str = "rms_norm";
    check_input(OP, x, w_d)?;
    let _span = profile::span(OP, x.dtype(), || Work::pass(2 * x.size_in_bytes()));
    let mut y = Tensor::scratch(x.shape(), x.dtype(), x.device())?;
    let mut rstd_t = Tensor::scratch(row_shape(x), DType::F32, x.device())?;
    match x.device() {
        Device::Cpu => cpu::rms_norm::forward(x, w_d, eps, &mut y, &mut rstd_t)?,
        Device::Cuda(_) => cuda::ops::rms_norm::forward(x, w_d, eps, &mut y, &mut rstd_t)?,
    }
    Ok((y, rstd_t))
}

/// dx in the dtype of x; dw_d (f32) gains its gradient. With `onto`, dx is added to that gradient instead: the sum
/// of the residual path and this one.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn backward(
    dy: &Tensor,
    x: &Tensor,
    w_d: &Tensor,
    rstd_t: &Tensor,
    dw_d: &mut Tensor,
    onto: Option<Tensor>,
) -> Result<Tensor> {
    const OP: &str = "rms_norm_backward";
    check_input(OP, x, w_d)?;
    check::shape(OP, "dy", dy, x.shape())?;
    check::dtype(OP, "dy", dy, x.dtype())?;
    check::shape(OP, "rstd", rstd_t, row_shape(x))?;
    check::dtype(OP, "rstd", rstd_t, DType::F32)?;
    check::shape(OP, "dw", dw_d, w_d.shape())?;
    check::dtype(OP, "dw", dw_d, DType::F32)?;
    let accumulate = onto.is_some();
    let moves = if accumulate { 4 } else { 3 };
    let _span = profile::span(OP, x.dtype(), || Work::pass(moves * x.size_in_bytes()));
    let mut dx = match onto {
        Some(dx) => dx,
        None => Tensor::scratch(x.shape(), x.dtype(), x.device())?,
    };
    check::shape(OP, "dx", &dx, x.shape())?;
    check::dtype(OP, "dx", &dx, x.dtype())?;
    match x.device() {
        Device::Cpu => cpu::rms_norm::backward(dy, x, w_d, rstd_t, dw_d, &mut dx, accumulate)?,
        Device::Cuda(_) => cuda::ops::rms_norm::backward(dy, x, w_d, rstd_t, dw_d, &mut dx, accumulate)?,
    }
    Ok(dx)
}

/// The shape of x without its last dimension.
fn row_shape(x: &Tensor) -> &[usize] {
    &x.shape()[..x.shape().len() - 1]
}

fn check_input(op: &'static str, x: &Tensor, w_d: &Tensor) -> Result<()> {
    check::float(op, "x", x)?;
    check::rank(op, "w", w_d, 1)?;
    check::last_dim(op, "x", x, w_d.last_dim())?;
    if w_d.last_dim() == 0 {
        return Err(Error::Shape {
            op,
            what: "w",
            got: w_d.shape().to_vec(),
            expected: "at least one element".to_owned(),
        });
    }
    if w_d.dtype() == DType::F32 { Ok(()) } else { check::dtype(op, "w", w_d, x.dtype()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{assert_close, bits, in_pools, tensor, values};

    const EPS: f32 = 1e-5;
    const SHAPES: [[usize; 2]; 6] = [[1, 3], [3, 5], [2, 32], [7, 33], [0, 8], [300, 257]];

    #[test]
    fn forward_and_backward_follow_the_reference() {
        for [t, d] in SHAPES {
            let (x, w, dy, base) = (values(t * d, 1), values(d, 2), values(t * d, 3), values(t * d, 4));
            let (y, rstd) = reference::rms_norm::forward(&x, &w, f64::from(EPS));
            let (dx, dw) = reference::rms_norm::backward(&dy, &x, &w, &rstd);
            let on_base = reference::elementwise::add(&dx, &base);
            let twice = reference::elementwise::scale(&dw, 2.0);
            for (dtype, w_dtype, rel) in [
                (DType::F32, DType::F32, 2e-5),
                (DType::Bf16, DType::F32, 1.0 / 128.0),
                (DType::Bf16, DType::Bf16, 1.0 / 128.0),
            ] {
                let to_tensor = |values: &[f64]| tensor(values, &[t, d], dtype);
                let (x, w, dy) = (to_tensor(&x), tensor(&w, &[d], w_dtype), to_tensor(&dy));
                let (got_y, got_rstd) = forward(&x, &w, EPS).unwrap();
                assert_close(&got_y, &y, rel);
                assert_close(&got_rstd, &rstd, 2e-6);
                let mut got_dw = Tensor::zeros(&[d], DType::F32, Device::Cpu).unwrap();
                let got_dx = backward(&dy, &x, &w, &got_rstd, &mut got_dw, None).unwrap();
                assert_close(&got_dx, &dx, rel);
                let onto = Some(to_tensor(&base));
                let got_sum = backward(&dy, &x, &w, &got_rstd, &mut got_dw, onto).unwrap();
                assert_close(&got_sum, &on_base, rel);
                assert_close(&got_dw, &twice, 2e-5);
            }
        }
    }

    #[test]
    fn leading_dimensions_are_folded_into_rows() {
        let (x, w) = (values(2 * 3 * 4 * 6, 5), values(6, 6));
        let w = tensor(&w, &[6], DType::F32);
        let (y, rstd) = forward(&tensor(&x, &[2, 3, 4, 6], DType::F32), &w, EPS).unwrap();
        assert_eq!((y.shape(), rstd.shape()), (&[2, 3, 4, 6][..], &[2, 3, 4][..]));
        let (flat, _) = forward(&tensor(&x, &[24, 6], DType::F32), &w, EPS).unwrap();
        assert_eq!(bits(&y), bits(&flat));
    }

    #[test]
    fn results_have_the_same_bits_for_any_thread_count() {
        let [t, d] = [300, 257];
        let x = tensor(&values(t * d, 7), &[t, d], DType::F32);
        let (w, dy) =
            (tensor(&values(d, 8), &[d], DType::F32), tensor(&values(t * d, 9), &[t, d], DType::F32));
        in_pools(|| {
            let (y, rstd) = forward(&x, &w, EPS).unwrap();
            let mut dw = Tensor::zeros(&[d], DType::F32, Device::Cpu).unwrap();
            let dx = backward(&dy, &x, &w, &rstd, &mut dw, None).unwrap();
            [y, rstd, dx, dw].map(|tensor| bits(&tensor))
        });
    }

    #[test]
    fn operands_that_do_not_fit_are_named() {
        let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, Device::Cpu).unwrap();
        let error = |x: &Tensor, w: &Tensor| forward(x, w, EPS).unwrap_err().to_string();
        let x = zeros(&[2, 4], DType::F32);
        let w = zeros(&[4], DType::F32);
        assert_eq!(
            error(&x, &zeros(&[3], DType::F32)),
            "rms_norm: x has shape [2, 4], expected last dimension 3"
        );
        assert_eq!(error(&x, &zeros(&[4], DType::Bf16)), "rms_norm: w is bf16, expected f32");
        assert_eq!(error(&zeros(&[2, 4], DType::I32), &w), "rms_norm: x is i32, expected f32 or bf16");
        assert_eq!(
            error(&zeros(&[2, 0], DType::F32), &zeros(&[0], DType::F32)),
            "rms_norm: w has shape [0], expected at least one element"
        );
        let rstd = zeros(&[3], DType::F32);
        let got = backward(&x, &x, &w, &rstd, &mut w.clone(), None).unwrap_err().to_string();
        assert_eq!(got, "rms_norm_backward: rstd has shape [3], expected [2]");
        let onto = Some(zeros(&[2, 4], DType::Bf16));
        let rstd = zeros(&[2], DType::F32);
        let got = backward(&x, &x, &w, &rstd, &mut w.clone(), onto).unwrap_err().to_string();
        assert_eq!(got, "rms_norm_backward: dx is bf16, expected f32");
    }
}
