//! The arguments of a launch: their addresses are handed over, as cuLaunchKernel takes them.

use std::ffi::c_void;

use wattle_kernels::cuda::adamw::AdamWSettings;

/// One argument, with the type that the kernel declares.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// A device pointer.
    Pointer(*mut c_void),
    /// `int`.
    I32(i32),
    /// `long long`.
    I64(i64),
    /// `float`.
    F32(f32),
    /// The struct of the same name.
    AdamW(AdamWSettings),
}

impl Argument {
    /// The pointer of an optional buffer that is not there.
    pub const NULL: Argument = Argument::Pointer(std::ptr::null_mut());

    /// A length or count as `int`.
    pub fn int(value: usize) -> Self {
        Argument::I32(i32::try_from(value).unwrap())
    }

    /// A length or count as `long long`.
    pub fn long(value: usize) -> Self {
        Argument::I64(i64::try_from(value).unwrap())
    }

    pub(super) fn address(&self) -> *mut c_void {
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
