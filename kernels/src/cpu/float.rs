//! The two float types as storage: values widen to f32 for arithmetic and round back when stored.
//!
//! Both directions are integer and float operations without branches, so loops over them vectorise; `half`'s own
//! conversions ask for processor features value by value.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use crate::cpu::avx512::{LANES, round_to_bf16};
use crate::dtype::{Element, bf16};

/// A float that tensors store.
pub(crate) trait Float: Element + Default {
    /// The value as f32, exact.
    fn load(self) -> f32;

    /// The nearest storable value, ties to even; NaN stays NaN.
    fn store(value: f32) -> Self;

    /// As [`Float::load`], sixteen at a time.
    ///
    /// # Safety
    /// The processor must have AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load16(from: &[Self; LANES]) -> __m512;

    /// As [`Float::store`], sixteen at a time.
    ///
    /// # Safety
    /// As [`Float::load16`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn store16(values: __m512, to: &mut [Self; LANES]);
}

impl Float for f32 {
    #[inline(always)]
    fn load(self) -> f32 {
        self
    }

    #[inline(always)]
    fn store(value: f32) -> f32 {
        value
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16(from: &[f32; LANES]) -> __m512 {
        // SAFETY: the array is as large as the vector; the caller's promise.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn store16(values: __m512, to: &mut [f32; LANES]) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), values) }
    }
}

impl Float for bf16 {
    #[inline(always)]
    fn load(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn store(value: f32) -> bf16 {
        let bits = value.to_bits();
        // Half of the last kept place, less one, plus the last kept bit: ties go to even.
        let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
        // Rounding could carry a NaN's payload into infinity; the quiet bit keeps it a NaN.
        let nan = bits >> 16 | 0x40;
        bf16::from_bits(if value.is_nan() { nan } else { rounded } as u16)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load16(from: &[bf16; LANES]) -> __m512 {
        // SAFETY: the array is as large as half a vector; the caller's promise.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn store16(values: __m512, to: &mut [bf16; LANES]) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), round_to_bf16(values)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_half_does_for_all_upper_halves() {
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let (got, want) = (bf16::store(value), bf16::from_f32(value));
                assert_eq!(got.is_nan(), want.is_nan(), "{value}");
                assert!(value.is_nan() || got.to_bits() == want.to_bits(), "{value}");
            }
        }
    }

    #[test]
    fn every_bf16_loads_exactly_and_comes_back() {
        for pattern in 0..=u16::MAX {
            let value = bf16::from_bits(pattern);
            assert_eq!(value.load().to_bits(), u32::from(pattern) << 16);
            assert!(value.is_nan() || bf16::store(value.load()).to_bits() == pattern);
        }
    }
}
