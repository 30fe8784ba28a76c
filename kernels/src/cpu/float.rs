//! The two float types as storage: values widen to f32 for arithmetic and round back when stored.
//!
//! Both directions are integer and float operations without branches, so loops over them vectorise; `half`'s own
//! conversions ask for processor features value by value.

use crate::dtype::{Element, bf16};

/// A float that tensors store.
pub(crate) trait Float: Element + Default {
    /// The value as f32, exact.
    fn load(self) -> f32;

    /// The nearest storable value, ties to even; NaN stays NaN.
    fn store(value: f32) -> Self;
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
