//! Moving rows between token order and expert order.
//!
//! Shapes: x_td, rows (i32) `[r]`, x_rd; y_rd, token_rows (i32) `[t, k]`, out_td. Both take f32 and bf16.
//! gather: `x_r = x[rows_r]`. gather_sum: `out_t = Σ_k y[token_rows_tk]`. An index of -1 stands for no row: zeros in
//! gather, skipped in gather_sum. On a GPU the indices are not looked at: whoever makes them keeps them in range.
//!
//! When `token_rows` is the inverse map of `rows`, each is the other's backward:
//! dx = gather_sum(dx_rd, token_rows) and dy = gather(dout_td, rows). The sum reads each row where it lies, in the
//! order of k, so no two threads add to one place and the bits never change.
//! Napkin: gather moves 2·r·d elements, gather_sum (r + t)·d.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::check;
use crate::profile::{self, Work, bytes_of};
use crate::tensor::Tensor;
use crate::{cpu, cuda};

/// x_rd: row r is `x[rows[r]]`, or zeros where the index is -1. Leading dimensions of x are folded into t.
///
/// # Errors
/// Shapes or dtypes that do not fit; an index outside -1..t; out of memory.
pub fn gather(x_td: &Tensor, rows_r: &Tensor) -> Result<Tensor> {
    const OP: &str = "gather";
    check::float(OP, "x", x_td)?;
    check::rank(OP, "rows", rows_r, 1)?;
    check_indices(OP, "rows", rows_r, x_td.num_rows())?;
    let row_bytes = x_td.last_dim() * x_td.dtype().size_in_bytes();
    let bytes = || 2 * rows_r.num_elements() * row_bytes + rows_r.size_in_bytes();
    let _span = profile::span(OP, x_td.dtype(), || Work::pass(bytes()));
    let mut x_rd = Tensor::scratch(&[rows_r.num_elements(), x_td.last_dim()], x_td.dtype(), x_td.device())?;
    match x_td.device() {
        Device::Cpu => cpu::permute::gather(x_td, rows_r, &mut x_rd)?,
        Device::Cuda(_) => cuda::ops::permute::gather(x_td, rows_r, &mut x_rd)?,
    }
    Ok(x_rd)
}

/// out_td: row t is the sum of the rows `y[token_rows[t, k]]`, taken in f32 in the order of k, -1 skipped.
///
/// # Errors
/// Shapes or dtypes that do not fit; an index outside -1..r; out of memory.
pub fn gather_sum(y_rd: &Tensor, token_rows_tk: &Tensor) -> Result<Tensor> {
    const OP: &str = "gather_sum";
    check::float(OP, "y", y_rd)?;
    check::rank(OP, "y", y_rd, 2)?;
    check::rank(OP, "token_rows", token_rows_tk, 2)?;
    check_indices(OP, "token_rows", token_rows_tk, y_rd.num_rows())?;
    let out_bytes = token_rows_tk.num_rows() * y_rd.last_dim() * y_rd.dtype().size_in_bytes();
    let bytes = || bytes_of(&[y_rd, token_rows_tk]) + out_bytes;
    let _span = profile::span(OP, y_rd.dtype(), || Work::pass(bytes()));
    let mut out_td =
        Tensor::scratch(&[token_rows_tk.num_rows(), y_rd.last_dim()], y_rd.dtype(), y_rd.device())?;
    match y_rd.device() {
        Device::Cpu => cpu::permute::gather_sum(y_rd, token_rows_tk, &mut out_td)?,
        Device::Cuda(_) => cuda::ops::permute::gather_sum(y_rd, token_rows_tk, &mut out_td)?,
    }
    Ok(out_td)
}

