//! What a register kernel is, and which ones this processor has.

use crate::cpu::gemm::{kernel_portable, matrix::Values, pack::CHUNK};
use crate::cpu::simd::{SimdLevel, simd_level};
use crate::dtype::bf16;

/// Sums one tile of the result in registers from packed panels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    /// Most rows of a tile.
    pub(super) rows: usize,
    /// Columns of a tile.
    pub(super) cols: usize,
    /// Units per k of a packed panel of A in line-inner order.
    pub(super) a_width: usize,
    /// Units per k of a packed panel of B.
    pub(super) b_width: usize,
    /// What it multiplies.
    pub(super) format: Format,
    /// The code.
    pub(super) run: unsafe fn(Panels, Out),
}

/// What a kernel multiplies, and so what packing makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// f32, into which bf16 is widened.
    F32,
    /// Pairs of bf16 neighbours along K.
    Bf16Pairs,
    /// bf16 as fp16 with one scale for a panel, which starts with a line that holds it.
    Fp16,
}

impl Kernel {
    /// Units that hold `k` elements of a line.
    pub(super) fn units(&self, k: usize) -> usize {
        if self.format == Format::Bf16Pairs { k.div_ceil(2) } else { k }
    }

    /// Units before the elements of a packed panel.
    pub(super) fn header(&self) -> usize {
        if self.format == Format::Fp16 { CHUNK } else { 0 }
    }

    /// Units of a packed panel of B with `k` elements along K.
    pub(super) fn b_panel(&self, k: usize) -> usize {
        self.header() + self.b_width * self.units(k)
    }
}

/// The packed operands of one tile.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    /// `[k / CHUNK][rows][CHUNK]` units when `k_inner`, else `[k][a_width]`, behind a header if the format has one.
    pub(super) a: *const u32,
    pub(super) k_inner: bool,
    /// `[k][b_width]` units, behind a header if the format has one.
    pub(super) b: *const u32,
    /// Units along K.
    pub(super) k: usize,
    /// Rows of the tile, from 1 to the kernel's `rows`.
    pub(super) rows: usize,
}

/// Where a tile's sums go.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub(super) to: OutPtr,
    /// Elements from one row to the next.
    pub(super) stride: usize,
    /// Columns to write, from 1 to the kernel's `cols`.
    pub(super) cols: usize,
    /// Whether to add to what is there.
    pub(super) accumulate: bool,
}

/// The first element of a tile of the result.
#[derive(Clone, Copy)]
pub(super) enum OutPtr {
    F32(*mut f32),
    Bf16(*mut bf16),
}

impl OutPtr {
    /// The pointer `offset` elements further on.
    ///
    /// # Safety
    /// As [`pointer::add`].
    pub(super) unsafe fn add(self, offset: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                OutPtr::F32(to) => OutPtr::F32(to.add(offset)),
                OutPtr::Bf16(to) => OutPtr::Bf16(to.add(offset)),
            }
        }
    }
}

/// The fastest kernel for these operands.
pub(super) fn choose(a: Values, b: Values) -> Kernel {
    #[cfg(target_arch = "x86_64")]
    {
        use crate::cpu::gemm::{kernel_avx2, kernel_avx512, kernel_bf16, kernel_fp16};
        if matches!((a, b), (Values::Bf16(_), Values::Bf16(_))) {
            if has_fast_bf16_dot() {
                return kernel_bf16::KERNEL;
            }
            if has_fp16() {
                return kernel_fp16::KERNEL;
            }
        }
        match simd_level() {
            SimdLevel::Avx512 => return kernel_avx512::KERNEL,
            SimdLevel::Avx2 => return kernel_avx2::KERNEL,
            SimdLevel::Baseline => {}
        }
    }
    kernel_portable::KERNEL
}

/// What the kernel for two bf16 operands multiplies here.
pub(crate) fn bf16_format() -> Format {
    choose(Values::Bf16(&[]), Values::Bf16(&[])).format
}

