//! `wattle bench --limits`: what the machine can do at most.

use serde_json::{Value, json};
use wattle_kernels::limits::{Limits, Rate};
use wattle_kernels::{DType, peak, simd_level};

use crate::telemetry::format;

/// The limits as a table.
pub(super) fn text(limits: &Limits) -> String {
    let threads = format!("{} threads", limits.num_threads);
    let mut text = format!("limits measured, {:?}\n{:>50} {:>12}\n", simd_level(), threads, "one thread");
    let mut line = |what: &str, rates: [String; 2], unit: &str| {
        text.push_str(&format!("  {what:<36} {:>11} {:>12} {unit}\n", rates[0], rates[1]));
    };
    for (dtype, rate) in [(DType::F32, limits.f32_flops), (DType::Bf16, limits.bf16_flops)] {
        line(&format!("{dtype} ({})", peak::instruction(dtype)), in_giga(rate), "GFLOP/s");
    }
    line("memory, read", in_giga(limits.memory_read), "GB/s");
    line("memory, copy (read and written)", in_giga(limits.memory_copy), "GB/s");
    if let Some(rate) = limits.l2_read {
        line("second-level cache, read", ["-".into(), giga(rate)], "GB/s");
    }
    let caches = limits.last_level_cache_bytes.map_or("of unknown size".to_owned(), format::bytes);
    let arrays = format::bytes(limits.array_bytes);
    text.push_str(&format!("  two arrays of {arrays} in memory; last-level caches {caches}\n"));
    text
}

/// The limits as an object.
pub(super) fn json(limits: &Limits) -> Value {
    let giga = |rate: f64| (rate / 1e8).round() / 10.0;
    json!({
        "threads": limits.num_threads,
        "simd": format!("{:?}", simd_level()),
        "f32_instruction": peak::instruction(DType::F32),
        "f32_gflops": giga(limits.f32_flops.all_threads),
        "f32_gflops_one_thread": giga(limits.f32_flops.one_thread),
        "bf16_instruction": peak::instruction(DType::Bf16),
        "bf16_gflops": giga(limits.bf16_flops.all_threads),
        "bf16_gflops_one_thread": giga(limits.bf16_flops.one_thread),
        "memory_read_gb_per_s": giga(limits.memory_read.all_threads),
        "memory_read_gb_per_s_one_thread": giga(limits.memory_read.one_thread),
        "memory_copy_gb_per_s": giga(limits.memory_copy.all_threads),
        "memory_copy_gb_per_s_one_thread": giga(limits.memory_copy.one_thread),
        "l2_read_gb_per_s_one_thread": limits.l2_read.map(giga),
        "array_bytes": limits.array_bytes,
        "last_level_cache_bytes": limits.last_level_cache_bytes,
    })
}

fn in_giga(rate: Rate) -> [String; 2] {
    [giga(rate.all_threads), giga(rate.one_thread)]
}

fn giga(rate: f64) -> String {
    format!("{:.1}", rate / 1e9)
}
