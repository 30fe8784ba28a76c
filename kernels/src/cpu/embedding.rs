//! Embedding look-up on the CPU.

use std::ops::Range;

use super::float::Float;
use super::parallel;
use super::simd::vectorised;
use crate::dtype::{DType, bf16};
use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) fn forward(ids_t: &Tensor, table_vd: &Tensor, x_td: &mut Tensor) -> Result<()> {
    let (ids, d) = (ids_t.data()?, table_vd.last_dim());
    match (table_vd.dtype(), x_td.dtype()) {
        (DType::Bf16, DType::Bf16) => gather::<bf16, bf16>(ids, table_vd.data()?, x_td.data_mut()?, d),
        (DType::Bf16, _) => gather::<bf16, f32>(ids, table_vd.data()?, x_td.data_mut()?, d),
        (_, DType::Bf16) => gather::<f32, bf16>(ids, table_vd.data()?, x_td.data_mut()?, d),
        _ => gather::<f32, f32>(ids, table_vd.data()?, x_td.data_mut()?, d),
    }
    Ok(())
}

pub(crate) fn backward(dx_td: &Tensor, ids_t: &Tensor, dtable_vd: &mut Tensor) -> Result<()> {
    let (v, d) = (dtable_vd.num_rows(), dtable_vd.last_dim());
    let tokens = TokensById::new(ids_t.data()?, v);
    match dx_td.dtype() {
        DType::Bf16 => scatter_add::<bf16>(dx_td.data()?, &tokens, dtable_vd.data_mut()?, d),
        _ => scatter_add::<f32>(dx_td.data()?, &tokens, dtable_vd.data_mut()?, d),
    }
    Ok(())
}

fn gather<W: Float, X: Float>(ids: &[i32], table: &[W], x: &mut [X], d: usize) {
    if d == 0 {
        return;
    }
    let rows = parallel::rows_per_block(d * (size_of::<W>() + size_of::<X>()));
    parallel::for_each(ids.chunks(rows).zip(x.chunks_mut(rows * d)), |(ids, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (&id, x) in ids.iter().zip(x.chunks_exact_mut(d)) {
                    for (x, w) in x.iter_mut().zip(&table[id as usize * d..][..d]) {
                        *x = X::store(w.load());
                    }
                }
            },
        );
    });
}

/// Each task owns some rows of the table and adds their tokens in token order, so no two tasks write one row and the
/// order of the sum is fixed.
fn scatter_add<T: Float>(dx: &[T], tokens: &TokensById, dtable: &mut [f32], d: usize) {
    if d == 0 {
        return;
    }
    let rows = parallel::rows_per_block(d * size_of::<f32>());
    parallel::for_each(dtable.chunks_mut(rows * d).enumerate(), |(block, dtable)| {
        vectorised(
            #[inline(always)]
            || {
                for (i, row) in dtable.chunks_exact_mut(d).enumerate() {
                    for &t in &tokens.order[tokens.range(block * rows + i)] {
                        for (sum, dx) in row.iter_mut().zip(&dx[t as usize * d..][..d]) {
                            *sum += dx.load();
                        }
                    }
                }
            },
        );
    });
}

/// Token numbers sorted by id, rising within one id: a counting sort.
struct TokensById {
    order: Vec<u32>,
    /// Where the tokens of each id end in `order`.
    ends: Vec<u32>,
}

impl TokensById {
    fn new(ids: &[i32], num_ids: usize) -> Self {
        let mut ends = vec![0u32; num_ids + 1];
        for &id in ids {
            ends[id as usize + 1] += 1;
        }
        for id in 0..num_ids {
            ends[id + 1] += ends[id];
        }
        // Now ends[id] is where id starts; placing its tokens moves it to where they end.
        let mut order = vec![0; ids.len()];
        for (t, &id) in ids.iter().enumerate() {
            let at = &mut ends[id as usize];
            order[*at as usize] = t as u32;
            *at += 1;
        }
        TokensById { order, ends }
    }

    fn range(&self, id: usize) -> Range<usize> {
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        start as usize..self.ends[id] as usize
    }
}
