//! The routing plan on the CPU: one count, one prefix sum and one pass that places.

use crate::error::Result;
use crate::ops::routing_plan::RoutingPlan;
use crate::tensor::Tensor;

/// The indices are experts, as the op checked.
pub(crate) fn plan(
    indices_tk: &Tensor,
    weights_tk: &Tensor,
    capacity: usize,
    plan: &mut RoutingPlan,
) -> Result<()> {
    let (experts, weights) = (indices_tk.data::<i32>()?, weights_tk.data::<f32>()?);
    let tokens_per_expert = plan.tokens_per_expert_e.data_mut::<i32>()?;
    tokens_per_expert.fill(0);
    for &expert in experts {
        tokens_per_expert[expert as usize] += 1;
    }
    let offsets = plan.offsets_e.data_mut::<i32>()?;
    offsets[0] = 0;
    for (expert, &tokens) in tokens_per_expert.iter().enumerate() {
        // No more than an i32 counts, as the op checked.
        offsets[expert + 1] = offsets[expert] + tokens.min(capacity as i32);
    }
    let row_to_token = plan.row_to_token_r.data_mut::<i32>()?;
    let token_to_rows = plan.token_to_rows_tk.data_mut::<i32>()?;
    let weights_r = plan.weights_r.data_mut::<f32>()?;
    row_to_token.fill(-1);
    token_to_rows.fill(-1);
    weights_r.fill(0.0);
    let mut next_row = offsets.to_vec();
    for (assignment, &expert) in experts.iter().enumerate() {
        let expert = expert as usize;
        let row = next_row[expert];
        if row < offsets[expert + 1] {
            next_row[expert] += 1;
            row_to_token[row as usize] = (assignment / indices_tk.last_dim()) as i32;
            token_to_rows[assignment] = row;
            weights_r[row as usize] = weights[assignment];
        }
    }
    Ok(())
}
