//! `embedding.cu`.

use super::super::{Argument, Call, Floats, Launch, geometry};
use crate::error::Result;

/// x of `t` tokens from a table of `v` rows of `d`. An id outside the table gives a row of NaN.
///
/// # Errors
/// Sizes too large for an `int`.
pub fn forward(ids: Argument, table: Floats, x: Floats, [t, v, d]: [usize; 3]) -> Result<Call> {
    let narrow_bytes = table.dtype.size_in_bytes().min(x.dtype.size_in_bytes());
    let rows = geometry::embedding_forward(t, d, narrow_bytes);
    let sizes =
        [Argument::long(t), Argument::int(v)?, Argument::int(d)?, Argument::int(rows.width as usize)?];
    let kernel = format!("embedding_forward_{}_{}", table.dtype, x.dtype);
    Ok(call(&kernel, rows.launch, &[&[ids, table.pointer, x.pointer][..], &sizes]))
}

/// What the sort of the tokens by id writes.
#[derive(Clone, Copy, Debug)]
pub struct SortBuffers {
    /// u32 `[num_counts]`
    pub counts: Argument,
    /// u32 `[NUM_DIGITS]`
    pub starts: Argument,
    /// i32 `[t]` each: ids and tokens, of which passes write in turn.
    pub pairs: [[Argument; 2]; 2],
}

/// Values that a digit of a pass can have.
pub const NUM_DIGITS: usize = 256;

/// Counts that the sort of `t` tokens keeps.
pub fn num_counts(t: usize) -> usize {
    let (sort, _) = geometry::embedding_sort(t, 1);
    NUM_DIGITS * sort.num_tiles as usize
}

/// A stable sort of `t` tokens by id, of ids below `v`: the calls, and where the sorted ids and their tokens are then.
///
/// # Errors
/// Sizes too large for an `int`.
pub fn sort(ids: Argument, buffers: &SortBuffers, [t, v]: [usize; 2]) -> Result<(Vec<Call>, [Argument; 2])> {
    // Tokens are numbered by `int`.
    Argument::int(t)?;
    let SortBuffers { counts, starts, pairs } = *buffers;
    let (sort, passes) = geometry::embedding_sort(t, v);
    let num_tiles = Argument::int(sort.num_tiles as usize)?;
    // The first pass numbers the tokens itself.
    let mut from = [ids, Argument::NULL];
    let mut calls = Vec::new();
    for (shift, to) in passes.zip(pairs.into_iter().cycle()) {
        let sizes = [Argument::long(t), Argument::int(shift as usize)?];
        let [sorted_ids, sorted_tokens] = to;
        calls.extend([
            call("embedding_sort_count", sort.count, &[&[from[0], counts][..], &sizes]),
            call("embedding_sort_scan", sort.scan, &[&[counts, starts, num_tiles][..]]),
            call(
                "embedding_sort_place",
                sort.place,
                &[&[from[0], from[1], counts, starts, sorted_ids, sorted_tokens][..], &sizes],
            ),
        ]);
        from = to;
    }
    Ok((calls, from))
}

/// Rows of f32 partials, `d` long, that the sums over `t` tokens write.
pub fn num_partials(t: usize) -> usize {
    2 * t.div_ceil(geometry::RUN_TILE)
}

/// dtable (f32, `[v, d]`) gains the rows of dx (`[t, d]`) of its tokens, in the order of the sort. Ids outside the table
/// are left out.
///
/// # Errors
/// As [`sort`].
pub fn sums(
    dx: Floats,
    [sorted_ids, sorted_tokens]: [Argument; 2],
    partials: Argument,
    dtable: Argument,
    [t, v, d]: [usize; 3],
) -> Result<[Call; 2]> {
    let sizes = [Argument::long(t), Argument::int(v)?, Argument::int(d)?];
    let of_tiles = geometry::embedding_backward(t, d, dx.dtype.size_in_bytes());
    let of_runs = geometry::embedding_backward(t, d, size_of::<f32>());
    let tiles = [dx.pointer, sorted_ids, sorted_tokens, partials, dtable];
    Ok([
        call(&format!("embedding_backward_tiles_{}", dx.dtype), of_tiles, &[&tiles[..], &sizes]),
        call("embedding_backward_runs", of_runs, &[&[sorted_ids, partials, dtable][..], &sizes]),
    ])
}

fn call(kernel: &str, launch: Launch, arguments: &[&[Argument]]) -> Call {
    Call { source: "embedding.cu", kernel: kernel.to_owned(), launch, arguments: arguments.concat() }
}