fn check_indices(op: &'static str, what: &'static str, indices: &Tensor, num_rows: usize) -> Result<()> {
    check::dtype(op, what, indices, DType::I32)?;
    if indices.device() != Device::Cpu {
        // Looking at them would wait for the GPU; they come from a plan that was made there.
        return Ok(());
    }
    let fits = |index: i32| index == -1 || usize::try_from(index).is_ok_and(|index| index < num_rows);
    match indices.data::<i32>()?.iter().position(|&index| !fits(index)) {
        None => Ok(()),
        Some(place) => Err(Error::Value {
            op,
            what,
            got: format!("{} at place {place}", indices.data::<i32>()?[place]),
            expected: format!("a row below {num_rows}, or -1 for none"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::permute as reference;
    use crate::testing::{assert_close, bits, dot, in_pools, tensor, values};

    const T: usize = 37;
    const K: usize = 3;
    const D: usize = 70;

    /// A map [t, k] -> row with holes, and its inverse.
    fn maps() -> (Tensor, Tensor) {
        let mut token_rows = vec![-1; T * K];
        let mut rows = Vec::new();
        for slot in 0..K {
            for t in 0..T {
                if (t + 2 * slot) % 5 != 0 {
                    token_rows[t * K + slot] = rows.len() as i32;
                    rows.push(t as i32);
                }
            }
        }
        let rows_r = Tensor::from_slice(&rows, &[rows.len()]).unwrap();
        (rows_r, Tensor::from_slice(&token_rows, &[T, K]).unwrap())
    }

    #[test]
    fn gather_copies_rows_exactly_and_gives_zeros_for_none() {
        let rows = [2, -1, 0, 2, 36];
        let rows_r = Tensor::from_slice(&rows, &[5]).unwrap();
        let x = values(T * D, 1);
        for dtype in [DType::F32, DType::Bf16] {
            let x_rd = gather(&tensor(&x, &[T, D], dtype), &rows_r).unwrap();
            assert_eq!(x_rd.shape(), [5, D]);
            assert_close(&x_rd, &reference::gather(&x, &rows, D), 0.0);
        }
    }

    #[test]
    fn gather_sum_follows_the_reference() {
        let (rows_r, token_rows_tk) = maps();
        let r = rows_r.num_elements();
        let y = values(r * D, 2);
        let want = reference::gather_sum(&y, token_rows_tk.data().unwrap(), K, D);
        for (dtype, rel) in [(DType::F32, 1e-6), (DType::Bf16, 4e-3)] {
            let out_td = gather_sum(&tensor(&y, &[r, D], dtype), &token_rows_tk).unwrap();
            assert_eq!((out_td.shape(), out_td.dtype()), (&[T, D][..], dtype));
            assert_close(&out_td, &want, rel);
        }
    }

    /// <gather(x), y> = <x, gather_sum(y)>: what being each other's backward means for linear maps.
    #[test]
    fn gather_and_gather_sum_are_each_others_backward() {
        let (rows_r, token_rows_tk) = maps();
        let r = rows_r.num_elements();
        let (x, y) = (values(T * D, 3), values(r * D, 4));
        let gathered = gather(&tensor(&x, &[T, D], DType::F32), &rows_r).unwrap();
        let summed = gather_sum(&tensor(&y, &[r, D], DType::F32), &token_rows_tk).unwrap();
        let f64s = |t: &Tensor| t.to_f32_vec().unwrap().into_iter().map(f64::from).collect::<Vec<_>>();
        let (left, right) = (dot(&f64s(&gathered), &y), dot(&x, &f64s(&summed)));
        assert!((left - right).abs() < 1e-4 * left.abs().max(1.0), "{left} {right}");
    }

    #[test]
    fn thread_count_does_not_change_a_bit() {
        let (rows_r, token_rows_tk) = maps();
        let r = rows_r.num_elements();
        // Wide rows, so that the work is cut into several blocks.
        let y = tensor(&values(r * 4096, 5), &[r, 4096], DType::F32);
        in_pools(|| {
            let out = gather_sum(&y, &token_rows_tk).unwrap();
            (bits(&out), bits(&gather(&out, &rows_r).unwrap()))
        });
    }

    #[test]
    fn an_index_without_a_row_is_an_error_that_names_it() {
        let x = tensor(&values(8, 6), &[2, 4], DType::F32);
        for bad in [2, -2, i32::MIN] {
            let rows_r = Tensor::from_slice(&[0, bad], &[2]).unwrap();
            let error = gather(&x, &rows_r).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("gather: rows is {bad} at place 1, expected a row below 2, or -1 for none")
            );
            let token_rows_tk = rows_r.reshape(&[1, 2]).unwrap();
            assert!(matches!(gather_sum(&x, &token_rows_tk), Err(Error::Value { .. })));
        }
    }

    #[test]
    fn wrong_shapes_and_dtypes_are_errors() {
        let x = tensor(&values(8, 6), &[2, 4], DType::F32);
        let ids = Tensor::from_slice(&[0, 1], &[2]).unwrap();
        let pairs = ids.reshape(&[1, 2]).unwrap();
        assert!(matches!(gather(&x, &pairs), Err(Error::Shape { what: "rows", .. })));
        assert!(matches!(gather_sum(&x, &ids), Err(Error::Shape { what: "token_rows", .. })));
        assert!(matches!(gather(&x, &x.reshape(&[8]).unwrap()), Err(Error::DType { what: "rows", .. })));
        assert!(matches!(gather(&ids, &ids), Err(Error::DType { what: "x", .. })));
    }

    #[test]
    fn empty_operands_give_empty_or_zero_results() {
        let empty = Tensor::zeros(&[0, 4], DType::F32, Device::Cpu).unwrap();
        let none = Tensor::from_slice(&[-1, -1], &[2]).unwrap();
        let zeros = gather(&empty, &none).unwrap();
        assert_eq!(zeros.data::<f32>().unwrap(), [0.0; 8]);
        let no_rows = Tensor::from_slice::<i32>(&[], &[0]).unwrap();
        assert_eq!(gather(&empty, &no_rows).unwrap().shape(), [0, 4]);
        let out = gather_sum(&empty, &none.reshape(&[1, 2]).unwrap()).unwrap();
        assert_eq!(out.data::<f32>().unwrap(), [0.0; 4]);
        let no_choices = Tensor::from_slice::<i32>(&[], &[3, 0]).unwrap();
        assert_eq!(gather_sum(&empty, &no_choices).unwrap().data::<f32>().unwrap(), [0.0; 12]);
    }
}
