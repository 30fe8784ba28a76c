//! What this machine can do at most, measured: the multiply-adds of each format and the bandwidth of its memory.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::cpu::simd::vectorised;
use crate::dtype::DType;
use crate::peak;

/// The measured limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Threads of the pool.
    pub num_threads: usize,
    /// FLOP/s of f32 multiply-adds in registers.
    pub f32_flops: Rate,
    /// FLOP/s of the instruction that bf16 products use.
    pub bf16_flops: Rate,
    /// Bytes/s read from memory.
    pub memory_read: Rate,
    /// Bytes/s read and written by a copy from memory to memory, both counted.
    pub memory_copy: Rate,
    /// Bytes/s that one thread reads from half of its second-level cache; none where its size is unknown.
    pub l2_read: Option<f64>,
    /// Size of each of the two arrays that are read and copied.
    pub array_bytes: usize,
    /// All last-level caches together; none where the system does not tell.
    pub last_level_cache_bytes: Option<usize>,
}

/// One limit, with every thread at work and with one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// All threads of the pool together.
    pub all_threads: f64,
    /// One thread, the others idle.
    pub one_thread: f64,
}

impl Limits {
    /// Measures: the best of forty runs for multiply-adds, of three for memory. Its two arrays are each twice the last-level
    /// caches, at least 128 MiB, and at most an eighth of the memory that is free.
    pub fn measure() -> Self {
        let last_level_cache_bytes = cache_bytes(3);
        let array_bytes = array_bytes(last_level_cache_bytes, available_bytes());
        let flops = |dtype| Rate {
            all_threads: peak::measure_flops(dtype),
            one_thread: peak::measure_flops_of_one_thread(dtype),
        };
        let [memory_read, memory_copy] = measure_memory(array_bytes);
        Limits {
            num_threads: rayon::current_num_threads(),
            f32_flops: flops(DType::F32),
            bf16_flops: flops(DType::Bf16),
            memory_read,
            memory_copy,
            l2_read: first_cache_bytes(2).map(|bytes| measure_cache(bytes / 2)),
            array_bytes,
            last_level_cache_bytes,
        }
    }

    /// Seconds that these limits ask at least for products of `dtype` of so many FLOPs and for so many bytes: the longer of
    /// both. Memory counts with the better of its two bandwidths.
    pub fn least_seconds(&self, dtype: &str, flops: f64, bytes: f64) -> f64 {
        self.compute_seconds(dtype, flops).max(self.memory_seconds(bytes))
    }

    /// Whether the multiply-adds take longer than the bytes.
    pub fn is_compute_bound(&self, dtype: &str, flops: f64, bytes: f64) -> bool {
        self.compute_seconds(dtype, flops) > self.memory_seconds(bytes)
    }

    fn compute_seconds(&self, dtype: &str, flops: f64) -> f64 {
        let rate = if dtype == DType::Bf16.name() { self.bf16_flops } else { self.f32_flops };
        flops / rate.all_threads
    }

    fn memory_seconds(&self, bytes: f64) -> f64 {
        bytes / self.memory_read.all_threads.max(self.memory_copy.all_threads)
    }
}

const NUM_RUNS: usize = 3;

/// Two arrays of 8-byte words. Which thread wrote them first decides where their pages lie.
struct Arrays {
    from: Vec<u64>,
    to: Vec<u64>,
}

impl Arrays {
    fn new(bytes: usize) -> Self {
        let filled = |value| vec![value; bytes / size_of::<u64>()];
        // Not zero: the system answers zeroed memory that was never written with one page for all.
        Arrays { from: filled(1), to: filled(2) }
    }

    fn copy(&mut self) {
        self.to.copy_from_slice(black_box(&self.from));
        black_box(&mut self.to);
    }
}

/// [read, copy] of arrays of `bytes` in all.
fn measure_memory(bytes: usize) -> [Rate; 2] {
    let num_threads = rayon::current_num_threads();
    let parts: Vec<_> =
        rayon::broadcast(|_| Mutex::new(Arrays::new(bytes / num_threads))).into_iter().collect();
    let of_thread = |thread: usize| parts[thread].lock().unwrap_or_else(PoisonError::into_inner);
    let read = best_seconds(|| drop(rayon::broadcast(|thread| read_words(&of_thread(thread.index()).from))));
    let copy = best_seconds(|| drop(rayon::broadcast(|thread| of_thread(thread.index()).copy())));
    // One thread goes over all parts: no less memory, but each page where it was.
    let read_by_one = best_seconds(|| (0..num_threads).for_each(|part| read_words(&of_thread(part).from)));
    let copy_by_one = best_seconds(|| (0..num_threads).for_each(|part| of_thread(part).copy()));
    let moved = (bytes / num_threads / size_of::<u64>() * size_of::<u64>() * num_threads) as f64;
    [
        Rate { all_threads: moved / read, one_thread: moved / read_by_one },
        Rate { all_threads: 2.0 * moved / copy, one_thread: 2.0 * moved / copy_by_one },
    ]
}

