//! `routing_load.cu`.

use super::super::{Argument, Call, geometry};
use crate::error::{Error, Result};

/// sums (i32 `[2e + 2]`) gain a micro-batch of `t` tokens from tokens_per_expert, offsets and entropy.
///
/// # Errors
/// [`Error::Shape`] for more experts than a block has threads.
pub fn add([tokens_per_expert, offsets, entropy, sums]: [Argument; 4], [t, e]: [usize; 2]) -> Result<Call> {
    let arguments = vec![tokens_per_expert, offsets, entropy, sums, Argument::long(t), Argument::int(e)?];
    call("routing_tally", [1, e], arguments)
}

/// load (i32 `[groups, e]`) from the indices of all groups, `per_group` of each.
///
/// # Errors
/// As [`add`].
pub fn by_group([indices, load]: [Argument; 2], [groups, e]: [usize; 2], per_group: usize) -> Result<Call> {
    let arguments = vec![indices, load, Argument::long(per_group), Argument::int(e)?];
    let launch = geometry::routing_group_load(groups);
    Ok(Call { launch, ..call("routing_group_load", [groups, e], arguments)? })
}

/// shares (f32 `[groups, e]`) of load with earlier (i32 `[e]`, may be null) added.
///
/// # Errors
/// As [`add`].
pub fn shares([load, earlier, shares]: [Argument; 3], [groups, e]: [usize; 2]) -> Result<Call> {
    call("routing_shares", [groups, e], vec![load, earlier, shares, Argument::int(e)?])
}

/// bias (f32 `[e]`) moves against load (i32 `[e]`).
///
/// # Errors
/// As [`add`].
pub fn update_bias([bias, load]: [Argument; 2], e: usize, rate: f32) -> Result<Call> {
    call("routing_update_bias", [1, e], vec![bias, load, Argument::int(e)?, Argument::F32(rate)])
}

fn call(kernel: &str, [groups, e]: [usize; 2], arguments: Vec<Argument>) -> Result<Call> {
    let launch = geometry::routing_load(groups, e).ok_or_else(|| Error::Shape {
        op: "routing_load",
        what: "load",
        got: vec![groups, e],
        expected: format!("at most {} experts; more only run on the cpu", geometry::MAX_BINS),
    })?;
    Ok(Call { source: "routing_load.cu", kernel: kernel.to_owned(), launch, arguments })
}
