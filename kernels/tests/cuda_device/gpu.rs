//! Whether there is a GPU to test on. Tests of other crates include this file.

use wattle_kernels::cuda;

/// Without one this says so, or fails where `WATTLE_REQUIRE_CUDA` is 1.
pub fn gpu_is_here() -> bool {
    let status = cuda::status();
    if !status.devices.is_empty() {
        return true;
    }
    let missing = status.libraries.iter().filter_map(|library| library.remedy).next();
    let reason = status.problem.as_deref().or(missing).unwrap_or("the driver shows none");
    let required = std::env::var("WATTLE_REQUIRE_CUDA").is_ok_and(|value| value == "1");
    assert!(!required, "WATTLE_REQUIRE_CUDA is 1, but there is no CUDA device: {reason}");
    eprintln!("did not run: no CUDA device ({reason})");
    false
}
