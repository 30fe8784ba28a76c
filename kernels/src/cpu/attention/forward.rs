//! The forward pass of some query blocks of all query heads that read one key/value head.

use crate::cpu::attention::layout::{HeadRows, Shared, carve};
use crate::cpu::attention::product::{COLS, Left, ROWS, Size, product};
use crate::cpu::attention::visible::{Panel, Part};
#[cfg(target_arch = "x86_64")]
use crate::cpu::attention::weights_avx512;
use crate::cpu::attention::{KEY_TILE, QUERY_BLOCK};
use crate::cpu::float::Float;
use crate::cpu::simd::{SimdLevel, simd_level, vectorised};
use crate::cpu::softmax;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::attention::Problem;
use crate::tensor::Tensor;

/// Writes the rows of o and lse of the query blocks `blocks`, for the query heads of key/value head `kv_head`.
pub(super) fn blocks<F: Float>(
    problem: &Problem,
    kv_head: usize,
    blocks: impl Iterator<Item = usize> + Clone,
    [q_bthd, k_bsgd, v_bsgd]: [&[F]; 3],
    o_bthd: &Shared<'_, F>,
    lse_bht: &Shared<'_, f32>,
) -> Result<()> {
    let width = problem.head_dim.next_multiple_of(COLS);
    let num_tiles = problem.num_keys.div_ceil(KEY_TILE);
    let tile_sizes = [KEY_TILE * problem.head_dim, KEY_TILE * width];
    let sizes = [
        num_tiles * tile_sizes[0],
        num_tiles * tile_sizes[1],
        QUERY_BLOCK * width,
        QUERY_BLOCK * width,
        ROWS * KEY_TILE,
    ];
    let mut scratch = Tensor::scratch(&[sizes.iter().sum()], DType::F32, Device::Cpu)?;
    let [k_tiles, v_tiles, q_block, o_block, scores] = carve(scratch.data_mut::<f32>()?, sizes);
    let mut loaded = vec![false; num_tiles];
    let keys = HeadRows::of_keys(problem, kv_head);
    let group = problem.num_heads / problem.num_kv_heads;
    for head in kv_head * group..(kv_head + 1) * group {
        let queries = HeadRows::of_queries(problem, head);
        for block in blocks.clone() {
            let rows = block * QUERY_BLOCK..problem.num_queries.min((block + 1) * QUERY_BLOCK);
            let panels: Vec<Panel> = rows.clone().step_by(ROWS).map(|row| Panel::new(problem, row)).collect();
            let q = &mut q_block[..panels.len() * ROWS * width];
            queries.load(q_bthd, rows.start, problem.scale, q, width);
            let mut softmax = OnlineSoftmax::new(&mut o_block[..q.len()], width);
            for tile in 0..num_tiles {
                let tile_keys = tile * KEY_TILE..(tile + 1) * KEY_TILE;
                let k = &mut k_tiles[tile * tile_sizes[0]..][..tile_sizes[0]];
                let v = &mut v_tiles[tile * tile_sizes[1]..][..tile_sizes[1]];
                for (index, panel) in panels.iter().enumerate() {
                    let Some(part) = panel.part(&tile_keys) else { continue };
                    if !loaded[tile] {
                        keys.load_transposed(k_bsgd, tile_keys.start, k);
                        keys.load(v_bsgd, tile_keys.start, 1.0, v, width);
                        loaded[tile] = true;
                    }
                    let q = Left { data: &q[index * ROWS * width..], row_stride: width, col_stride: 1 };
                    let size = Size { m: ROWS, n: part.range.len(), k: problem.head_dim };
                    product(size, q, (&k[part.range.start..], KEY_TILE), (scores, KEY_TILE), false);
                    if part.masked {
                        for (row, scores) in scores.chunks_exact_mut(KEY_TILE).enumerate() {
                            let first = tile_keys.start + part.range.start;
                            panel.mask(row, first, &mut scores[..part.range.len()]);
                        }
                    }
                    softmax.add(index, &part, scores, v);
                }
            }
            // SAFETY: this task alone has these query blocks of this head.
            let lse_t = unsafe {
                let start = head * problem.num_queries;
                lse_bht.part(start + rows.start..start + rows.end)
            };
            for ((row, index), lse) in rows.zip(0..).zip(lse_t) {
                // SAFETY: as above.
                let o_d = unsafe { o_bthd.part(queries.at(row)) };
                *lse = softmax.finish(index, o_d);
            }
        }
    }
    Ok(())
}

