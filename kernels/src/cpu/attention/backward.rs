//! The backward pass of one key/value head of one sequence, with all query heads that read it.

use std::ops::Range;

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

/// What the backward pass reads.
pub(super) struct Inputs<'a, F> {
    pub(super) do_bthd: &'a [F],
    pub(super) q_bthd: &'a [F],
    pub(super) k_bsgd: &'a [F],
    pub(super) v_bsgd: &'a [F],
    pub(super) o_bthd: &'a [F],
    pub(super) lse_bht: &'a [f32],
}

/// What the backward pass writes.
pub(super) struct Outputs<'a, F> {
    pub(super) dq_bthd: Shared<'a, F>,
    pub(super) dk_bsgd: Shared<'a, F>,
    pub(super) dv_bsgd: Shared<'a, F>,
}

/// Writes the rows of dk and dv of key/value head `kv_head` and those of dq of the query heads that read it.
pub(super) fn head<F: Float>(
    problem: &Problem,
    kv_head: usize,
    inputs: &Inputs<'_, F>,
    outputs: &Outputs<'_, F>,
) -> Result<()> {
    let width = problem.head_dim.next_multiple_of(COLS);
    let num_rows = problem.num_keys.next_multiple_of(KEY_TILE);
    let (columns, rows) = (num_rows * problem.head_dim, num_rows * width);
    let (block, tile) = (QUERY_BLOCK * width, QUERY_BLOCK * KEY_TILE);
    let sizes = [columns, columns, rows, rows, rows, block, block, block, tile, tile];
    let mut scratch = Tensor::scratch(&[sizes.iter().sum()], DType::F32, Device::Cpu)?;
    let [k_columns, v_columns, k, dk, dv, q, d_out, dq, p, ds] = carve(scratch.data_mut::<f32>()?, sizes);

    let mut keys = Keys { head_dim: problem.head_dim, width, k_columns, v_columns, k, dk, dv };
    let key_rows = HeadRows::of_keys(problem, kv_head);
    keys.load(&key_rows, inputs);
    let group = problem.num_heads / problem.num_kv_heads;
    for head in kv_head * group..(kv_head + 1) * group {
        let query_rows = HeadRows::of_queries(problem, head);
        let lse_t = &inputs.lse_bht[head * problem.num_queries..][..problem.num_queries];
        for start in (0..problem.num_queries).step_by(QUERY_BLOCK) {
            let rows = start..problem.num_queries.min(start + QUERY_BLOCK);
            let panels: Vec<Panel> = rows.clone().step_by(ROWS).map(|row| Panel::new(problem, row)).collect();
            let len = panels.len() * ROWS * width;
            let (q, d_out, dq) = (&mut q[..len], &mut d_out[..len], &mut dq[..len]);
            query_rows.load(inputs.q_bthd, start, problem.scale, q, width);
            query_rows.load(inputs.do_bthd, start, 1.0, d_out, width);
            dq.fill(0.0);
            let (lse, delta) = row_statistics(&query_rows, rows.clone(), inputs, lse_t);
            let mut queries = Queries { panels: &panels, q, d_out, dq, p, ds, lse, delta };
            for tile in (0..num_rows).step_by(KEY_TILE) {
                queries.meet(&mut keys, tile);
            }
            // SAFETY: this task alone has this query head.
            unsafe { query_rows.store(queries.dq, rows, problem.scale, width, &outputs.dq_bthd) };
        }
    }
    // SAFETY: this task alone has this key/value head.
    unsafe {
        key_rows.store(keys.dk, 0..problem.num_keys, 1.0, width, &outputs.dk_bsgd);
        key_rows.store(keys.dv, 0..problem.num_keys, 1.0, width, &outputs.dv_bsgd);
    }
    Ok(())
}

/// Keys and values of the head and their gradients: rows are `width` apart; columns stand tile by tile as
/// [head_dim, KEY_TILE].
struct Keys<'a> {
    head_dim: usize,
    width: usize,
    k_columns: &'a mut [f32],
    v_columns: &'a mut [f32],
    k: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

