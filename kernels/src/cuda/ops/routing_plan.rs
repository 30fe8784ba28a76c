//! The routing plan.

use super::Operation;
use crate::cuda::calls::routing_plan::{self as calls, Buffers, Sizes};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::routing_plan::RoutingPlan;
use crate::tensor::Tensor;

pub(crate) fn plan(
    indices_tk: &Tensor,
    weights_tk: &Tensor,
    capacity: usize,
    plan: &mut RoutingPlan,
) -> Result<()> {
    let op = Operation::on("routing_plan", indices_tk)?;
    let sizes = Sizes {
        num_assignments: indices_tk.num_elements(),
        top_k: indices_tk.last_dim(),
        num_experts: plan.tokens_per_expert_e.num_elements(),
        num_rows: plan.num_rows(),
        capacity,
    };
    // u32 is no dtype of tensors; i32 has its size.
    let mut counts = Tensor::scratch(&[calls::num_counts(&sizes)?], DType::I32, indices_tk.device())?;
    let buffers = Buffers {
        indices: op.read("indices", indices_tk)?,
        weights: op.read("weights", weights_tk)?,
        counts: op.write("counts", &mut counts)?,
        tokens_per_expert: op.write("tokens_per_expert", &mut plan.tokens_per_expert_e)?,
        offsets: op.write("offsets", &mut plan.offsets_e)?,
        row_to_token: op.write("row_to_token", &mut plan.row_to_token_r)?,
        token_to_rows: op.write("token_to_rows", &mut plan.token_to_rows_tk)?,
        weights_r: op.write("weights_r", &mut plan.weights_r)?,
    };
    for call in calls::plan(&buffers, &sizes)? {
        // SAFETY: the op made the plan's tensors for these sizes; each call reads what the one before wrote; that the
        // indices are experts is the promise of the router's forward.
        unsafe { op.launch(&call) }?;
    }
    Ok(())
}
