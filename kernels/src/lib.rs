//! Tensors, devices, and the operations of a sparse transformer as plain forward/backward pairs.
//!
//! Each file in [`ops`] checks shapes and dtypes once and calls the body of the same name for the tensor's
//! device. [`mod@reference`] holds the same mathematics in plain f64 loops: the oracle of every test.
//!
//! Shape suffixes in names: `t` tokens (all leading dimensions folded), `b` batch, `d` model, `h` heads,
//! `f` hidden, `i` input, `o` output, `e` experts, `k` chosen experts, `r` routed rows, `v` vocabulary.

mod cpu;
pub mod cuda;
pub mod device;
pub mod dtype;
pub mod error;
pub mod limits;
pub mod ops;
pub mod peak;
pub mod pool;
pub mod profile;
pub mod reference;
pub mod rng;
pub mod tensor;
#[cfg(test)]
mod testing;

pub use cpu::gemm::bf16_is_fast;
pub use cpu::simd::{SimdLevel, simd_level};
pub use device::Device;
pub use dtype::{DType, Element, bf16};
pub use error::{Error, Result};
pub use tensor::Tensor;
