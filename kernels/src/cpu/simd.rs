//! Which vector unit the processor has, and how plain loops are compiled for it.
//!
//! The binary is built for a baseline processor. A loop wrapped in [`vectorised`] is compiled once more per vector
//! unit and the widest one present runs.

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

/// Runs `body` compiled for the widest vector unit present. `body` must be small enough to inline: put the loop in
/// an `#[inline(always)]` function and call that from the closure.
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
