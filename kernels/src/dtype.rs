//! The five element types a tensor can hold, and no others.

pub use half::bf16;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float: master weights, optimizer state, router, reductions.
    F32,
    /// bfloat16: compute copies of weights, activations.
    Bf16,
    /// 32-bit signed integer: token ids, routing maps.
    I32,
    /// 8-bit signed integer: quantised values.
    I8,
    /// 8-bit unsigned integer: masks, quantised values.
    U8,
}

impl DType {
    /// Size of one element in bytes.
    pub fn size_in_bytes(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::Bf16 => 2,
            DType::I8 | DType::U8 => 1,
        }
    }

    /// The lower-case name used in messages and files.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::I32 => "i32",
            DType::I8 => "i8",
            DType::U8 => "u8",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A Rust type that can be a tensor's element. Every bit pattern of it is a valid value.
pub trait Element: Copy + Send + Sync + 'static + sealed::Sealed {
    /// The dtype this type stores.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}
elements!(f32 => F32, bf16 => Bf16, i32 => I32, i8 => I8, u8 => U8);
