//! Counter-based random numbers: Philox 4x32-10 (Salmon et al., SC'11), keyed by seed and purpose.
//!
//! A value depends on (seed, purpose, step, index) alone, so there is no state to save and the same numbers come
//! out for every thread count, batch size and rank layout.

/// What the numbers are for: streams of different purposes never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights; `step` is the parameter's number.
    Init = 1,
    /// The order of training samples; `step` is the epoch.
    Shuffle = 2,
    /// Sampling of generated tokens.
    Generate = 3,
    /// Random tokens of benchmarks and tests.
    Synthetic = 4,
    /// Choosing held-out documents.
    Split = 5,
}

/// A stream of random numbers, addressed by index.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
    step: u64,
}

impl Philox {
    /// The stream of one purpose at one step.
    pub fn new(seed: u64, purpose: Purpose, step: u64) -> Self {
        // The purpose goes into the high key word by an odd multiplier, so that seeds and purposes do not collide.
        let high = (seed >> 32) as u32 ^ (purpose as u32).wrapping_mul(0x9E37_79B1);
        Philox { key: [seed as u32, high], step }
    }

    /// Four independent 32-bit words at `index`.
    pub fn words(&self, index: u64) -> [u32; 4] {
        let counter = [index as u32, (index >> 32) as u32, self.step as u32, (self.step >> 32) as u32];
        philox_4x32_10(counter, self.key)
    }

    /// A 64-bit word at `index`.
    pub fn word(&self, index: u64) -> u64 {
        let [low, high, ..] = self.words(index);
        u64::from(low) | u64::from(high) << 32
    }

    /// A uniform value in [0, 1) at `index`, 53 bits.
    pub fn uniform(&self, index: u64) -> f64 {
        (self.word(index) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A whole number in `0..bound` at `index`; `bound` of 0 gives 0. The bias is below bound / 2^64.
    pub fn below(&self, index: u64, bound: u64) -> u64 {
        ((u128::from(self.word(index)) * u128::from(bound)) >> 64) as u64
    }

    /// Four independent standard normal values at `index` (Box-Muller on 32-bit uniforms).
    pub fn normals(&self, index: u64) -> [f32; 4] {
        let [a, b, c, d] = self.words(index);
        let pair = |radius: u32, angle: u32| {
            // In (0, 1], so that the logarithm is finite.
            let uniform = (f64::from(radius) + 1.0) / 4_294_967_296.0;
            let (sin, cos) = (std::f64::consts::TAU * f64::from(angle) / 4_294_967_296.0).sin_cos();
            let radius = (-2.0 * uniform.ln()).sqrt();
            [(radius * cos) as f32, (radius * sin) as f32]
        };
        let ([w, x], [y, z]) = (pair(a, b), pair(c, d));
        [w, x, y, z]
    }

    /// One standard normal value at `index`: the first of [`Philox::normals`].
    pub fn normal(&self, index: u64) -> f64 {
        f64::from(self.normals(index)[0])
    }
}

fn philox_4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key[0] = key[0].wrapping_add(0x9E37_79B9);
            key[1] = key[1].wrapping_add(0xBB67_AE85);
        }
        let low = u64::from(counter[0]) * 0xD251_1F53;
        let high = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers from the Random123 distribution (kat_vectors, philox4x32 10 rounds).
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(philox_4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox_4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn normal_values_have_mean_zero_and_variance_one() {
        let rng = Philox::new(7, Purpose::Init, 3);
        let n = 100_000;
        let values: Vec<f64> = (0..n / 4).flat_map(|i| rng.normals(i)).map(f64::from).collect();
        let mean = values.iter().sum::<f64>() / n as f64;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.02, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.03, "variance {variance}");
    }

    #[test]
    fn purposes_and_steps_give_different_numbers() {
        let a = Philox::new(1, Purpose::Init, 0).word(0);
        assert_ne!(a, Philox::new(1, Purpose::Shuffle, 0).word(0));
        assert_ne!(a, Philox::new(1, Purpose::Init, 1).word(0));
        assert_ne!(a, Philox::new(2, Purpose::Init, 0).word(0));
    }
}
