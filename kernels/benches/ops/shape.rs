//! The presets' shapes, and tensors filled for them.

use std::fmt;

use wattle_kernels::rng::{Philox, Purpose};
use wattle_kernels::{DType, Tensor, bf16};

/// What the operations see of a preset, in one element type.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub preset: &'static str,
    pub dtype: DType,
    pub vocab: usize,
    pub d_model: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub sequence: usize,
    pub batch: usize,
    pub experts: usize,
    pub top_k: usize,
    pub hidden: usize,
}

impl Case {
    pub fn tokens(&self) -> usize {
        self.batch * self.sequence
    }

    pub fn head_dim(&self) -> usize {
        self.d_model / self.heads
    }

    /// Rows that the experts work on.
    pub fn routed_rows(&self) -> usize {
        self.tokens() * self.top_k
    }

    /// Normal values in the case's element type; another `stream` gives others.
    pub fn tensor(&self, shape: &[usize], stream: u64) -> Tensor {
        normals(shape, stream, self.dtype)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.preset, self.dtype)
    }
}

/// Each preset in both float types.
pub fn cases() -> Vec<Case> {
    let of = |dtype| PRESETS.map(|case| Case { dtype, ..case });
    [of(DType::F32), of(DType::Bf16)].concat()
}

/// Each preset in f32, for operations that know nothing else.
pub fn f32_cases() -> Vec<Case> {
    PRESETS.to_vec()
}

#[rustfmt::skip]
const PRESETS: [Case; 3] = [
    Case { preset: "S", dtype: DType::F32, vocab: 4096, d_model: 256, heads: 8, kv_heads: 4, sequence: 256, batch: 16,
           experts: 8, top_k: 2, hidden: 512 },
    Case { preset: "M", dtype: DType::F32, vocab: 8192, d_model: 512, heads: 8, kv_heads: 4, sequence: 512, batch: 8,
           experts: 16, top_k: 2, hidden: 768 },
    Case { preset: "F", dtype: DType::F32, vocab: 8192, d_model: 512, heads: 8, kv_heads: 4, sequence: 512, batch: 8,
           experts: 64, top_k: 8, hidden: 256 },
];

/// Normal values in `dtype`.
pub fn normals(shape: &[usize], stream: u64, dtype: DType) -> Tensor {
    let rng = Philox::new(1, Purpose::Synthetic, stream);
    let values = (0..shape.iter().product::<usize>() as u64).map(|i| rng.normal(i));
    match dtype {
        DType::Bf16 => Tensor::from_slice(&values.map(bf16::from_f64).collect::<Vec<_>>(), shape),
        _ => Tensor::from_slice(&values.map(|x| x as f32).collect::<Vec<_>>(), shape),
    }
    .unwrap()
}

/// Integers below `limit` in no order.
pub fn integers(shape: &[usize], limit: usize) -> Tensor {
    let rng = Philox::new(2, Purpose::Synthetic, 0);
    let values = (0..shape.iter().product::<usize>() as u64).map(|i| rng.below(i, limit as u64) as i32);
    Tensor::from_slice(&values.collect::<Vec<_>>(), shape).unwrap()
}

/// Bytes of all tensors together.
pub fn bytes(tensors: &[&Tensor]) -> divan::counter::BytesCount {
    divan::counter::BytesCount::new(tensors.iter().map(|tensor| tensor.size_in_bytes()).sum::<usize>())
}

/// FLOPs, shown as items.
pub fn flops(count: usize) -> divan::counter::ItemsCount {
    divan::counter::ItemsCount::new(count)
}
