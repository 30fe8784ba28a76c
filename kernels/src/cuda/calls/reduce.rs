//! `reduce.cu`.

use super::super::{Argument, Call, Floats, geometry};
use crate::dtype::DType;
use crate::error::Result;

/// What a total adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// x
    Value,
    /// x²
    Square,
}

/// The partials that [`partial_sums`] of `n` elements writes.
pub fn num_partial_sums(n: usize, dtype: DType) -> usize {
    geometry::sum(n, dtype.size_in_bytes()).grid[0] as usize
}

/// The sums of parts of x, f64.
pub fn partial_sums(term: Term, x: Floats, partials: Argument, n: usize) -> Call {
    let name = if term == Term::Value { "sum" } else { "sum_of_squares" };
    let launch = geometry::sum(n, x.dtype.size_in_bytes());
    call(format!("{name}_{}", x.dtype), launch, vec![x.pointer, partials, Argument::long(n)])
}

/// The sum of the partials, one f64; it is 0 for none.
pub fn finish_sum(partials: Argument, total: Argument, num_partials: usize) -> Call {
    let arguments = vec![partials, total, Argument::long(num_partials)];
    call("finish_sum".to_owned(), geometry::finish_sum(), arguments)
}

/// The rows of partials that [`column_sums`] writes.
pub fn num_column_partials([rows, n]: [usize; 2], dtype: DType) -> usize {
    geometry::column_sums(rows, n, dtype.size_in_bytes()).grid[0] as usize
}

/// Sums over parts of the rows of x, f32.
///
/// # Errors
/// Rows too long for an `int`.
pub fn column_sums(x: Floats, partials: Argument, [rows, n]: [usize; 2]) -> Result<Call> {
    let launch = geometry::column_sums(rows, n, x.dtype.size_in_bytes());
    let arguments = vec![x.pointer, partials, Argument::long(rows), Argument::int(n)?];
    Ok(call(format!("column_sums_{}", x.dtype), launch, arguments))
}

/// out_n += the sum over `rows` rows of f32 partials.
///
/// # Errors
/// As [`column_sums`].
pub fn add_column_sums(partials: Argument, out: Argument, [rows, n]: [usize; 2]) -> Result<Call> {
    let arguments = vec![partials, out, Argument::long(rows), Argument::int(n)?];
    Ok(call("add_column_sums".to_owned(), geometry::add_column_sums(n), arguments))
}

fn call(kernel: String, launch: geometry::Launch, arguments: Vec<Argument>) -> Call {
    Call { source: "reduce.cu", kernel, launch, arguments }
}
