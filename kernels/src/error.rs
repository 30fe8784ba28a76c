//! What can go wrong in a kernel call, with what was expected and what was given.

use crate::device::Device;
use crate::dtype::DType;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// An operation was called with something it cannot work on, or memory ran out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A tensor's shape does not fit.
    #[error("{op}: {what} has shape {got:?}, expected {expected}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// Which argument.
        what: &'static str,
        /// The shape given.
        got: Vec<usize>,
        /// The shape wanted, in words or numbers.
        expected: String,
    },
    /// A tensor's element type does not fit.
    #[error("{op}: {what} is {got}, expected {expected}")]
    DType {
        /// The operation.
        op: &'static str,
        /// Which argument.
        what: &'static str,
        /// The type given.
        got: DType,
        /// The type wanted.
        expected: &'static str,
    },
    /// A value inside a tensor or a setting is outside its range.
    #[error("{op}: {what} is {got}, expected {expected}")]
    Value {
        /// The operation.
        op: &'static str,
        /// Which value.
        what: &'static str,
        /// The value given.
        got: String,
        /// The range wanted.
        expected: String,
    },
    /// The device has no memory left for a buffer.
    #[error(
        "out of memory: {bytes} bytes more were asked for while {live_bytes} bytes were in use; \
         use a smaller micro-batch, sequence or model"
    )]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes in use at that moment.
        live_bytes: usize,
    },
    /// A tensor lies on another device than the operation's.
    #[error("{op}: {what} is on {got}, expected on {expected}; move it with Tensor::to_device")]
    Placement {
        /// The operation.
        op: &'static str,
        /// Which argument.
        what: &'static str,
        /// Where it is.
        got: Device,
        /// Where the others are.
        expected: Device,
    },
    /// An operation that this device has no body for.
    #[error("{op} is not on {device} yet; run it on the cpu")]
    Unsupported {
        /// The operation.
        op: &'static str,
        /// The device.
        device: Device,
    },
    /// A CUDA library is missing, refused a call, or a kernel failed.
    #[error("CUDA: {during}: {detail}")]
    Cuda {
        /// What was done: the call, the kernel or the file.
        during: String,
        /// CUDA's own text, and what to do where that is known.
        detail: String,
    },
}