impl Keys<'_> {
    fn load<F: Float>(&mut self, rows: &HeadRows, inputs: &Inputs<'_, F>) {
        let tile_len = KEY_TILE * self.head_dim;
        for (tile, k) in self.k_columns.chunks_exact_mut(tile_len).enumerate() {
            rows.load_transposed(inputs.k_bsgd, tile * KEY_TILE, k);
        }
        for (tile, v) in self.v_columns.chunks_exact_mut(tile_len).enumerate() {
            rows.load_transposed(inputs.v_bsgd, tile * KEY_TILE, v);
        }
        rows.load(inputs.k_bsgd, 0, 1.0, self.k, self.width);
        self.dk.fill(0.0);
        self.dv.fill(0.0);
    }
}

/// A query block: rows of q (scaled), do and dq `width` apart; p and ds of the current tile, [QUERY_BLOCK, KEY_TILE].
struct Queries<'a> {
    panels: &'a [Panel],
    q: &'a [f32],
    d_out: &'a [f32],
    dq: &'a mut [f32],
    p: &'a mut [f32],
    ds: &'a mut [f32],
    lse: [f32; QUERY_BLOCK],
    delta: [f32; QUERY_BLOCK],
}

impl Queries<'_> {
    /// Adds what this block and the tile of keys from `first_key` on give each other.
    fn meet(&mut self, keys: &mut Keys<'_>, first_key: usize) {
        let tile = first_key..first_key + KEY_TILE;
        let parts: Vec<Option<Part>> = self.panels.iter().map(|panel| panel.part(&tile)).collect();
        if parts.iter().all(Option::is_none) {
            return;
        }
        for (panel, part) in parts.iter().enumerate() {
            let scores = panel * ROWS * KEY_TILE..(panel + 1) * ROWS * KEY_TILE;
            match part {
                Some(part) => {
                    self.rebuild(panel, part, keys, first_key);
                    self.add_dq(panel, part, keys, first_key);
                }
                // The products over queries below run over this panel too when its neighbours see the keys.
                None => {
                    self.p[scores.clone()].fill(0.0);
                    self.ds[scores].fill(0.0);
                }
            }
        }
        self.add_dk_dv(&parts, keys, first_key);
    }

    /// p and ds of one panel; 0 where it does not see.
    fn rebuild(&mut self, panel: usize, part: &Part, keys: &Keys<'_>, first_key: usize) {
        let Range { start, end } = part.range;
        let scores = panel * ROWS * KEY_TILE..(panel + 1) * ROWS * KEY_TILE;
        let (p, ds) = (&mut self.p[scores.clone()], &mut self.ds[scores]);
        let rows = panel * ROWS * keys.width..;
        let columns = first_key * keys.head_dim + start..;
        let size = Size { m: ROWS, n: end - start, k: keys.head_dim };
        let left = |data| Left { data, row_stride: keys.width, col_stride: 1 };
        let k = (&keys.k_columns[columns.clone()], KEY_TILE);
        product(size, left(&self.q[rows.clone()]), k, (&mut p[start..], KEY_TILE), false);
        let v = (&keys.v_columns[columns], KEY_TILE);
        product(size, left(&self.d_out[rows]), v, (&mut ds[start..], KEY_TILE), false);
        if part.masked {
            for (row, scores) in p.chunks_exact_mut(KEY_TILE).enumerate() {
                self.panels[panel].mask(row, first_key + start, &mut scores[start..end]);
            }
        }
        let rows = panel * ROWS..(panel + 1) * ROWS;
        let (lse, delta) = (&self.lse[rows.clone()], &self.delta[rows]);
        let rows = p.chunks_exact_mut(KEY_TILE).zip(ds.chunks_exact_mut(KEY_TILE));
        for ((p, ds), (lse, delta)) in rows.zip(lse.iter().zip(delta)) {
            for hidden in [0..start, end..KEY_TILE] {
                p[hidden.clone()].fill(0.0);
                ds[hidden].fill(0.0);
            }
            rebuild_row(&mut p[start..end], &mut ds[start..end], *lse, *delta);
        }
    }

    /// dq += ds·k of one panel; the scale comes when dq is stored.
    fn add_dq(&mut self, panel: usize, part: &Part, keys: &Keys<'_>, first_key: usize) {
        let start = part.range.start;
        let size = Size { m: ROWS, n: keys.width, k: part.seen_end - start };
        let ds = &self.ds[panel * ROWS * KEY_TILE + start..];
        let ds = Left { data: ds, row_stride: KEY_TILE, col_stride: 1 };
        let k = (&keys.k[(first_key + start) * keys.width..], keys.width);
        let dq = (&mut self.dq[panel * ROWS * keys.width..], keys.width);
        product(size, ds, k, dq, true);
    }

    /// dv += pᵀ·do and dk += dsᵀ·q, for [`ROWS`] keys at a time over the panels that see them.
    fn add_dk_dv(&self, parts: &[Option<Part>], keys: &mut Keys<'_>, first_key: usize) {
        for column in (0..KEY_TILE).step_by(ROWS) {
            let sees = |part: &Option<Part>| {
                part.as_ref().is_some_and(|part| part.range.start < column + ROWS && column < part.seen_end)
            };
            let (Some(first), Some(last)) = (parts.iter().position(sees), parts.iter().rposition(sees))
            else {
                continue;
            };
            let size = Size { m: ROWS, n: keys.width, k: (last + 1 - first) * ROWS };
            let left = |data| Left { data, row_stride: 1, col_stride: KEY_TILE };
            let scores = first * ROWS * KEY_TILE + column..;
            let (from, to) = (first * ROWS * keys.width, (first_key + column) * keys.width);
            let d_out = (&self.d_out[from..], keys.width);
            product(size, left(&self.p[scores.clone()]), d_out, (&mut keys.dv[to..], keys.width), true);
            let q = (&self.q[from..], keys.width);
            product(size, left(&self.ds[scores]), q, (&mut keys.dk[to..], keys.width), true);
        }
    }
}

