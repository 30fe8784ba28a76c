//! Attention with online softmax.

use super::Operation;
use crate::cuda::Argument;
use crate::cuda::calls::attention as calls;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::attention::Problem;
use crate::tensor::Tensor;

pub(crate) fn forward(
    problem: &Problem,
    q_bthd: &Tensor,
    k_bsgd: &Tensor,
    v_bsgd: &Tensor,
    o_bthd: &mut Tensor,
    lse_bht: &mut Tensor,
) -> Result<()> {
    let op = Operation::on("attention", q_bthd)?;
    let inputs = [bf16(&op, "q", q_bthd)?, op.read("k", k_bsgd)?, op.read("v", v_bsgd)?];
    let outputs = [op.write("o", o_bthd)?, op.write("lse", lse_bht)?];
    let call = calls::forward(problem, inputs, outputs)?;
    // SAFETY: the op checked that all shapes are the problem's and that q, k, v and o have one dtype: bf16.
    unsafe { op.launch(&call) }
}

/// The tensors are do, q, k, v, o, lse and dq, dk, dv.
pub(crate) fn backward(
    problem: &Problem,
    [do_bthd, q_bthd, k_bsgd, v_bsgd, o_bthd, lse_bht]: [&Tensor; 6],
    [dq_bthd, dk_bsgd, dv_bsgd]: [&mut Tensor; 3],
) -> Result<()> {
    let op = Operation::on("attention_backward", q_bthd)?;
    let mut delta_bht = Tensor::scratch(lse_bht.shape(), DType::F32, q_bthd.device())?;
    let given = calls::Given {
        d_out: op.read("do", do_bthd)?,
        q: bf16(&op, "q", q_bthd)?,
        k: op.read("k", k_bsgd)?,
        v: op.read("v", v_bsgd)?,
        lse: op.read("lse", lse_bht)?,
        delta: op.write("delta", &mut delta_bht)?,
    };
    let of_delta = calls::delta(problem, [given.d_out, op.read("o", o_bthd)?], given.delta)?;
    let of_queries = calls::backward_queries(problem, &given, op.write("dq", dq_bthd)?)?;
    let of_keys =
        calls::backward_keys(problem, &given, [op.write("dk", dk_bsgd)?, op.write("dv", dv_bsgd)?])?;
    for call in [of_delta, of_queries, of_keys] {
        // SAFETY: as in `forward`; delta has the shape of lse and is written by the first of the three.
        unsafe { op.launch(&call) }?;
    }
    Ok(())
}

/// Tensor cores multiply bf16; another dtype would have to be rounded unasked.
fn bf16(op: &Operation, what: &'static str, tensor: &Tensor) -> Result<Argument> {
    match tensor.dtype() {
        DType::Bf16 => op.read(what, tensor),
        got => Err(Error::DType { op: op.name, what, got, expected: "bf16 for attention on a GPU" }),
    }
}
