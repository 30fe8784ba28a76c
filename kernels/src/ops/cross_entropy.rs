//! Linear layer and cross-entropy in one: loss_t = ln Σ_v exp(x_t·w_v) - x_t·w_target, logits never held whole.
//!
//! Shapes: x_td, w_vd, targets_t (i32), losses_t (f32), dx_td, dw_vd (f32); leading dimensions of x are folded into t.
//! A target of -1 is ignored: its loss and its gradients are 0. Any other outside the vocabulary is an error on the host;
//! on a GPU, where looking would mean waiting, its loss and gradients are NaN, so that the step is seen to be spoiled.
//! dlogits_tv = grad_scale·(softmax(x·wᵀ) - onehot(target)); dx = dlogits·w; dw += dlogitsᵀ·x, the only output that
//! accumulates. For bf16 operands the logits and the softmax are f32 and dlogits is rounded to bf16.
//! Napkin: 2·t·v·d FLOPs forward, 6·t·v·d with gradients, one exp per logit.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::check;
use crate::profile::{self, Work, bytes_of};
use crate::tensor::Tensor;
use crate::{cpu, cuda};

/// The target that marks a token without a loss.
pub const IGNORED: i32 = -1;

/// The negative log-likelihood of each token's target, in nats, in the shape of `targets_t`.
///
/// # Errors
/// Shapes or dtypes that do not fit; a target outside the vocabulary; out of memory.
pub fn forward(x_td: &Tensor, w_vd: &Tensor, targets_t: &Tensor) -> Result<Tensor> {
    const OP: &str = "cross_entropy";
    check_inputs(OP, x_td, w_vd, targets_t)?;
    let _span = profile::span(OP, x_td.dtype(), || work(x_td, w_vd, 2, bytes_of(&[x_td, w_vd])));
    let mut losses_t = Tensor::scratch(targets_t.shape(), DType::F32, x_td.device())?;
    match x_td.device() {
        Device::Cpu => cpu::cross_entropy::forward(x_td, w_vd, targets_t, &mut losses_t)?,
        Device::Cuda(_) => cuda::ops::cross_entropy::forward(x_td, w_vd, targets_t, &mut losses_t)?,
    }
    Ok(losses_t)
}

/// (losses_t, dx_td), and dw_vd += its gradient: the gradients of `grad_scale`·Σ losses. dx has the dtype of x.
///
/// # Errors
/// As [`forward`]; dw must be f32 in the shape of w.
pub fn forward_backward(
    x_td: &Tensor,
    w_vd: &Tensor,
    targets_t: &Tensor,
    grad_scale: f32,
    dw_vd: &mut Tensor,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "cross_entropy_backward";
    check_inputs(OP, x_td, w_vd, targets_t)?;
    check::shape(OP, "dw", dw_vd, w_vd.shape())?;
    check::dtype(OP, "dw", dw_vd, DType::F32)?;
    let bytes = || bytes_of(&[x_td, x_td, w_vd, &*dw_vd, &*dw_vd]);
    let _span = profile::span(OP, x_td.dtype(), || work(x_td, w_vd, 6, bytes()));
    let mut losses_t = Tensor::scratch(targets_t.shape(), DType::F32, x_td.device())?;
    let mut dx_td = Tensor::scratch(x_td.shape(), x_td.dtype(), x_td.device())?;
    match x_td.device() {
        Device::Cpu => cpu::cross_entropy::forward_backward(
            x_td,
            w_vd,
            targets_t,
            grad_scale,
            &mut losses_t,
            &mut dx_td,
            dw_vd,
        )?,
        Device::Cuda(_) => cuda::ops::cross_entropy::forward_backward(
            x_td,
            w_vd,
            targets_t,
            grad_scale,
            &mut losses_t,
            &mut dx_td,
            dw_vd,
        )?,
    }
    Ok((losses_t, dx_td))
}

fn work(x_td: &Tensor, w_vd: &Tensor, flops_each: usize, bytes: usize) -> Work {
    let [t, v, d] = [x_td.num_rows(), w_vd.num_rows(), w_vd.last_dim()];
    Work::products(&[t, v, d], flops_each * t * v * d, bytes)
}