/// Bytes/s that the calling thread reads from an array of `bytes`, read often enough to last a few milliseconds.
fn measure_cache(bytes: usize) -> f64 {
    const NUM_PASSES: usize = 512;
    let array = vec![1u64; bytes / size_of::<u64>()];
    let pass = || (0..NUM_PASSES).for_each(|_| read_words(&array));
    (NUM_PASSES * size_of_val(array.as_slice())) as f64 / best_seconds(pass)
}

/// Reads every word and keeps nothing.
fn read_words(words: &[u64]) {
    black_box(sum(black_box(words)));
}

/// Integers, whose sum the compiler may take in any order and so in wide registers.
fn sum(words: &[u64]) -> u64 {
    vectorised(
        #[inline(always)]
        || words.iter().fold(0u64, |sum, &word| sum.wrapping_add(word)),
    )
}

fn best_seconds(run: impl Fn()) -> f64 {
    let seconds = || {
        let begin = Instant::now();
        run();
        begin.elapsed().as_secs_f64()
    };
    (0..NUM_RUNS).map(|_| seconds()).fold(f64::INFINITY, f64::min)
}

fn array_bytes(last_level_cache: Option<usize>, available: Option<usize>) -> usize {
    const LEAST: usize = 128 << 20;
    /// Where nothing is known of the caches: larger than those of common processors.
    const UNKNOWN: usize = 256 << 20;
    let wanted = last_level_cache.map_or(UNKNOWN, |bytes| 2 * bytes).max(LEAST);
    available.map_or(wanted, |bytes| wanted.min(bytes / 8))
}

const CPUS: &str = "/sys/devices/system/cpu";

/// The caches of a level, all of them together.
fn cache_bytes(level: u32) -> Option<usize> {
    let mut caches: Vec<(String, usize)> =
        fs::read_dir(CPUS).ok()?.flatten().filter_map(|cpu| cache_of(&cpu.path(), level)).collect();
    // CPUs that share a cache name the same set of CPUs.
    caches.sort();
    caches.dedup();
    (!caches.is_empty()).then(|| caches.iter().map(|(_, bytes)| bytes).sum())
}

fn first_cache_bytes(level: u32) -> Option<usize> {
    cache_of(&Path::new(CPUS).join("cpu0"), level).map(|(_, bytes)| bytes)
}

/// The CPUs that share a cache of this level with `cpu`, and its size.
fn cache_of(cpu: &Path, level: u32) -> Option<(String, usize)> {
    let caches = fs::read_dir(cpu.join("cache")).ok()?.flatten();
    caches.map(|cache| cache.path()).find_map(|cache| {
        let read = |name| fs::read_to_string(cache.join(name)).map(|text| text.trim().to_owned()).ok();
        let holds_data = read("type")? != "Instruction";
        let is_wanted = holds_data && read("level")? == level.to_string();
        Some((read("shared_cpu_list")?, kibibytes(&read("size")?)?)).filter(|_| is_wanted)
    })
}

/// Bytes of a size such as `2048K`, the only unit the kernel writes there.
fn kibibytes(text: &str) -> Option<usize> {
    text.strip_suffix('K')?.parse::<usize>().ok().map(|size| size << 10)
}

fn available_bytes() -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok().map(|size| size << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn arrays_are_far_larger_than_the_caches_but_leave_the_memory_free() {
        assert_eq!(array_bytes(Some(260 * MIB), Some(24 << 30)), 520 * MIB);
        assert_eq!(array_bytes(Some(8 * MIB), Some(24 << 30)), 128 * MIB);
        assert_eq!(array_bytes(Some(260 * MIB), Some(1 << 30)), 128 * MIB);
        assert_eq!(array_bytes(None, None), 256 * MIB);
    }

    #[test]
    fn sizes_of_caches_are_read_in_their_unit() {
        assert_eq!(kibibytes("2048K"), Some(2 * MIB));
        assert_eq!(kibibytes("2048"), None);
    }

    #[test]
    fn the_longer_of_both_limits_counts() {
        let rate = |all_threads| Rate { all_threads, one_thread: all_threads };
        let limits = Limits {
            num_threads: 1,
            f32_flops: rate(100.0),
            bf16_flops: rate(200.0),
            memory_read: rate(10.0),
            memory_copy: rate(8.0),
            l2_read: None,
            array_bytes: 0,
            last_level_cache_bytes: None,
        };
        assert_eq!(limits.least_seconds("f32", 400.0, 10.0), 4.0);
        assert_eq!(limits.least_seconds("bf16", 400.0, 10.0), 2.0);
        assert_eq!(limits.least_seconds("bf16", 400.0, 50.0), 5.0);
        assert!(limits.is_compute_bound("f32", 400.0, 10.0) && !limits.is_compute_bound("f32", 0.0, 10.0));
    }

    #[test]
    fn every_word_is_copied_and_read() {
        let mut arrays = Arrays::new(4096);
        arrays.copy();
        assert_eq!((sum(&arrays.to), arrays.to.len()), (512, 512));
    }
}
