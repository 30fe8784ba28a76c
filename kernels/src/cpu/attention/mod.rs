//! Attention on the CPU.
//!
//! Queries go in blocks of [`QUERY_BLOCK`] and inside them in panels of `ROWS`, keys in tiles of [`KEY_TILE`]. Keys
//! and values of one key/value head are laid out once per task for the products: in f32, head size padded to whole
//! registers, and transposed where keys are the columns. Each (query block, key tile) pair is then a few small
//! products, and a panel skips the columns that its mask hides.
//!
//! Every output row is written by one task, which walks tiles in a fixed order: equal bits for any thread count.

mod backward;
mod forward;
mod layout;
mod product;
mod visible;
#[cfg(target_arch = "x86_64")]
mod weights_avx512;

use crate::cpu::float::Float;
use crate::cpu::parallel;
use crate::dtype::{DType, bf16};
use crate::error::Result;
use crate::ops::attention::Problem;
use crate::tensor::Tensor;
use layout::Shared;

/// Queries that share one pass over the keys.
const QUERY_BLOCK: usize = 64;
/// Keys of one step of the online softmax.
const KEY_TILE: usize = 128;
/// With fewer (batch, key/value head) pairs than this, the forward pass is cut further, by query blocks. More tasks
/// lay out the same keys more than once, fewer leave threads idle.
const MIN_FORWARD_TASKS: usize = 64;

pub(crate) fn forward(
    problem: &Problem,
    q_bthd: &Tensor,
    k_bsgd: &Tensor,
    v_bsgd: &Tensor,
    o_bthd: &mut Tensor,
    lse_bht: &mut Tensor,
) -> Result<()> {
    match q_bthd.dtype() {
        DType::Bf16 => forward_in::<bf16>(problem, [q_bthd, k_bsgd, v_bsgd], o_bthd, lse_bht),
        _ => forward_in::<f32>(problem, [q_bthd, k_bsgd, v_bsgd], o_bthd, lse_bht),
    }
}

fn forward_in<F: Float>(
    problem: &Problem,
    [q_bthd, k_bsgd, v_bsgd]: [&Tensor; 3],
    o_bthd: &mut Tensor,
    lse_bht: &mut Tensor,
) -> Result<()> {
    let inputs = [q_bthd.data::<F>()?, k_bsgd.data::<F>()?, v_bsgd.data::<F>()?];
    let (o_bthd, lse_bht) = (Shared::new(o_bthd.data_mut::<F>()?), Shared::new(lse_bht.data_mut::<f32>()?));
    let num_heads = problem.batch * problem.num_kv_heads;
    let num_blocks = problem.num_queries.div_ceil(QUERY_BLOCK);
    let num_splits = MIN_FORWARD_TASKS.div_ceil(num_heads.max(1)).min(num_blocks);
    let tasks = (0..num_heads).flat_map(|head| (0..num_splits).map(move |split| (head, split)));
    parallel::map(tasks, |(head, split)| {
        let blocks = (split..num_blocks).step_by(num_splits);
        forward::blocks(problem, head, blocks, inputs, &o_bthd, &lse_bht)
    })
    .into_iter()
    .collect()
}

/// Inputs do, q, k, v, o, lse; outputs dq, dk, dv. One task owns a key/value head of one sequence with all the query
/// heads that read it: dk and dv need no second pass and no sum over threads.
pub(crate) fn backward(problem: &Problem, inputs: [&Tensor; 6], outputs: [&mut Tensor; 3]) -> Result<()> {
    match inputs[0].dtype() {
        DType::Bf16 => backward_in::<bf16>(problem, inputs, outputs),
        _ => backward_in::<f32>(problem, inputs, outputs),
    }
}

fn backward_in<F: Float>(
    problem: &Problem,
    [do_bthd, q_bthd, k_bsgd, v_bsgd, o_bthd, lse_bht]: [&Tensor; 6],
    [dq_bthd, dk_bsgd, dv_bsgd]: [&mut Tensor; 3],
) -> Result<()> {
    let inputs = backward::Inputs {
        do_bthd: do_bthd.data::<F>()?,
        q_bthd: q_bthd.data::<F>()?,
        k_bsgd: k_bsgd.data::<F>()?,
        v_bsgd: v_bsgd.data::<F>()?,
        o_bthd: o_bthd.data::<F>()?,
        lse_bht: lse_bht.data::<f32>()?,
    };
    let outputs = backward::Outputs {
        dq_bthd: Shared::new(dq_bthd.data_mut::<F>()?),
        dk_bsgd: Shared::new(dk_bsgd.data_mut::<F>()?),
        dv_bsgd: Shared::new(dv_bsgd.data_mut::<F>()?),
    };
    parallel::map(0..problem.batch * problem.num_kv_heads, |head| {
        backward::head(problem, head, &inputs, &outputs)
    })
    .into_iter()
    .collect()
}
