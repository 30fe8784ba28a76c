//! Embedding look-up: row t of x is the table's row of id t.
//!
//! Shapes: ids (i32) of any shape with t elements, table_vd, x and dx of that shape with d appended. The gradient
//! dtable_vd accumulates in f32, each row in token order.
//! Napkin: forward moves 2·t·d elements; backward reads t·d and reads and writes the rows that occur.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::check;
use crate::profile::{self, Work};
use crate::tensor::{MAX_RANK, Tensor};
use crate::{cpu, cuda};

/// x_td, stored as `out`.
///
/// # Errors
/// Shapes or dtypes that do not fit; an id outside the vocabulary; out of memory.
pub fn forward(ids_t: &Tensor, table_vd: &Tensor, out: DType) -> Result<Tensor> {
    const OP: &str = "embedding";
    check::rank(OP, "table", table_vd, 2)?;
    check::float(OP, "table", table_vd)?;
    check_ids(OP, ids_t, table_vd.num_rows())?;
    let per_row = table_vd.last_dim() * (table_vd.dtype().size_in_bytes() + out.size_in_bytes());
    let _span = profile::span(OP, table_vd.dtype(), || Work::pass(per_row * ids_t.num_elements()));
    let mut x_td = Tensor::scratch(&with_dim(ids_t, table_vd.last_dim()), out, table_vd.device())?;
    check::float(OP, "x", &x_td)?;
    match table_vd.device() {
        Device::Cpu => cpu::embedding::forward(ids_t, table_vd, &mut x_td)?,
        Device::Cuda(_) => cuda::ops::embedding::forward(ids_t, table_vd, &mut x_td)?,
    }
    Ok(x_td)
}

/// dtable_vd (f32) gains the gradient; the same bits for any thread count.
///
/// # Errors
/// Shapes or dtypes that do not fit; an id outside the vocabulary; out of memory.
pub fn backward(dx_td: &Tensor, ids_t: &Tensor, dtable_vd: &mut Tensor) -> Result<()> {
    const OP: &str = "embedding_backward";
    check::rank(OP, "dtable", dtable_vd, 2)?;
    check::dtype(OP, "dtable", dtable_vd, DType::F32)?;
    check_ids(OP, ids_t, dtable_vd.num_rows())?;
    check::float(OP, "dx", dx_td)?;
    check::shape(OP, "dx", dx_td, &with_dim(ids_t, dtable_vd.last_dim()))?;
    // Rows that occur twice are counted twice: which ones do is not known here.
    let onto = 2 * dx_td.num_elements() * dtable_vd.dtype().size_in_bytes();
    let _span = profile::span(OP, dx_td.dtype(), || Work::pass(dx_td.size_in_bytes() + onto));
    match dx_td.device() {
        Device::Cpu => cpu::embedding::backward(dx_td, ids_t, dtable_vd),
        Device::Cuda(_) => cuda::ops::embedding::backward(dx_td, ids_t, dtable_vd),
    }
}

fn with_dim(ids_t: &Tensor, dim: usize) -> Vec<usize> {
    [ids_t.shape(), &[dim]].concat()
}

