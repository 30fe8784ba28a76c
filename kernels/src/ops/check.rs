//! Shape and dtype checks that every operation shares.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// `tensor` must have exactly `shape`.
pub(crate) fn shape(op: &'static str, what: &'static str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.shape() == shape {
        return Ok(());
    }
    Err(Error::Shape { op, what, got: tensor.shape().to_vec(), expected: format!("{shape:?}") })
}

/// The last dimension of `tensor` must be `dim`.
pub(crate) fn last_dim(op: &'static str, what: &'static str, tensor: &Tensor, dim: usize) -> Result<()> {
    if tensor.last_dim() == dim && !tensor.shape().is_empty() {
        return Ok(());
    }
    Err(Error::Shape { op, what, got: tensor.shape().to_vec(), expected: format!("last dimension {dim}") })
}

/// `tensor` must have `rank` dimensions.
pub(crate) fn rank(op: &'static str, what: &'static str, tensor: &Tensor, rank: usize) -> Result<()> {
    if tensor.shape().len() == rank {
        return Ok(());
    }
    Err(Error::Shape { op, what, got: tensor.shape().to_vec(), expected: format!("{rank} dimensions") })
}

/// `tensor` must hold `dtype`.
pub(crate) fn dtype(op: &'static str, what: &'static str, tensor: &Tensor, dtype: DType) -> Result<()> {
    if tensor.dtype() == dtype {
        return Ok(());
    }
    Err(Error::DType { op, what, got: tensor.dtype(), expected: dtype.name() })
}

/// `tensor` must hold f32 or bf16.
pub(crate) fn float(op: &'static str, what: &'static str, tensor: &Tensor) -> Result<()> {
    match tensor.dtype() {
        DType::F32 | DType::Bf16 => Ok(()),
        got => Err(Error::DType { op, what, got, expected: "f32 or bf16" }),
    }
}
