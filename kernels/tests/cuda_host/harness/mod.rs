//! Running CUDA kernels on the host: the same `.cu` file compiled as C++ against `cuda/host/`, launched with the same
//! argument list as on a device, compared with the f64 reference.

mod buffer;
mod compare;
mod library;

pub use buffer::{Buffer, Value};
pub use compare::{assert_close, bits, indices, values};
pub use library::{Kernels, Order};

pub use wattle_kernels::cuda::Argument;
use wattle_kernels::cuda::Floats;
use wattle_kernels::{DType, bf16};

/// A float element type of the kernels.
pub trait Float: Value {
    /// Which of the two.
    const DTYPE: DType;
    /// How kernel names end.
    const SUFFIX: &str;
    /// What rounding to this type once, after some arithmetic in f32, may change, relative to the value.
    const TOLERANCE: f64;
    /// The nearest value.
    fn from_f64(x: f64) -> Self;
    /// The value.
    fn to_f64(self) -> f64;
}

impl Float for f32 {
    const DTYPE: DType = DType::F32;
    const SUFFIX: &str = "f32";
    const TOLERANCE: f64 = 2e-6;
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Float for bf16 {
    const DTYPE: DType = DType::Bf16;
    const SUFFIX: &str = "bf16";
    const TOLERANCE: f64 = 4.2e-3; // 2^-8, with room for an f32 result on the other side of a tie
    fn from_f64(x: f64) -> Self {
        bf16::from_f64(x)
    }
    fn to_f64(self) -> f64 {
        bf16::to_f64(self)
    }
}

/// A buffer of floats that holds `values`.
pub fn floats<T: Float>(values: &[f64]) -> Buffer<T> {
    Buffer::new(&values.iter().map(|&x| T::from_f64(x)).collect::<Vec<_>>())
}

/// A buffer of floats that nobody has written yet.
pub fn unwritten<T: Float>(len: usize) -> Buffer<T> {
    floats(&vec![f64::NAN; len])
}

/// Runs `f` with blocks and threads in both orders, asserts equal results and returns them. Compare [`bits`] of buffers.
#[track_caller]
pub fn in_both_orders<R: PartialEq>(f: impl Fn(Order) -> R) -> R {
    let forward = f(Order::Forward);
    assert!(f(Order::Reversed) == forward, "another order of blocks and threads gives other bits");
    forward
}
