//! Launch geometry: from an operation's shape to its grid, its blocks and their shared memory.
//!
//! The shape alone decides, never the number of multiprocessors, so that sums over blocks are the same bits on every
//! device. The numbers here are the constants of the `.cu` files of the same names.

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

    /// Whether there is nothing to do. A device refuses such a launch, so it is left out.
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }
}

/// Lanes of a warp.
const WARP: usize = 32;
/// Bytes of the widest access of a thread.
const CHUNK_BYTES: usize = 16;

/// How a kernel shares out rows: `width` threads work on one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Threads for each row, an argument of the kernel.
    pub width: u32,
    /// The grid, one block for each `block / width` rows unless the kernel walks down them.
    pub launch: Launch,
}

impl Rows {
    /// `rows` rows of `d` elements, two chunks a thread while blocks of `max_threads` allow.
    fn new(rows: usize, d: usize, element_bytes: usize, max_threads: usize) -> Self {
        let wanted = (d * element_bytes).div_ceil(2 * CHUNK_BYTES).max(1);
        let (width, block) = if wanted <= WARP {
            (wanted.next_power_of_two(), 4 * WARP)
        } else {
            let width = wanted.next_multiple_of(WARP).min(max_threads);
            (width, width)
        };
        Rows { width: width as u32, launch: Launch::row(blocks(rows, block / width), block as u32) }
    }
}

/// `rms_norm_forward_*`. None when a row is longer than the kernel can hold.
pub fn rms_norm(rows: usize, d: usize, element_bytes: usize) -> Option<Rows> {
    const THREADS: usize = 512;
    let fits = d * element_bytes <= 2 * CHUNK_BYTES * THREADS;
    fits.then(|| Rows::new(rows, d, element_bytes, THREADS))
}

/// `rms_norm_backward_*`: at most 512 blocks walk down the rows, and each writes one row of partials.
pub fn rms_norm_backward(rows: usize, d: usize, element_bytes: usize) -> Option<Rows> {
    const MAX_BLOCKS: u32 = 512;
    let mut geometry = rms_norm(rows, d, element_bytes)?;
    let [num_blocks, ..] = &mut geometry.launch.grid;
    *num_blocks = (*num_blocks).min(MAX_BLOCKS);
    let side_by_side = geometry.launch.block[0] / geometry.width;
    if side_by_side > 1 {
        geometry.launch.shared_bytes = side_by_side * d as u32 * 4;
    }
    Some(geometry)
}

/// `sum_*` and `sum_of_squares_*` over `n` elements: one partial a block.
pub fn sum(n: usize, element_bytes: usize) -> Launch {
    const THREADS: usize = 256;
    const CHUNKS: usize = 8;
    Launch::row(blocks(n, THREADS * CHUNKS * CHUNK_BYTES / element_bytes), THREADS as u32)
}

/// `finish_sum`.
pub fn finish_sum() -> Launch {
    Launch::row(1, 1024)
}

/// `column_sums_*` over `rows` rows of `n`: one row of partials for each block in x.
pub fn column_sums(rows: usize, n: usize, element_bytes: usize) -> Launch {
    const THREADS: u32 = 256;
    const ROWS: usize = 256;
    Launch {
        grid: [blocks(rows, ROWS), blocks(n, WARP * CHUNK_BYTES / element_bytes), 1],
        ..Launch::row(1, THREADS)
    }
}

/// `add_column_sums` into `n` columns.
pub fn add_column_sums(n: usize) -> Launch {
    Launch::row(blocks(n, WARP), 1024)
}

/// `swiglu_*` over `rows` rows of `f` hidden elements.
pub fn swiglu(rows: usize, f: usize, element_bytes: usize) -> Rows {
    Rows::new(rows, f, element_bytes, 256)
}

/// `bias_forward_*` over `rows` rows of `n`.
pub fn bias(rows: usize, n: usize, element_bytes: usize) -> Rows {
    Rows::new(rows, n, element_bytes, 512)
}

/// `gather_*` and `gather_sum_*` into `rows` rows of `d`.
pub fn permute(rows: usize, d: usize, element_bytes: usize) -> Rows {
    Rows::new(rows, d, element_bytes, 512)
}

/// `rope_*` over `tokens` tokens of all sequences, where the first `half` elements of a head turn with the next `half`.
pub fn rope(tokens: usize, half: usize, element_bytes: usize) -> Launch {
    const THREADS: usize = 256;
    Launch::row(blocks(tokens * (half * element_bytes).div_ceil(CHUNK_BYTES), THREADS), THREADS as u32)
}

/// The kernels of `elementwise.cu` over `n` elements.
pub fn elementwise(n: usize) -> Launch {
    const THREADS: usize = 256;
    const PER_THREAD: usize = 16;
    Launch::row(blocks(n, THREADS * PER_THREAD), THREADS as u32)
}

