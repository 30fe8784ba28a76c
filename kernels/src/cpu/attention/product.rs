//! Small matrix products on one thread: one operand is read as it lies, element by element, the other by rows.
//!
//! Attention tiles are too small to pay for packing both operands. Here an element of `a` is broadcast against
//! vectors of a row of `b`, so `a` may have any strides and only `b` needs its rows contiguous.

use crate::cpu::simd::{SimdLevel, simd_level, vectorised};

/// Rows of a product come in multiples of this.
pub(super) const ROWS: usize = 8;
/// Columns of a product come in multiples of this.
pub(super) const COLS: usize = 16;

/// Whether the baseline of this target multiplies and adds in one instruction.
const BASELINE_FUSED: bool = cfg!(target_arch = "aarch64");

/// The left operand: element (m, k) is `data[m * row_stride + k * col_stride]`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) data: &'a [f32],
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

/// The sizes of c_mn = a_mk·b_kn. `m` is a multiple of [`ROWS`] and `n` of [`COLS`].
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

/// c = a·b, or c += a·b with `accumulate`. Rows of b and c start `b_stride` and `c_stride` elements apart.
pub(super) fn product(
    size: Size,
    a: Left<'_>,
    (b, b_stride): (&[f32], usize),
    (c, c_stride): (&mut [f32], usize),
    accumulate: bool,
) {
    let Size { m, n, k } = size;
    assert!(m % ROWS == 0 && n % COLS == 0 && n <= c_stride, "tiles are padded to whole registers");
    if m == 0 || n == 0 {
        return;
    }
    assert!((m - 1) * c_stride + n <= c.len(), "c holds m rows");
    if k > 0 {
        assert!((m - 1) * a.row_stride + (k - 1) * a.col_stride < a.data.len(), "a holds m x k elements");
        assert!((k - 1) * b_stride + n <= b.len(), "b holds k rows");
    }
    let operands = Operands { size, a, b, b_stride, c: c.as_mut_ptr(), c_stride, accumulate };
    // Closures are inlined so that their code is compiled for the vector unit that `vectorised` chose.
    match simd_level() {
        SimdLevel::Avx512 => vectorised(
            #[inline(always)]
            // SAFETY: the assertions above are what `tiles` asks for, and ROWS and COLS fit the tile.
            || unsafe { operands.tiles::<8, 32, true>() },
        ),
        SimdLevel::Avx2 => vectorised(
            #[inline(always)]
            // SAFETY: as above.
            || unsafe { operands.tiles::<4, 16, true>() },
        ),
        // SAFETY: as above.
        SimdLevel::Baseline => unsafe { operands.tiles::<4, 8, BASELINE_FUSED>() },
    }
}

struct Operands<'a> {
    size: Size,
    a: Left<'a>,
    b: &'a [f32],
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
    accumulate: bool,
}

impl Operands<'_> {
    /// All of c in tiles of R x N, the last columns in tiles of R x [`COLS`] where N does not divide them.
    ///
    /// # Safety
    /// `a`, `b` and `c` hold every element that `size` and the strides reach; R divides [`ROWS`], and N divides
    /// [`COLS`] or is twice it.
    #[inline(always)]
    unsafe fn tiles<const R: usize, const N: usize, const FUSED: bool>(&self) {
        let whole = self.size.n / N * N;
        for row in (0..self.size.m).step_by(R) {
            for col in (0..whole).step_by(N) {
                // SAFETY: row + R <= m and col + N <= n.
                unsafe { self.tile::<R, N, FUSED>(row, col) };
            }
            if whole < self.size.n {
                // SAFETY: n is a multiple of COLS, so the rest is COLS columns.
                unsafe { self.tile::<R, COLS, FUSED>(row, whole) };
            }
        }
    }

    /// One tile of c, held in registers over the whole of k.
    ///
    /// # Safety
    /// As [`Self::tiles`], and the tile lies inside c.
    #[inline(always)]
    unsafe fn tile<const R: usize, const N: usize, const FUSED: bool>(&self, row: usize, col: usize) {
        let Left { data, row_stride, col_stride } = self.a;
        // SAFETY: the caller's promise covers every element read and written; [f32; N] has the alignment of f32.
        unsafe {
            let c = |r: usize| self.c.add((row + r) * self.c_stride + col).cast::<[f32; N]>();
            let mut sums = [[0.0; N]; R];
            if self.accumulate {
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = *c(r);
                }
            }
            for k in 0..self.size.k {
                let b = *self.b.as_ptr().add(k * self.b_stride + col).cast::<[f32; N]>();
                for (r, sum) in sums.iter_mut().enumerate() {
                    let a = *data.as_ptr().add((row + r) * row_stride + k * col_stride);
                    for (sum, b) in sum.iter_mut().zip(b) {
                        *sum = if FUSED { a.mul_add(b, *sum) } else { a * b + *sum };
                    }
                }
            }
            for (r, sum) in sums.into_iter().enumerate() {
                *c(r) = sum;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::values;

    fn check(size: Size, transposed: bool, accumulate: bool) {
        let Size { m, n, k } = size;
        let (b_stride, c_stride) = (n + 3, n + 5);
        let a: Vec<f32> = values(m * k, 1).iter().map(|&x| x as f32).collect();
        let b: Vec<f32> = values(k * b_stride, 2).iter().map(|&x| x as f32).collect();
        let before: Vec<f32> = values(m * c_stride, 3).iter().map(|&x| x as f32).collect();
        let mut c = before.clone();
        let (row_stride, col_stride) = if transposed { (1, m) } else { (k, 1) };
        let left = Left { data: &a, row_stride, col_stride };
        product(size, left, (&b, b_stride), (&mut c, c_stride), accumulate);
        for row in 0..m {
            for col in 0..c_stride {
                let at = row * c_stride + col;
                let sum: f64 = (0..k)
                    .map(|k| {
                        f64::from(a[row * row_stride + k * col_stride] * b[k * b_stride + col.min(n - 1)])
                    })
                    .sum();
                let old = f64::from(before[at]);
                let want = if col >= n { old } else { sum + if accumulate { old } else { 0.0 } };
                assert!((f64::from(c[at]) - want).abs() < 1e-4, "{m}x{n}x{k} at {row}, {col}");
            }
        }
    }

    #[test]
    fn product_is_the_sum_over_k_for_all_strides() {
        for (m, n, k) in [(8, 16, 1), (8, 32, 5), (16, 48, 7), (64, 64, 33), (8, 16, 0)] {
            for (transposed, accumulate) in [(false, false), (false, true), (true, false), (true, true)] {
                check(Size { m, n, k }, transposed, accumulate);
            }
        }
    }
}