/// All kernels that run here.
#[cfg(test)]
pub(super) fn present() -> Vec<Kernel> {
    let mut kernels = vec![kernel_portable::KERNEL];
    #[cfg(target_arch = "x86_64")]
    {
        use crate::cpu::gemm::{kernel_avx2, kernel_avx512, kernel_bf16, kernel_fp16};
        if simd_level() >= SimdLevel::Avx2 {
            kernels.push(kernel_avx2::KERNEL);
        }
        if simd_level() == SimdLevel::Avx512 {
            kernels.push(kernel_avx512::KERNEL);
        }
        if has_bf16_dot() {
            kernels.push(kernel_bf16::KERNEL);
        }
        if has_fp16() {
            kernels.push(kernel_fp16::KERNEL);
        }
    }
    kernels
}

/// Whether this processor multiplies bf16 operands faster than f32, so that they are worth their lost digits.
///
/// True for AMD processors with AVX512-BF16 (Zen 4 and later), and for Intel processors with AVX512-FP16 (Sapphire
/// Rapids and later), both at twice the rate of f32. Those have the bf16 instruction too, but at half the rate of f32.
pub fn bf16_is_fast() -> bool {
    has_fast_bf16_dot() || has_fp16()
}

fn has_fast_bf16_dot() -> bool {
    has_bf16_dot() && is_amd()
}

#[cfg(target_arch = "x86_64")]
fn has_fp16() -> bool {
    // The kernel rounds its results with the bf16 instruction.
    has_bf16_dot() && is_x86_feature_detected!("avx512fp16")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_fp16() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
pub(super) fn has_bf16_dot() -> bool {
    simd_level() == SimdLevel::Avx512 && is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn has_bf16_dot() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_amd() -> bool {
    false
}

/// Writes the sums of a tile from its rows.
///
/// # Safety
/// `out` must be writable over the rows of `sums` and over `out.cols` columns, at most `COLS`.
#[inline(always)]
pub(super) unsafe fn write_tile<const COLS: usize>(sums: &[[f32; COLS]], out: Out) {
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: the caller's promise. A full row is set apart to give its loop a constant length.
        unsafe {
            let to = out.to.add(row * out.stride);
            match out.cols == COLS {
                true => write_sums(sums, to, out.accumulate),
                false => write_sums(&sums[..out.cols], to, out.accumulate),
            }
        }
    }
}

/// Writes or adds one row of sums to C.
///
/// # Safety
/// `to` must be writable for as many elements as there are sums.
#[inline(always)]
pub(super) unsafe fn write_sums(sums: &[f32], to: OutPtr, accumulate: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        match to {
            OutPtr::F32(to) => {
                let to = std::slice::from_raw_parts_mut(to, sums.len());
                for (to, sum) in to.iter_mut().zip(sums) {
                    *to = if accumulate { *to + sum } else { *sum };
                }
            }
            OutPtr::Bf16(to) => {
                let to = std::slice::from_raw_parts_mut(to, sums.len());
                for (to, sum) in to.iter_mut().zip(sums) {
                    *to = round_to_bf16(if accumulate { to.to_f32() + sum } else { *sum });
                }
            }
        }
    }
}

/// As `bf16::from_f32`, without branches, so that loops of it become vector code.
#[inline(always)]
pub(super) fn round_to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
    let quiet_nan = bits >> 16 | 0x40;
    bf16::from_bits(if x.is_nan() { quiet_nan } else { rounded } as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_agrees_with_the_half_crate() {
        let mut bits = 0u32;
        loop {
            let x = f32::from_bits(bits);
            assert_eq!(round_to_bf16(x).to_bits(), bf16::from_f32(x).to_bits(), "{bits:#x}");
            // A prime step meets all exponents and many halfway cases.
            match bits.checked_add(7919) {
                Some(next) => bits = next,
                None => break,
            }
        }
        for bits in
            [0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, 0xff80_0000, 0x8000_0000]
        {
            let x = f32::from_bits(bits);
            assert_eq!(round_to_bf16(x).to_bits(), bf16::from_f32(x).to_bits(), "{bits:#x}");
        }
    }
}