/// `cross_entropy_*` over `rows` rows of logits.
pub fn cross_entropy(rows: usize) -> Launch {
    Launch::row(blocks(rows, 1), 512)
}

/// `router_forward_*`, `router_backward_*` and `router_balance_terms` over `tokens` tokens.
pub fn router(tokens: usize) -> Launch {
    const TOKENS: usize = 8;
    Launch::row(blocks(tokens, TOKENS), 256)
}

/// The ending of the names of the router's kernels that serve `num_experts` experts, `k` of them a token. None when
/// there are more than any serves.
pub fn router_kernel(num_experts: usize, k: usize) -> Option<u32> {
    const MAX_CHOICES: usize = WARP;
    [64, 256, 1024].into_iter().find(|&most| num_experts <= most as usize && k <= MAX_CHOICES)
}

/// `router_losses`.
pub fn router_losses() -> Launch {
    Launch::row(1, 1024)
}

/// The most bins of a counting sort: experts of a layer.
pub const MAX_BINS: usize = 1024;

/// The launches of a stable counting sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountingSort {
    /// Tiles, a kernel argument: the scratch is u32 `[bins, tiles]`.
    pub num_tiles: u32,
    /// `*_count`, one block a tile.
    pub count: Launch,
    /// The scan over tiles and bins, one block. It runs for no items too.
    pub scan: Launch,
    /// `*_place`, one block a tile.
    pub place: Launch,
}

/// A sort of `n` items into `bins` bins.
fn counting_sort(n: usize, bins: usize) -> CountingSort {
    const THREADS: u32 = 256;
    const TILE: usize = 2048;
    let num_tiles = blocks(n, TILE);
    let count = Launch::row(num_tiles, THREADS);
    let shared_bytes = THREADS / WARP as u32 * bins as u32 * 4;
    CountingSort { num_tiles, count, scan: Launch::row(1, 1024), place: Launch { shared_bytes, ..count } }
}

/// `routing_count`, `routing_offsets` and `routing_place` over `assignments` assignments.
pub fn routing_plan(assignments: usize, num_experts: usize) -> Option<CountingSort> {
    (num_experts <= MAX_BINS).then(|| counting_sort(assignments, num_experts))
}

/// `routing_tally` and `routing_update_bias` of one group, `routing_shares` of several: a block of a thread an expert. None
/// for more experts than a block has threads.
pub fn routing_load(groups: usize, num_experts: usize) -> Option<Launch> {
    (num_experts <= MAX_BINS).then(|| Launch::row(blocks(groups, 1), MAX_BINS as u32))
}

/// `routing_group_load`, one block a group.
pub fn routing_group_load(groups: usize) -> Launch {
    Launch::row(blocks(groups, 1), 256)
}

/// `embedding_forward_*` into `tokens` rows of `d`; `narrow_bytes` is the size of the narrower element type.
pub fn embedding_forward(tokens: usize, d: usize, narrow_bytes: usize) -> Rows {
    Rows::new(tokens, d, narrow_bytes, 512)
}

/// The sort of tokens by id: its launches, and the first bit of each pass.
pub fn embedding_sort(tokens: usize, vocabulary: usize) -> (CountingSort, impl Iterator<Item = u32>) {
    const RADIX_BITS: u32 = 8;
    let bits = usize::BITS - vocabulary.saturating_sub(1).leading_zeros();
    (counting_sort(tokens, 1 << RADIX_BITS), (0..bits.max(1)).step_by(RADIX_BITS as usize))
}

/// Sorted tokens that a block of `embedding_backward_*` sums: partials are f32 `[tokens / this, 2, d]`.
pub const RUN_TILE: usize = 64;

/// `embedding_backward_tiles_*`, and with four bytes an element `embedding_backward_runs`.
pub fn embedding_backward(tokens: usize, d: usize, element_bytes: usize) -> Launch {
    const THREADS: usize = 128;
    let columns = THREADS * CHUNK_BYTES / element_bytes;
    Launch { grid: [blocks(tokens, RUN_TILE), blocks(d, columns), 1], ..Launch::row(1, THREADS as u32) }
}

/// `gradient_squares` and `adamw_step_*` over all tiles of all parameters.
pub fn adamw(num_tiles: usize) -> Launch {
    Launch::row(blocks(num_tiles, 1), 256)
}

/// `adamw_prepare`.
pub fn adamw_prepare() -> Launch {
    Launch::row(1, 1024)
}

/// Blocks for `n` things, `per_block` each.
fn blocks(n: usize, per_block: usize) -> u32 {
    u32::try_from(n.div_ceil(per_block)).unwrap_or(u32::MAX)
}
