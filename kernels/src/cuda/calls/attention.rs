//! `attention_D.cu` and `attention_delta.cu`.

use super::super::{Argument, Call, Launch};
use crate::error::{Error, Result};
use crate::ops::attention::Problem;

/// What both kernels of the backward read.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    /// bf16 `[b, t, h, d]`
    pub d_out: Argument,
    /// bf16 `[b, t, h, d]`
    pub q: Argument,
    /// bf16 `[b, s, g, d]`
    pub k: Argument,
    /// bf16 `[b, s, g, d]`
    pub v: Argument,
    /// f32 `[b, h, t]`, from the forward
    pub lse: Argument,
    /// f32 `[b, h, t]`, from [`delta`]
    pub delta: Argument,
}

/// o, bf16 `[b, t, h, d]`, and lse, f32 `[b, h, t]`, from q, k and v.
///
/// # Errors
/// [`Error::Shape`] for a head size without kernels; sizes too large for an `int`.
pub fn forward(problem: &Problem, [q, k, v]: [Argument; 3], [o, lse]: [Argument; 2]) -> Result<Call> {
    const THREADS: u32 = 128;
    let kernels = Kernels::of("attention", problem)?;
    let shared_bytes = (ROWS + 2 * kernels.forward_keys) * problem.head_dim * 2;
    let launch = tiles(problem.num_queries, problem.num_heads, problem.batch, THREADS, shared_bytes)?;
    kernels.call(problem, "forward", launch, &[o, lse, q, k, v])
}

/// delta, f32 `[b, h, t]`: Σ_d do∘o.
///
/// # Errors
/// As [`forward`].
pub fn delta(problem: &Problem, [d_out, o]: [Argument; 2], delta: Argument) -> Result<Call> {
    const ROWS_EACH: usize = 64;
    let Problem { batch, num_queries, num_heads, head_dim, .. } = *problem;
    let blocks = (batch * num_queries * num_heads).div_ceil(ROWS_EACH);
    let mut arguments = vec![delta, d_out, o];
    for size in [batch, num_queries, num_heads, head_dim] {
        arguments.push(Argument::int(size)?);
    }
    let launch = Launch::row(u32::try_from(blocks).unwrap_or(u32::MAX), 256);
    Ok(Call { source: "attention_delta.cu", kernel: "attention_delta".to_owned(), launch, arguments })
}

/// dq, bf16 `[b, t, h, d]`.
///
/// # Errors
/// As [`forward`].
pub fn backward_queries(problem: &Problem, given: &Given, dq: Argument) -> Result<Call> {
    let kernels = Kernels::of("attention_backward", problem)?;
    let launch = kernels.backward(problem.num_queries, problem.num_heads, problem, kernels.streamed_keys)?;
    kernels.call(problem, "backward_queries", launch, &[&[dq][..], &given.arguments()].concat())
}

/// dk and dv, bf16 `[b, s, g, d]`.
///
/// # Errors
/// As [`forward`].
pub fn backward_keys(problem: &Problem, given: &Given, [dk, dv]: [Argument; 2]) -> Result<Call> {
    let kernels = Kernels::of("attention_backward", problem)?;
    let launch =
        kernels.backward(problem.num_keys, problem.num_kv_heads, problem, kernels.streamed_queries)?;
    kernels.call(problem, "backward_keys", launch, &[&[dk, dv][..], &given.arguments()].concat())
}

impl Given {
    fn arguments(&self) -> [Argument; 6] {
        let Given { d_out, q, k, v, lse, delta } = *self;
        [d_out, q, k, v, lse, delta]
    }
}

/// Rows of queries or keys that a block owns.
const ROWS: usize = 128;

/// The kernels of one head size: rows of a tile that a block walks over.
struct Kernels {
    source: &'static str,
    forward_keys: usize,
    /// By a block of queries in the backward.
    streamed_keys: usize,
    /// By a block of keys.
    streamed_queries: usize,
}

impl Kernels {
    fn of(op: &'static str, problem: &Problem) -> Result<Self> {
        let (source, forward_keys, streamed_keys, streamed_queries) = match problem.head_dim {
            32 => ("attention_32.cu", 64, 64, 64),
            64 => ("attention_64.cu", 64, 32, 64),
            96 => ("attention_96.cu", 32, 64, 64),
            128 => ("attention_128.cu", 32, 32, 32),
            _ => {
                let Problem { batch, num_queries, num_heads, head_dim, .. } = *problem;
                let got = vec![batch, num_queries, num_heads, head_dim];
                let expected = "a head size that a GPU has kernels for: 32, 64, 96 or 128".to_owned();
                return Err(Error::Shape { op, what: "q", got, expected });
            }
        };
        Ok(Kernels { source, forward_keys, streamed_keys, streamed_queries })
    }

    /// The owned rows of two tensors, and two stages of two streamed ones with two floats a row.
    fn backward(
        &self,
        num_rows: usize,
        num_heads: usize,
        problem: &Problem,
        streamed: usize,
    ) -> Result<Launch> {
        const THREADS: u32 = 256;
        let shared_bytes =
            2 * ROWS * problem.head_dim * 2 + 2 * streamed * (2 * problem.head_dim * 2 + 2 * 4);
        tiles(num_rows, num_heads, problem.batch, THREADS, shared_bytes)
    }

    fn call(&self, problem: &Problem, way: &str, launch: Launch, pointers: &[Argument]) -> Result<Call> {
        let kernel = format!("attention_{way}_{}", problem.head_dim);
        let arguments = [pointers, &sizes(problem)?].concat();
        Ok(Call { source: self.source, kernel, launch, arguments })
    }
}

/// What ends the argument list of every kernel but delta's.
fn sizes(problem: &Problem) -> Result<[Argument; 9]> {
    let Problem { num_queries, num_keys, num_heads, num_kv_heads, head_dim, query_start, .. } = *problem;
    // Kernels index a sequence, and count positions, by `int`.
    for extent in
        [num_queries * num_heads * head_dim, num_keys * num_kv_heads * head_dim, query_start + num_queries]
    {
        Argument::int(extent)?;
    }
    // No two positions lie further apart than this, and 0 is the kernels' word for no window.
    let at_most = |size: usize| Argument::int(size.min(i32::MAX as usize));
    Ok([
        Argument::int(num_queries)?,
        Argument::int(num_keys)?,
        Argument::int(num_heads)?,
        Argument::int(num_kv_heads)?,
        Argument::int(query_start)?,
        Argument::F32(problem.scale),
        Argument::flag(problem.mask.causal),
        at_most(problem.mask.window.unwrap_or(0))?,
        at_most(problem.mask.num_global_tokens)?,
    ])
}

/// One block for each [`ROWS`] rows of each head of each sequence.
fn tiles(
    num_rows: usize,
    num_heads: usize,
    batch: usize,
    threads: u32,
    shared_bytes: usize,
) -> Result<Launch> {
    /// Of a grid in y and z.
    const MAX_BLOCKS: usize = 65_535;
    for (what, got) in [("the number of heads", num_heads), ("the number of sequences", batch)] {
        if got > MAX_BLOCKS {
            let expected = format!("at most {MAX_BLOCKS} on a GPU");
            return Err(Error::Value { op: "attention", what, got: got.to_string(), expected });
        }
    }
    let grid = [num_rows.div_ceil(ROWS) as u32, num_heads as u32, batch as u32];
    Ok(Launch { grid, block: [threads, 1, 1], shared_bytes: shared_bytes as u32 })
}
