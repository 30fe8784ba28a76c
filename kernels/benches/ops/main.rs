//! Speed of each operation at the shapes of the CPU presets.
//!
//! `cargo bench -p wattle-kernels [-- FILTER]`, such as `-- grouped` or `-- 'rms_norm::backward.*M bf16'`. Threads are
//! those of rayon (`RAYON_NUM_THREADS`). Products show FLOPs as items, all show the bytes that must be moved.

// A failed call must stop the run: the time of an error is no speed.
#![allow(clippy::unwrap_used)]

mod attention;
mod cross_entropy;
mod grouped_matmul;
mod matmul;
mod optimizer;
mod permute;
mod routing;
mod rows;
mod shape;

use std::time::Duration;

fn main() {
    divan::Divan::default().max_time(Duration::from_secs(1)).config_with_args().main();
}
