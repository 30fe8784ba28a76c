//! SwiGLU (Shazeer, arXiv:2002.05202) with the routing weight folded in: h = silu(gate)·up·weight.
//!
//! Shapes: gate_up_r2f (gate in the first half of a row, up in the second), h_rf, weights_r in f32. Leading
//! dimensions may be more than one. With s = sigmoid(gate): dgate = dh·weight·up·(s + gate·s·(1 - s)),
//! dup = dh·weight·gate·s, dweight = Σ_f dh·gate·s·up. Nothing accumulates.
//! Napkin: forward moves 3·r·f elements, backward 6·r·f; some 30 FLOPs each, most of them the exponential:
//! memory-bound where the loop vectorises.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::check;
use crate::profile::{self, Work};
use crate::tensor::Tensor;
use crate::{cpu, cuda};

/// h_rf in the dtype of gate_up.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn forward(gate_up_r2f: &Tensor, weights_r: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "swiglu";
    let shape = check_input(OP, gate_up_r2f, weights_r)?;
    let _span = profile::span(OP, gate_up_r2f.dtype(), || Work::pass(3 * gate_up_r2f.size_in_bytes() / 2));
    let mut h_rf = Tensor::scratch(&shape, gate_up_r2f.dtype(), gate_up_r2f.device())?;
    match gate_up_r2f.device() {
        Device::Cpu => cpu::swiglu::forward(gate_up_r2f, weights_r, &mut h_rf)?,
        Device::Cuda(_) => cuda::ops::swiglu::forward(gate_up_r2f, weights_r, &mut h_rf)?,
    }
    Ok(h_rf)
}

/// What [`backward`] gives.
#[derive(Debug)]
pub struct Backward {
    /// The forward's output again, for the gradient of the weight that it was multiplied with.
    pub h_rf: Tensor,
    /// In the dtype of gate_up.
    pub dgate_up_r2f: Tensor,
    /// f32, where weights are given.
    pub dweights_r: Option<Tensor>,
}

/// The gradients, and h once more at no further exponential. On the CPU they take the memory of `dh_rf` and
/// `gate_up_r2f`, unless another tensor shares it.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn backward(mut dh_rf: Tensor, mut gate_up_r2f: Tensor, weights_r: Option<&Tensor>) -> Result<Backward> {
    const OP: &str = "swiglu_backward";
    let shape = check_input(OP, &gate_up_r2f, weights_r)?;
    check::shape(OP, "dh", &dh_rf, &shape)?;
    check::dtype(OP, "dh", &dh_rf, gate_up_r2f.dtype())?;
    let _span = profile::span(OP, dh_rf.dtype(), || Work::pass(6 * dh_rf.size_in_bytes()));
    // Zeros, not scratch: rows of no elements are never visited.
    let mut dweights_r = match weights_r {
        Some(weights) => Some(Tensor::zeros(weights.shape(), DType::F32, weights.device())?),
        None => None,
    };
    match dh_rf.device() {
        Device::Cpu => {
            cpu::swiglu::backward(&mut dh_rf, &mut gate_up_r2f, weights_r.zip(dweights_r.as_mut()))?;
            Ok(Backward { h_rf: dh_rf, dgate_up_r2f: gate_up_r2f, dweights_r })
        }
        Device::Cuda(_) => {
            let h_rf = forward(&gate_up_r2f, weights_r)?;
            let mut dgate_up_r2f =
                Tensor::scratch(gate_up_r2f.shape(), gate_up_r2f.dtype(), gate_up_r2f.device())?;
            let weights = weights_r.zip(dweights_r.as_mut());
            cuda::ops::swiglu::backward(&dh_rf, &gate_up_r2f, weights, &mut dgate_up_r2f)?;
            Ok(Backward { h_rf, dgate_up_r2f, dweights_r })
        }
    }
}