/// Softmax and weighted sum of values of a query block, built tile by tile: sums hold relative to the largest score
/// so far and shrink when a larger one comes.
struct OnlineSoftmax<'a> {
    o: &'a mut [f32],
    width: usize,
    max: [f32; QUERY_BLOCK],
    /// Partial sums by lane, so that only the end needs a sum across lanes.
    sum: [[f32; COLS]; QUERY_BLOCK],
}

impl<'a> OnlineSoftmax<'a> {
    fn new(o: &'a mut [f32], width: usize) -> Self {
        o.fill(0.0);
        OnlineSoftmax { o, width, max: [f32::NEG_INFINITY; QUERY_BLOCK], sum: [[0.0; COLS]; QUERY_BLOCK] }
    }

    /// Takes in the scores of one panel with the keys of `part`, whose values are the rows of `v`.
    fn add(&mut self, panel: usize, part: &Part, scores: &mut [f32], v: &[f32]) {
        let rows = panel * ROWS..(panel + 1) * ROWS;
        let o = &mut self.o[rows.start * self.width..rows.end * self.width];
        let (max, sum) = (&mut self.max[rows.clone()], &mut self.sum[rows]);
        let (num_scores, width) = (part.range.len(), self.width);
        match simd_level() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `simd_level` found what it needs.
            SimdLevel::Avx512 => unsafe { weights_avx512::weigh(scores, num_scores, max, sum, o, width) },
            _ => vectorised(
                #[inline(always)]
                || weigh(scores, num_scores, max, sum, o, width),
            ),
        }
        let weights = Left { data: scores, row_stride: KEY_TILE, col_stride: 1 };
        let size = Size { m: ROWS, n: width, k: part.seen_end - part.range.start };
        product(size, weights, (&v[part.range.start * width..], width), (o, width), true);
    }

    /// Writes the output of row `row` and gives its lse.
    fn finish<F: Float>(&self, row: usize, o_d: &mut [F]) -> f32 {
        let sum = softmax::total(self.sum[row]);
        // Nothing was seen: o is zero already and must not become 0 / 0.
        let factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        for (to, from) in o_d.iter_mut().zip(&self.o[row * self.width..]) {
            *to = F::store(factor * from);
        }
        self.max[row] + sum.ln()
    }
}

/// Turns the first `num_scores` scores of each row into weights exp(score - max) and brings `max`, `sum` and the rows
/// of `o`, `width` apart, up to date. There is no branch on whether a maximum grew: it would be mispredicted.
#[inline(always)]
fn weigh(
    scores: &mut [f32],
    num_scores: usize,
    max: &mut [f32],
    sum: &mut [[f32; COLS]],
    o: &mut [f32],
    width: usize,
) {
    let (mut shift, mut shrink) = ([0.0; ROWS], [0.0; ROWS]);
    for (row, scores) in scores.chunks_exact(KEY_TILE).enumerate() {
        let new_max = softmax::max::<COLS>(&scores[..num_scores], max[row]);
        // While nothing was seen, any finite shift gives weights of 0; -inf itself would give NaN.
        shift[row] = if new_max == f32::NEG_INFINITY { 0.0 } else { new_max };
        shrink[row] = max[row] - shift[row];
        max[row] = new_max;
    }
    shrink.iter_mut().for_each(|shrink| *shrink = softmax::weight(*shrink));
    let rows = scores.chunks_exact_mut(KEY_TILE).zip(sum).zip(o.chunks_exact_mut(width));
    for (row, ((scores, sum), o)) in rows.enumerate() {
        o.iter_mut().for_each(|value| *value *= shrink[row]);
        sum.iter_mut().for_each(|value| *value *= shrink[row]);
        softmax::exponentiate(&mut scores[..num_scores], shift[row], sum);
    }
}
