//! `routing_plan.cu`.

use super::super::{Argument, Call, geometry};
use crate::error::{Error, Result};

/// The buffers of a plan.
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    /// i32 `[t, k]`
    pub indices: Argument,
    /// f32 `[t, k]`
    pub weights: Argument,
    /// u32 `[num_counts]`: scratch.
    pub counts: Argument,
    /// i32 `[e]`
    pub tokens_per_expert: Argument,
    /// i32 `[e + 1]`
    pub offsets: Argument,
    /// i32 `[r]`
    pub row_to_token: Argument,
    /// i32 `[t, k]`
    pub token_to_rows: Argument,
    /// f32 `[r]`
    pub weights_r: Argument,
}

/// The sizes of a plan.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// t·k
    pub num_assignments: usize,
    /// k
    pub top_k: usize,
    /// e
    pub num_experts: usize,
    /// r: the assignments, or e·capacity where that is less.
    pub num_rows: usize,
    /// Rows that an expert has at most; below 2^31.
    pub capacity: usize,
}

/// The elements of the scratch.
///
/// # Errors
/// [`Error::Shape`] for more experts than the sort has bins.
pub fn num_counts(sizes: &Sizes) -> Result<usize> {
    Ok(sort(sizes)?.num_tiles as usize * sizes.num_experts)
}

/// Count, scan and placement, to be launched in turn.
///
/// # Errors
/// As [`num_counts`].
pub fn plan(buffers: &Buffers, sizes: &Sizes) -> Result<[Call; 3]> {
    let b = buffers;
    let sort = sort(sizes)?;
    let (n, e) = (Argument::long(sizes.num_assignments), Argument::int(sizes.num_experts)?);
    let (capacity, tiles) = (Argument::int(sizes.capacity)?, Argument::int(sort.num_tiles as usize)?);
    let offsets = vec![b.counts, b.tokens_per_expert, b.offsets, tiles, e, capacity];
    let mut place =
        vec![b.indices, b.counts, b.offsets, b.weights, b.row_to_token, b.token_to_rows, b.weights_r];
    place.extend([n, Argument::long(sizes.num_rows), Argument::int(sizes.top_k)?, e, capacity]);
    let call = |kernel: &str, launch, arguments| Call {
        source: "routing_plan.cu",
        kernel: kernel.to_owned(),
        launch,
        arguments,
    };
    Ok([
        call("routing_count", sort.count, vec![b.indices, b.counts, n, e]),
        call("routing_offsets", sort.scan, offsets),
        call("routing_place", sort.place, place),
    ])
}

fn sort(sizes: &Sizes) -> Result<geometry::CountingSort> {
    let Sizes { num_assignments, num_experts, .. } = *sizes;
    geometry::routing_plan(num_assignments, num_experts).ok_or_else(|| Error::Shape {
        op: "routing_plan",
        what: "offsets",
        got: vec![num_experts + 1],
        expected: format!("at most {} experts; more only run on the cpu", geometry::MAX_BINS),
    })
}
