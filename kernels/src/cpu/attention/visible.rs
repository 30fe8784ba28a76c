//! Which keys the queries of a panel see, as ranges, so that a tile is skipped, taken whole, or masked at its edge.
//!
//! One query sees the global keys `0..prefix` and the keys of its band `start..end`; either may be empty.

use std::ops::Range;

use crate::cpu::attention::product::{COLS, ROWS};
use crate::ops::attention::Problem;

/// The keys that one query sees.
#[derive(Clone, Copy, Debug)]
struct Row {
    prefix: usize,
    start: usize,
    end: usize,
}

/// The keys that [`ROWS`] successive queries see.
#[derive(Clone, Debug)]
pub(super) struct Panel {
    rows: [Row; ROWS],
    /// What at least one row sees: nothing lies outside.
    any: Row,
    /// What every row sees.
    all: Row,
}

/// The part of one key tile that a panel works on: columns `range` of the tile, a multiple of [`COLS`] wide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) range: Range<usize>,
    /// The last columns of `range` that no row sees are not counted here.
    pub(super) seen_end: usize,
    /// Whether some row does not see some column of `range`.
    pub(super) masked: bool,
}

impl Panel {
    /// The panel whose first query is number `query` of the call. Rows behind the last query repeat it.
    pub(super) fn new(problem: &Problem, query: usize) -> Self {
        let last = problem.num_queries.saturating_sub(1);
        let rows = std::array::from_fn(|row| Row::new(problem, problem.query_start + last.min(query + row)));
        let fold = |pick: fn(&Row) -> usize, choose: fn(usize, usize) -> usize| {
            rows.iter().map(pick).reduce(choose).unwrap_or_default()
        };
        let any = Row {
            prefix: fold(|row| row.prefix, usize::max),
            start: fold(|row| row.start, usize::min),
            end: fold(|row| row.end, usize::max),
        };
        let all = Row {
            prefix: fold(|row| row.prefix, usize::min),
            start: fold(|row| row.start, usize::max),
            end: fold(|row| row.end, usize::min),
        };
        Panel { rows, any, all }
    }

    /// One behind the last key that the panel sees.
    pub(super) fn end(&self) -> usize {
        self.any.prefix.max(self.any.end)
    }

    /// What the panel needs of the tile of keys `tile`, or none when it sees none of them.
    pub(super) fn part(&self, tile: &Range<usize>) -> Option<Part> {
        let end = tile.end.min(self.end());
        let start = if self.any.prefix > tile.start { tile.start } else { tile.start.max(self.any.start) };
        if start >= end {
            return None;
        }
        let seen_end = end - tile.start;
        let range = (start - tile.start) / COLS * COLS..seen_end.next_multiple_of(COLS);
        let (first, last) = (tile.start + range.start, tile.start + range.end);
        let whole = last <= self.all.prefix || self.all.start <= first && last <= self.all.end;
        Some(Part { range, seen_end, masked: !whole })
    }

    /// Sets the scores of the keys that row `row` does not see to -inf. `scores` are those of the keys from `first`.
    pub(super) fn mask(&self, row: usize, first: usize, scores: &mut [f32]) {
        let Row { prefix, start, end } = self.rows[row];
        let column = |key: usize| key.saturating_sub(first).min(scores.len());
        let hidden = [column(prefix)..column(start.max(prefix)), column(end.max(prefix))..scores.len()];
        for range in hidden {
            scores[range].fill(f32::NEG_INFINITY);
        }
    }
}

impl Row {
    fn new(problem: &Problem, position: usize) -> Self {
        let mask = &problem.mask;
        let horizon = if mask.causal { problem.num_keys.min(position + 1) } else { problem.num_keys };
        match mask.window {
            Some(window) if position >= mask.num_global_tokens => {
                let end = horizon.min(position.saturating_add(window));
                let start = (position + 1).saturating_sub(window).min(end);
                Row { prefix: mask.num_global_tokens.min(horizon), start, end }
            }
            _ => Row { prefix: 0, start: 0, end: horizon },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::Mask;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_and_masks_show_exactly_what_the_mask_shows(
            causal: bool,
            window in proptest::option::of(1usize..40),
            num_global_tokens in 0usize..20,
            num_keys in 1usize..100,
            query_start in 0usize..100,
            num_queries in 1usize..12,
        ) {
            let mask = Mask { causal, window, num_global_tokens };
            let problem = Problem {
                batch: 1, num_queries, num_keys, num_heads: 1, num_kv_heads: 1, head_dim: 1, mask, scale: 1.0, query_start,
            };
            for query in (0..num_queries).step_by(ROWS) {
                let panel = Panel::new(&problem, query);
                for tile_start in (0..num_keys).step_by(32) {
                    let tile = tile_start..tile_start + 32;
                    let part = panel.part(&tile);
                    for row in 0..ROWS.min(num_queries - query) {
                        let mut shown = [f32::NEG_INFINITY; 32];
                        if let Some(part) = &part {
                            prop_assert!(part.seen_end <= part.range.end && part.range.end <= 32);
                            shown[part.range.clone()].fill(1.0);
                            if part.masked {
                                panel.mask(row, tile_start + part.range.start, &mut shown[part.range.clone()]);
                            }
                        }
                        for (col, score) in shown.into_iter().enumerate() {
                            let key = tile_start + col;
                            let sees = key < num_keys && mask.sees(query_start + query + row, key);
                            prop_assert_eq!(score == 1.0, sees, "query {} key {}", query + row, key);
                            prop_assert!(!sees || col < part.as_ref().map_or(0, |part| part.seen_end));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_tile_below_the_diagonal_is_taken_whole_and_one_above_it_not_at_all() {
        let problem = Problem {
            batch: 1,
            num_queries: 128,
            num_keys: 128,
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 1,
            mask: Mask { causal: true, ..Mask::default() },
            scale: 1.0,
            query_start: 0,
        };
        let panel = Panel::new(&problem, 64);
        assert_eq!(panel.part(&(0..64)), Some(Part { range: 0..64, seen_end: 64, masked: false }));
        assert_eq!(panel.part(&(64..128)), Some(Part { range: 0..16, seen_end: 8, masked: true }));
        assert_eq!(Panel::new(&problem, 0).part(&(64..128)), None);
    }
}
