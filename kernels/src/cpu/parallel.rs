//! Work cut into fixed blocks and spread over the threads of the current rayon pool.
//!
//! The recipe: cut every slice that an operation touches with `chunks`/`chunks_mut` into blocks of
//! [`rows_per_block`] rows, zip the chunk iterators, and give the tuples to [`for_each`] or [`map`]. Block borders
//! depend on the shape alone and results come back in block order, so the bits are the same for any thread count.

use rayon::prelude::*;

/// Memory that one task touches: large beside the cost of handing a task to a thread (about a microsecond, in
/// which a core moves some 10 KiB), small beside a core's L2 cache.
const BLOCK_BYTES: usize = 64 * 1024;

/// How many rows one task takes when all its slices together hold `bytes_per_row`; at least one.
pub(crate) fn rows_per_block(bytes_per_row: usize) -> usize {
    (BLOCK_BYTES / bytes_per_row.max(1)).max(1)
}

/// Runs `body` on each task. A single task runs at once on the calling thread.
pub(crate) fn for_each<T: Send>(tasks: impl Iterator<Item = T>, body: impl Fn(T) + Send + Sync) {
    map(tasks, body);
}

/// Runs `body` on each task and gives the results in the order of the tasks.
pub(crate) fn map<T: Send, R: Send>(
    tasks: impl Iterator<Item = T>,
    body: impl Fn(T) -> R + Send + Sync,
) -> Vec<R> {
    let tasks: Vec<T> = tasks.collect();
    if tasks.len() < 2 {
        return tasks.into_iter().map(body).collect();
    }
    // One task at a time may be stolen: a task is large enough to be worth it.
    tasks.into_par_iter().with_max_len(1).map(body).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_pools;

    #[test]
    fn results_come_in_task_order_for_any_thread_count() {
        let squares = in_pools(|| map(0..100usize, |i| i * i));
        assert!(squares.iter().enumerate().all(|(i, &square)| square == i * i));
    }

    #[test]
    fn a_single_task_runs_on_the_calling_thread() {
        let here = std::thread::current().id();
        assert_eq!(map(0..1, |_| std::thread::current().id()), [here]);
    }

    #[test]
    fn a_block_holds_at_least_one_row() {
        assert_eq!(rows_per_block(10 * BLOCK_BYTES), 1);
        assert_eq!(rows_per_block(BLOCK_BYTES / 4), 4);
        assert_eq!(rows_per_block(0), BLOCK_BYTES);
    }
}
