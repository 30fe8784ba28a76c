//! One kernel call, complete: what the device runtime launches and what the tests run on the host are the same value.

use std::ffi::c_void;
use std::fmt;

use super::Launch;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::adamw::AdamW;

/// A kernel with its grid and arguments.
#[derive(Clone, Debug)]
pub struct Call {
    /// The file of `kernels/cuda` that has it.
    pub source: &'static str,
    /// The function.
    pub kernel: String,
    /// Blocks, threads, shared memory.
    pub launch: Launch,
    /// In the kernel's order, with the types it declares.
    pub arguments: Vec<Argument>,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Launch { grid, block, shared_bytes } = self.launch;
        write!(f, "{} <<<{grid:?}, {block:?}, {shared_bytes}>>> {:?}", self.kernel, self.arguments)
    }
}

/// One argument, with the type that the kernel declares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// A device pointer.
    Pointer(*mut c_void),
    /// `int`.
    I32(i32),
    /// `long long`.
    I64(i64),
    /// `float`.
    F32(f32),
    /// `AdamWSettings`.
    AdamW(AdamW),
}

impl Argument {
    /// The pointer of an optional buffer that is not there.
    pub const NULL: Argument = Argument::Pointer(std::ptr::null_mut());

    /// A length or count as `int`.
    ///
    /// # Errors
    /// [`Error::Value`] for 2^31 or more.
    pub fn int(value: usize) -> Result<Self> {
        let error = |_| Error::Value {
            op: "cuda",
            what: "a dimension",
            got: value.to_string(),
            expected: "below 2^31".to_owned(),
        };
        i32::try_from(value).map(Argument::I32).map_err(error)
    }

    /// A length or count as `long long`. Every length of an array fits.
    pub fn long(value: usize) -> Self {
        Argument::I64(value as i64)
    }

    /// A condition as `int`.
    pub fn flag(value: bool) -> Self {
        Argument::I32(i32::from(value))
    }

    /// A pointer that many bytes further on, into the same memory; any other argument as it is.
    pub fn byte_offset(self, bytes: usize) -> Self {
        match self {
            Argument::Pointer(pointer) => Argument::Pointer(pointer.wrapping_byte_add(bytes)),
            other => other,
        }
    }

    /// Where the value lies, as cuLaunchKernel takes it.
    pub fn address(&self) -> *mut c_void {
        let address: *const c_void = match self {
            Argument::Pointer(value) => std::ptr::from_ref(value).cast(),
            Argument::I32(value) => std::ptr::from_ref(value).cast(),
            Argument::I64(value) => std::ptr::from_ref(value).cast(),
            Argument::F32(value) => std::ptr::from_ref(value).cast(),
            Argument::AdamW(value) => std::ptr::from_ref(value).cast(),
        };
        address.cast_mut()
    }
}

/// A buffer of floats of either type: the type picks the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Floats {
    /// Where it begins.
    pub pointer: Argument,
    /// f32 or bf16.
    pub dtype: DType,
}
