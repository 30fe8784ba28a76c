//! The kernel for every processor: plain loops over small arrays, which the compiler turns into what the build
//! target has (SSE2, NEON).

use crate::cpu::gemm::kernel::{Format, Kernel, Out, Panels, write_tile};
use crate::cpu::gemm::pack::CHUNK;

const ROWS: usize = 4;
const COLS: usize = 8;
const A_WIDTH: usize = 8;

pub(super) const KERNEL: Kernel =
    Kernel { rows: ROWS, cols: COLS, a_width: A_WIDTH, b_width: COLS, format: Format::F32, run };

/// # Safety
/// The panels must hold what [`Panels`] says, and `out` must be writable as [`write_tile`] needs.
unsafe fn run(panels: Panels, out: Out) {
    // SAFETY: the caller's promise, with the number of rows given.
    unsafe {
        match panels.rows {
            1 => tile::<1>(panels, out),
            2 => tile::<2>(panels, out),
            3 => tile::<3>(panels, out),
            _ => tile::<ROWS>(panels, out),
        }
    }
}

/// # Safety
/// As [`run`].
unsafe fn tile<const R: usize>(panels: Panels, out: Out) {
    let (chunk_step, row_step, k_step) =
        if panels.k_inner { (R * CHUNK, CHUNK, 1) } else { (CHUNK * A_WIDTH, 1, A_WIDTH) };
    let mut sums = [[0.0f32; COLS]; R];
    for k in 0..panels.k {
        // SAFETY: the panels hold `panels.k` units along K in the order that the steps describe.
        let (a, b) = unsafe {
            let a = panels.a.cast::<f32>().add(k / CHUNK * chunk_step + k % CHUNK * k_step);
            let a: [f32; R] = std::array::from_fn(|row| *a.add(row * row_step));
            (a, *panels.b.add(k * COLS).cast::<[f32; COLS]>())
        };
        for (sums, a) in sums.iter_mut().zip(a) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { write_tile(&sums, out) }
}
