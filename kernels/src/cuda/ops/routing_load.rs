//! The load of the experts.

use super::Operation;
use crate::cuda::calls::routing_load as calls;
use crate::error::Result;
use crate::ops::routing_plan::RoutingPlan;
use crate::tensor::Tensor;

pub(crate) fn add(plan: &RoutingPlan, entropy_t: &Tensor, sums: &mut Tensor) -> Result<()> {
    let op = Operation::on("routing_tally", entropy_t)?;
    let buffers = [
        op.read("tokens_per_expert", &plan.tokens_per_expert_e)?,
        op.read("offsets", &plan.offsets_e)?,
        op.read("entropy", entropy_t)?,
        op.write("tally", sums)?,
    ];
    let call = calls::add(buffers, [entropy_t.num_elements(), plan.tokens_per_expert_e.num_elements()])?;
    // SAFETY: the op checked the shapes, and the tally was made for this number of experts.
    unsafe { op.launch(&call) }
}

pub(crate) fn by_group(indices_tk: &Tensor, load_ge: &mut Tensor) -> Result<()> {
    let op = Operation::on("routing_group_load", indices_tk)?;
    let buffers = [op.read("indices", indices_tk)?, op.write("load", load_ge)?];
    let shape @ [groups, _] = [load_ge.num_rows(), load_ge.last_dim()];
    let call = calls::by_group(buffers, shape, indices_tk.num_elements() / groups)?;
    // SAFETY: the groups divide the indices, as the op checked; that they are experts is the router's promise.
    unsafe { op.launch(&call) }
}

pub(crate) fn shares(load_ge: &Tensor, earlier_e: Option<&Tensor>, shares_ge: &mut Tensor) -> Result<()> {
    let op = Operation::on("routing_shares", load_ge)?;
    let earlier = op.read_optional("earlier_load", earlier_e)?;
    let buffers = [op.read("load", load_ge)?, earlier, op.write("shares", shares_ge)?];
    let call = calls::shares(buffers, [load_ge.num_rows(), load_ge.last_dim()])?;
    // SAFETY: the op checked shapes and dtypes.
    unsafe { op.launch(&call) }
}

pub(crate) fn update_bias(bias_e: &mut Tensor, load_e: &Tensor, rate: f32) -> Result<()> {
    let op = Operation::on("routing_update_bias", bias_e)?;
    let e = bias_e.num_elements();
    let call = calls::update_bias([op.write("bias", bias_e)?, op.read("load", load_e)?], e, rate)?;
    // SAFETY: the op checked shapes and dtypes.
    unsafe { op.launch(&call) }
}