fn check_inputs(op: &'static str, x_td: &Tensor, w_vd: &Tensor, targets_t: &Tensor) -> Result<()> {
    check::float(op, "x", x_td)?;
    check::rank(op, "w", w_vd, 2)?;
    check::dtype(op, "w", w_vd, x_td.dtype())?;
    check::last_dim(op, "x", x_td, w_vd.last_dim())?;
    check::dtype(op, "targets", targets_t, DType::I32)?;
    let (num_tokens, vocab) = (x_td.num_rows(), w_vd.shape()[0]);
    if targets_t.num_elements() != num_tokens {
        return Err(Error::Shape {
            op,
            what: "targets",
            got: targets_t.shape().to_vec(),
            expected: format!("{num_tokens} targets, one for each row of x"),
        });
    }
    if targets_t.device() != Device::Cpu {
        // Looking at them would wait for the GPU; an unknown one gives a loss and gradients of NaN there.
        return Ok(());
    }
    let known = |target: i32| target == IGNORED || usize::try_from(target).is_ok_and(|target| target < vocab);
    match targets_t.data::<i32>()?.iter().enumerate().find(|&(_, &target)| !known(target)) {
        None => Ok(()),
        Some((t, target)) => Err(Error::Value {
            op,
            what: "a target",
            got: format!("{target} at token {t}"),
            expected: format!("below the vocabulary size {vocab}, or {IGNORED} to ignore the token"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{assert_close, bits, in_pools, tensor, values};

    const GRAD_SCALE: f32 = 0.25;

    /// x, w and targets, one of three ignored.
    fn inputs(t: usize, v: usize, d: usize) -> (Vec<f64>, Vec<f64>, Vec<i32>) {
        let targets = (0..t).map(|t| if t % 3 == 1 { IGNORED } else { (t * 7 % v) as i32 });
        (values(t * d, 1), values(v * d, 2), targets.collect())
    }

    /// Losses, dx and what is added to dw agree with the reference within `rel` for [losses, gradients].
    #[track_caller]
    fn check(t: usize, v: usize, d: usize, dtype: DType, rel: [f64; 2]) {
        let (x, w, targets) = inputs(t, v, d);
        let (x_td, w_vd) = (tensor(&x, &[t, d], dtype), tensor(&w, &[v, d], dtype));
        let targets_t = Tensor::from_slice(&targets, &[t]).unwrap();
        // Small beside the gradients, so that taking it off again costs no digits.
        let before: Vec<f64> = values(v * d, 3).iter().map(|x| x / 256.0).collect();
        let mut dw_vd = tensor(&before, &[v, d], DType::F32);
        let losses_t = forward(&x_td, &w_vd, &targets_t).unwrap();
        let (same_losses_t, dx_td) =
            forward_backward(&x_td, &w_vd, &targets_t, GRAD_SCALE, &mut dw_vd).unwrap();
        let (losses, dx, dw) =
            reference::cross_entropy::forward_backward(&x, &w, &targets, d, f64::from(GRAD_SCALE));
        assert_close(&losses_t, &losses, rel[0]);
        assert_eq!(bits(&losses_t), bits(&same_losses_t));
        assert_eq!(dx_td.dtype(), dtype);
        assert_close(&dx_td, &dx, rel[1]);
        let added: Vec<f32> = dw_vd
            .data::<f32>()
            .unwrap()
            .iter()
            .zip(&before)
            .map(|(dw, before)| dw - *before as f32)
            .collect();
        assert_close(&Tensor::from_slice(&added, &[v, d]).unwrap(), &dw, rel[1]);
    }

    #[test]
    fn losses_and_gradients_agree_with_the_reference() {
        for (t, v, d) in [(1, 1, 1), (3, 7, 5), (33, 100, 16), (50, 301, 24)] {
            check(t, v, d, DType::F32, [1e-5, 1e-4]);
        }
    }

    /// More rows than one chunk of 128 holds at this vocabulary.
    #[test]
    fn several_chunks_agree_with_the_reference() {
        check(230, 17_000, 2, DType::F32, [1e-5, 1e-4]);
    }

    /// Losses come from logits of exact bf16 operands, which some processors sum at 11 bits over up to 64 products;
    /// gradients pass through dlogits rounded to 8 bits.
    #[test]
    fn bf16_agrees_with_the_reference_within_its_rounding() {
        check(33, 100, 16, DType::Bf16, [2e-3, 1e-2]);
    }

    #[test]
    fn ignored_tokens_have_no_loss_and_no_gradient() {
        let (t, v, d) = (5, 7, 3);
        let (x, w, _) = inputs(t, v, d);
        let (x_td, w_vd) = (tensor(&x, &[t, d], DType::F32), tensor(&w, &[v, d], DType::F32));
        let targets_t = Tensor::from_slice(&[IGNORED; 5], &[t]).unwrap();
        let mut dw_vd = Tensor::zeros(&[v, d], DType::F32, Device::Cpu).unwrap();
        let (losses_t, dx_td) = forward_backward(&x_td, &w_vd, &targets_t, 1.0, &mut dw_vd).unwrap();
        for tensor in [&losses_t, &forward(&x_td, &w_vd, &targets_t).unwrap(), &dx_td, &dw_vd] {
            assert!(tensor.data::<f32>().unwrap().iter().all(|&x| x == 0.0));
        }
    }

    #[test]
    fn logits_of_ten_thousand_stay_finite() {
        let x_td = Tensor::from_slice(&[100.0f32, -100.0], &[2, 1]).unwrap();
        let w_vd = Tensor::from_slice(&[100.0f32, -100.0, 0.0], &[3, 1]).unwrap();
        let targets_t = Tensor::from_slice(&[1, 1], &[2]).unwrap();
        let mut dw_vd = Tensor::zeros(&[3, 1], DType::F32, Device::Cpu).unwrap();
        let (losses_t, dx_td) = forward_backward(&x_td, &w_vd, &targets_t, 1.0, &mut dw_vd).unwrap();
        assert_eq!(losses_t.data::<f32>().unwrap(), [20_000.0, 0.0]);
        assert_eq!(dx_td.data::<f32>().unwrap(), [200.0, 0.0]);
        assert_eq!(dw_vd.data::<f32>().unwrap(), [100.0, -100.0, 0.0]);
    }

    #[test]
    fn leading_dimensions_are_folded_and_losses_keep_the_shape_of_the_targets() {
        let (x, w, targets) = inputs(6, 7, 3);
        let (x_td, w_vd) = (tensor(&x, &[2, 3, 3], DType::F32), tensor(&w, &[7, 3], DType::F32));
        let targets_t = Tensor::from_slice(&targets, &[2, 3]).unwrap();
        let mut dw_vd = Tensor::zeros(&[7, 3], DType::F32, Device::Cpu).unwrap();
        let (losses_t, dx_td) = forward_backward(&x_td, &w_vd, &targets_t, 1.0, &mut dw_vd).unwrap();
        assert_eq!(losses_t.shape(), [2, 3]);
        assert_eq!(dx_td.shape(), [2, 3, 3]);
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let (t, v, d) = (150, 500, 40);
        let (x, w, targets) = inputs(t, v, d);
        let targets_t = Tensor::from_slice(&targets, &[t]).unwrap();
        for dtype in [DType::F32, DType::Bf16] {
            let (x_td, w_vd) = (tensor(&x, &[t, d], dtype), tensor(&w, &[v, d], dtype));
            in_pools(|| {
                let mut dw_vd = Tensor::zeros(&[v, d], DType::F32, Device::Cpu).unwrap();
                let (losses_t, dx_td) = forward_backward(&x_td, &w_vd, &targets_t, 0.1, &mut dw_vd).unwrap();
                [bits(&losses_t), bits(&dx_td), bits(&dw_vd)]
            });
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_reason() {
        let x_td = Tensor::zeros(&[2, 3], DType::F32, Device::Cpu).unwrap();
        let w_vd = Tensor::zeros(&[4, 3], DType::F32, Device::Cpu).unwrap();
        let message = |w_vd: &Tensor, targets: &[i32]| {
            let targets_t = Tensor::from_slice(targets, &[targets.len()]).unwrap();
            forward(&x_td, w_vd, &targets_t).unwrap_err().to_string()
        };
        for target in [4, -2, i32::MAX, i32::MIN] {
            assert_eq!(
                message(&w_vd, &[0, target]),
                format!(
                    "cross_entropy: a target is {target} at token 1, expected below the vocabulary size 4, or -1 to ignore the token"
                )
            );
        }
        assert_eq!(
            message(&w_vd, &[0]),
            "cross_entropy: targets has shape [1], expected 2 targets, one for each row of x"
        );
        assert_eq!(
            message(&Tensor::zeros(&[4, 3], DType::Bf16, Device::Cpu).unwrap(), &[0, 0]),
            "cross_entropy: w is bf16, expected f32"
        );
        let mut dw_vd = Tensor::zeros(&[3, 4], DType::F32, Device::Cpu).unwrap();
        let targets_t = Tensor::from_slice(&[0, 0], &[2]).unwrap();
        assert_eq!(
            forward_backward(&x_td, &w_vd, &targets_t, 1.0, &mut dw_vd).unwrap_err().to_string(),
            "cross_entropy_backward: dw has shape [3, 4], expected [4, 3]"
        );
    }
}