/// Turns scores into p = e^(score - lse) and `ds`, which comes as do·v, into p·(do·v - delta).
fn rebuild_row(p: &mut [f32], ds: &mut [f32], lse: f32, delta: f32) {
    match simd_level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `simd_level` found what it needs.
        SimdLevel::Avx512 => unsafe { weights_avx512::rebuild_row(p, ds, lse, delta) },
        _ => vectorised(
            #[inline(always)]
            || {
                for (p, ds) in p.iter_mut().zip(ds) {
                    *p = softmax::weight(*p - lse);
                    *ds = *p * (*ds - delta);
                }
            },
        ),
    }
}

/// lse and Σ_d do∘o of a block's rows. Rows that saw no key, and those behind the last query, get an lse of +inf,
/// which makes their probabilities 0.
fn row_statistics<F: Float>(
    query_rows: &HeadRows,
    rows: Range<usize>,
    inputs: &Inputs<'_, F>,
    lse_t: &[f32],
) -> ([f32; QUERY_BLOCK], [f32; QUERY_BLOCK]) {
    let (mut lse, mut delta) = ([f32::INFINITY; QUERY_BLOCK], [0.0; QUERY_BLOCK]);
    for (index, row) in rows.enumerate() {
        if lse_t[row] != f32::NEG_INFINITY {
            lse[index] = lse_t[row];
        }
        let d_out_and_o = inputs.do_bthd[query_rows.at(row)].iter().zip(&inputs.o_bthd[query_rows.at(row)]);
        delta[index] = d_out_and_o.map(|(d_out, o)| d_out.load() * o.load()).sum();
    }
    (lse, delta)
}
