//! How the kernels of `attention_D.cu` and `attention_delta.cu` are launched.

use super::Launch;

/// Rows of queries or keys that a block owns.
const ROWS: usize = 128;

/// The kernels of one head size, `attention_{forward,backward_queries,backward_keys}_D` of `attention_D.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernels {
    /// D
    pub head_dim: usize,
    /// Keys of a tile of the forward.
    forward_keys: usize,
    /// Keys of a tile that a block of queries walks in the backward.
    streamed_keys: usize,
    /// Queries of a tile that a block of keys walks.
    streamed_queries: usize,
}

impl Kernels {
    /// The kernels for heads of `head_dim`, if there are any.
    pub fn of(head_dim: usize) -> Option<Self> {
        let (forward_keys, streamed_keys, streamed_queries) = match head_dim {
            32 => (64, 64, 64),
            64 => (64, 32, 64),
            96 => (32, 64, 64),
            128 => (32, 32, 32),
            _ => return None,
        };
        Some(Kernels { head_dim, forward_keys, streamed_keys, streamed_queries })
    }

    /// `attention_forward_D`.
    pub fn forward(&self, batch: usize, num_queries: usize, num_heads: usize) -> Launch {
        const THREADS: u32 = 128;
        let shared_bytes = (ROWS + 2 * self.forward_keys) * self.head_dim * 2;
        tiles(batch, num_queries, num_heads, THREADS, shared_bytes)
    }

    /// `attention_backward_queries_D`.
    pub fn backward_queries(&self, batch: usize, num_queries: usize, num_heads: usize) -> Launch {
        self.backward(batch, num_queries, num_heads, self.streamed_keys)
    }

    /// `attention_backward_keys_D`.
    pub fn backward_keys(&self, batch: usize, num_keys: usize, num_kv_heads: usize) -> Launch {
        self.backward(batch, num_keys, num_kv_heads, self.streamed_queries)
    }

    /// The owned rows of two tensors, and two stages of two streamed ones with two floats a row.
    fn backward(&self, batch: usize, num_rows: usize, num_heads: usize, streamed: usize) -> Launch {
        const THREADS: u32 = 256;
        let shared_bytes = 2 * ROWS * self.head_dim * 2 + 2 * streamed * (2 * self.head_dim * 2 + 2 * 4);
        tiles(batch, num_rows, num_heads, THREADS, shared_bytes)
    }
}

/// `attention_delta` over `rows` rows: batch, queries and heads.
pub fn delta(rows: usize) -> Launch {
    const ROWS_EACH: usize = 64;
    Launch::row(rows.div_ceil(ROWS_EACH) as u32, 256)
}

/// One block for each [`ROWS`] rows of each head.
fn tiles(batch: usize, num_rows: usize, num_heads: usize, threads: u32, shared_bytes: usize) -> Launch {
    let grid = [num_rows.div_ceil(ROWS) as u32, num_heads as u32, batch as u32];
    Launch { grid, block: [threads, 1, 1], shared_bytes: shared_bytes as u32 }
}