/// The shape of h.
fn check_input(op: &'static str, gate_up_r2f: &Tensor, weights_r: Option<&Tensor>) -> Result<Vec<usize>> {
    check::float(op, "gate_up", gate_up_r2f)?;
    let mut shape = gate_up_r2f.shape().to_vec();
    match shape.last_mut() {
        Some(last) if *last % 2 == 0 => *last /= 2,
        _ => {
            let expected = "an even last dimension".to_owned();
            return Err(Error::Shape { op, what: "gate_up", got: shape, expected });
        }
    }
    if let Some(weights) = weights_r {
        check::shape(op, "weights", weights, &[gate_up_r2f.num_rows()])?;
        check::dtype(op, "weights", weights, DType::F32)?;
    }
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{assert_close, bits, in_pools, tensor, values};

    const TOLERANCES: [(DType, f64); 2] = [(DType::F32, 2e-6), (DType::Bf16, 1.0 / 128.0)];

    #[test]
    fn forward_and_backward_follow_the_reference() {
        for [r, f] in [[1, 1], [3, 5], [2, 64], [7, 33], [0, 4], [300, 127]] {
            let (gate_up, weights, dh) = (values(r * 2 * f, 1), values(r, 2), values(r * f, 3));
            for (dtype, rel) in TOLERANCES {
                for weighted in [true, false] {
                    let reference_weights = weighted.then_some(&weights[..]);
                    let h = reference::swiglu::forward(&gate_up, reference_weights, f);
                    let (dgate_up, dweights) =
                        reference::swiglu::backward(&dh, &gate_up, reference_weights, f);
                    let weights = weighted.then(|| tensor(&weights, &[r], DType::F32));
                    let gate_up = tensor(&gate_up, &[r, 2 * f], dtype);
                    assert_close(&forward(&gate_up, weights.as_ref()).unwrap(), &h, rel);
                    let dh = tensor(&dh, &[r, f], dtype);
                    let got = backward(dh, gate_up, weights.as_ref()).unwrap();
                    assert_close(&got.h_rf, &h, rel);
                    assert_close(&got.dgate_up_r2f, &dgate_up, rel);
                    assert_eq!(got.dweights_r.is_some(), weighted);
                    if let Some(got) = got.dweights_r {
                        assert_close(&got, &dweights, 1e-5);
                    }
                }
            }
        }
    }

    #[test]
    fn large_gates_saturate_without_nan() {
        let gate_up = Tensor::from_slice(&[-1e4f32, 1e4, 3.0, 3.0], &[1, 4]).unwrap();
        let dh = Tensor::from_slice(&[1.0f32, 1.0], &[1, 2]).unwrap();
        assert_eq!(forward(&gate_up, None).unwrap().data::<f32>().unwrap(), [0.0, 3e4]);
        let got = backward(dh, gate_up, None).unwrap();
        assert_eq!(got.dgate_up_r2f.data::<f32>().unwrap(), [0.0, 3.0, 0.0, 1e4]);
    }

    #[test]
    fn results_have_the_same_bits_for_any_thread_count() {
        let gate_up = tensor(&values(300 * 254, 4), &[300, 254], DType::Bf16);
        let dh = tensor(&values(300 * 127, 5), &[300, 127], DType::Bf16);
        let weights = tensor(&values(300, 6), &[300], DType::F32);
        in_pools(|| {
            let h = forward(&gate_up, Some(&weights)).unwrap();
            let got = backward(dh.clone(), gate_up.clone(), Some(&weights)).unwrap();
            assert_eq!(bits(&got.h_rf), bits(&h));
            [h, got.dgate_up_r2f, got.dweights_r.unwrap()].map(|tensor| bits(&tensor))
        });
    }

    #[test]
    fn operands_that_do_not_fit_are_named() {
        let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, Device::Cpu).unwrap();
        let gate_up = zeros(&[3, 8], DType::F32);
        let error =
            |gate_up: &Tensor, weights: &Tensor| forward(gate_up, Some(weights)).unwrap_err().to_string();
        let weights = zeros(&[3], DType::F32);
        assert_eq!(
            error(&zeros(&[3, 7], DType::F32), &weights),
            "swiglu: gate_up has shape [3, 7], expected an even last dimension"
        );
        assert_eq!(error(&gate_up, &zeros(&[4], DType::F32)), "swiglu: weights has shape [4], expected [3]");
        assert_eq!(error(&gate_up, &zeros(&[3], DType::Bf16)), "swiglu: weights is bf16, expected f32");
        assert_eq!(
            error(&zeros(&[3, 8], DType::I8), &weights),
            "swiglu: gate_up is i8, expected f32 or bf16"
        );
        let dh = zeros(&[3, 4], DType::Bf16);
        assert_eq!(
            backward(dh, gate_up.clone(), None).unwrap_err().to_string(),
            "swiglu_backward: dh is bf16, expected f32"
        );
        assert!(backward(gate_up.clone(), gate_up, None).is_err());
    }
}
