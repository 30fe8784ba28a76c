//! Which vector unit the processor has, and how plain loops are compiled for it.
//!
//! The binary is built for a baseline processor. A loop wrapped in [`vectorised`] is compiled once more per vector
//! unit and the widest one present runs. The recipe:
//!
//! - Write `vectorised(#[inline(always)] || …)`. Only code that is inlined takes on the wider unit; without the
//!   attribute a closure of some size stays a function of its own, compiled for the baseline, with no word said.
//!   Every function of ours that the closure calls in its loop is `#[inline(always)]` too.
//! - One call per block of rows, not per row: a call costs a few nanoseconds and hides its loops from the caller.
//! - Iterate with `zip` or over slices cut to one length, so that no bounds check stands in the loop.
//! - A loop that writes several slices goes into an `#[inline(always)]` function that takes them as parameters:
//!   only parameters are known not to overlap, and the compiler gives up on too many overlap checks.
//! - Floating-point sums are never reordered by the compiler: take them with `reduce::lane_sum`.
//! - `f32::mul_add` is one instruction on AVX2 and AVX-512 but a slow library call on the baseline. Loops bound by
//!   memory multiply and add separately and so give the same bits on every unit.

use std::sync::OnceLock;

/// The widest vector unit that the kernels can use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SimdLevel {
    /// What the build target guarantees (SSE2 on x86-64, NEON on Arm).
    Baseline,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL with FMA.
    Avx512,
}

/// The vector unit found at run time; `WATTLE_SIMD=baseline|avx2` lowers it for tests and comparisons.
pub fn simd_level() -> SimdLevel {
    static LEVEL: OnceLock<SimdLevel> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let found = detect();
        match std::env::var("WATTLE_SIMD").as_deref() {
            Ok("baseline") => SimdLevel::Baseline,
            Ok("avx2") => found.min(SimdLevel::Avx2),
            _ => found,
        }
    })
}

#[cfg(target_arch = "x86_64")]
fn detect() -> SimdLevel {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx512, avx2) {
        (true, _) => SimdLevel::Avx512,
        (false, true) => SimdLevel::Avx2,
        (false, false) => SimdLevel::Baseline,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> SimdLevel {
    SimdLevel::Baseline
}

/// Runs `body`, an `#[inline(always)]` closure, compiled for the widest vector unit present.
#[inline]
pub(crate) fn vectorised<R>(body: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    match simd_level() {
        // SAFETY: `simd_level` found these features on the running processor.
        SimdLevel::Avx512 => return unsafe { with_avx512(body) },
        // SAFETY: as above.
        SimdLevel::Avx2 => return unsafe { with_avx2(body) },
        SimdLevel::Baseline => {}
    }
    body()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn with_avx512<R>(body: impl FnOnce() -> R) -> R {
    body()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2<R>(body: impl FnOnce() -> R) -> R {
    body()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                rust_files(&path, found);
            } else {
                found.push(path);
            }
        }
    }

    /// The compiler says nothing when a closure stays on the baseline, so the source is read instead.
    #[test]
    fn every_vectorised_closure_is_inlined() {
        let mut files = Vec::new();
        rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cpu"), &mut files);
        let call = concat!("vectorised", "(");
        let mut num_calls = 0;
        for file in files.iter().filter(|file| !file.ends_with("simd.rs")) {
            let source = std::fs::read_to_string(file).unwrap();
            for (at, _) in source.match_indices(call) {
                let argument = source[at + call.len()..].trim_start();
                let line = source[..at].lines().count();
                assert!(argument.starts_with("#[inline(always)]"), "{}:{line}", file.display());
                num_calls += 1;
            }
        }
        assert!(num_calls > 0);
    }
}
