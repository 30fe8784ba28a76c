//! Launch geometry: from an operation's shape to its grid, its blocks and their shared memory.
//!
//! The shape alone decides, never the number of multiprocessors, so that sums over blocks are the same bits on every
//! device.

/// A grid of blocks of threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
}

impl Launch {
    /// A row of `blocks` blocks of `threads` threads without dynamic shared memory.
    pub fn row(blocks: u32, threads: u32) -> Self {
        Launch { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0 }
    }
}
