//! SwiGLU with the routing weight folded in.

use super::Operation;
use crate::cuda::Argument;
use crate::cuda::calls::swiglu as calls;
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn forward(gate_up_r2f: &Tensor, weights_r: Option<&Tensor>, h_rf: &mut Tensor) -> Result<()> {
    let op = Operation::on("swiglu", gate_up_r2f)?;
    let weights = op.read_optional("weights", weights_r)?;
    let shape = [h_rf.num_rows(), h_rf.last_dim()];
    let call = calls::forward(op.floats("gate_up", gate_up_r2f)?, weights, op.write("h", h_rf)?, shape)?;
    // SAFETY: the op checked shapes and dtypes.
    unsafe { op.launch(&call) }
}

/// `weights` are the routing weights with the tensor of their gradient.
pub(crate) fn backward(
    dh_rf: &Tensor,
    gate_up_r2f: &Tensor,
    weights: Option<(&Tensor, &mut Tensor)>,
    dgate_up_r2f: &mut Tensor,
) -> Result<()> {
    let op = Operation::on("swiglu_backward", dh_rf)?;
    let [weights, dweights] = match weights {
        Some((weights, dweights)) => [op.read("weights", weights)?, op.write("dweights", dweights)?],
        None => [Argument::NULL; 2],
    };
    let inputs = [op.read("gate_up", gate_up_r2f)?, weights];
    let outputs = [op.write("dgate_up", dgate_up_r2f)?, dweights];
    let call =
        calls::backward(op.floats("dh", dh_rf)?, inputs, outputs, [dh_rf.num_rows(), dh_rf.last_dim()])?;
    // SAFETY: as in `forward`.
    unsafe { op.launch(&call) }
}