fn check_ids(op: &'static str, ids_t: &Tensor, num_ids: usize) -> Result<()> {
    check::dtype(op, "ids", ids_t, DType::I32)?;
    if ids_t.shape().len() == MAX_RANK {
        let expected = format!("fewer than {MAX_RANK} dimensions");
        return Err(Error::Shape { op, what: "ids", got: ids_t.shape().to_vec(), expected });
    }
    if ids_t.device() != Device::Cpu {
        // Looking at them would wait for the GPU; an id outside gives a row of NaN there, reads nothing and has no
        // gradient.
        return Ok(());
    }
    let outside = |id: &&i32| usize::try_from(**id).map_or(true, |id| id >= num_ids);
    match ids_t.data::<i32>()?.iter().find(outside) {
        None => Ok(()),
        Some(id) => Err(Error::Value {
            op,
            what: "id",
            got: id.to_string(),
            expected: format!("at least 0 and below the vocabulary of {num_ids}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::rng::{Philox, Purpose};
    use crate::testing::{assert_close, bits, in_pools, tensor, values};

    /// Ids of which the first few occur often, as in text.
    fn ids(n: usize, num_ids: usize) -> Vec<usize> {
        let rng = Philox::new(9, Purpose::Synthetic, 0);
        (0..n as u64).map(|i| (rng.uniform(i).powi(3) * num_ids as f64) as usize).collect()
    }

    fn id_tensor(ids: &[usize], shape: &[usize]) -> Tensor {
        let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        Tensor::from_slice(&ids, shape).unwrap()
    }

    #[test]
    fn forward_and_backward_follow_the_reference() {
        for (shape, v, d) in [([1, 1], 1, 1), ([2, 3], 5, 7), ([0, 3], 2, 2), ([3, 50], 301, 129)] {
            let t = shape[0] * shape[1];
            let ids = ids(t, v);
            let (table, dx, base) = (values(v * d, 1), values(t * d, 2), values(v * d, 3));
            let x = reference::embedding::forward(&ids, &table, d);
            let gradient = reference::embedding::backward(&dx, &ids, v, d);
            let dtable = reference::elementwise::add(&gradient, &base);
            let ids = id_tensor(&ids, &shape);
            for dtype in [DType::F32, DType::Bf16] {
                for out in [DType::F32, DType::Bf16] {
                    let got = forward(&ids, &tensor(&table, &[v, d], dtype), out).unwrap();
                    assert_eq!((got.shape(), got.dtype()), (&[shape[0], shape[1], d][..], out));
                    assert_close(&got, &x, 0.0);
                }
                let mut got = tensor(&base, &[v, d], DType::F32);
                backward(&tensor(&dx, &[shape[0], shape[1], d], dtype), &ids, &mut got).unwrap();
                assert_close(&got, &dtable, 1e-5);
            }
        }
    }

    #[test]
    fn results_have_the_same_bits_for_any_thread_count() {
        let (t, v, d) = (400, 301, 129);
        let ids = id_tensor(&ids(t, v), &[t]);
        let table = tensor(&values(v * d, 1), &[v, d], DType::F32);
        let dx = tensor(&values(t * d, 2), &[t, d], DType::F32);
        in_pools(|| {
            let mut dtable = table.clone();
            backward(&dx, &ids, &mut dtable).unwrap();
            [forward(&ids, &table, DType::Bf16).unwrap(), dtable].map(|tensor| bits(&tensor))
        });
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_named() {
        let mut table = Tensor::zeros(&[5, 2], DType::F32, Device::Cpu).unwrap();
        let bad = Tensor::from_slice(&[0, 4, 5], &[3]).unwrap();
        let negative = Tensor::from_slice(&[-1], &[1]).unwrap();
        assert_eq!(
            forward(&bad, &table, DType::F32).unwrap_err().to_string(),
            "embedding: id is 5, expected at least 0 and below the vocabulary of 5"
        );
        let dx = Tensor::zeros(&[1, 2], DType::F32, Device::Cpu).unwrap();
        assert_eq!(
            backward(&dx, &negative, &mut table).unwrap_err().to_string(),
            "embedding_backward: id is -1, expected at least 0 and below the vocabulary of 5"
        );
    }

    #[test]
    fn operands_that_do_not_fit_are_named() {
        let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, Device::Cpu).unwrap();
        let ids = zeros(&[3], DType::I32);
        let table = zeros(&[5, 2], DType::F32);
        let error = |ids: &Tensor, table: &Tensor, out| forward(ids, table, out).unwrap_err().to_string();
        assert_eq!(error(&table, &table, DType::F32), "embedding: ids is f32, expected i32");
        assert_eq!(error(&ids, &ids, DType::F32), "embedding: table has shape [3], expected 2 dimensions");
        assert_eq!(error(&ids, &table, DType::U8), "embedding: x is u8, expected f32 or bf16");
        let deep = zeros(&[1, 1, 1, 1], DType::I32);
        assert_eq!(
            error(&deep, &table, DType::F32),
            "embedding: ids has shape [1, 1, 1, 1], expected fewer than 4 dimensions"
        );
        let dx = zeros(&[3, 3], DType::F32);
        assert_eq!(
            backward(&dx, &ids, &mut table.clone()).unwrap_err().to_string(),
            "embedding_backward: dx has shape [3, 3], expected [3, 2]"
        );
    }
}
