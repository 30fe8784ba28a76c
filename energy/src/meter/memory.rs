//! What memory draws, by its size: nothing of it is measured.
//!
//! On a machine of metal, the model of CodeCarbon 3: a guess at the number of modules, and watts for each. In a
//! virtual machine, whose memory is a slice of modules that others use too, 0.3725 W for each gigabyte (Green
//! Algorithms), where that is less.

use crate::units::Watts;

const GREEN_ALGORITHMS_WATTS_PER_GB: f64 = 0.3725;

/// Memory of a machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    /// All memory of the machine, in bytes.
    pub bytes: u64,
    /// The part of it that is charged to this process: what its control group may use, or else the part of the
    /// machine's CPUs that it may use.
    pub share: f64,
    /// True for Arm machines, whose modules draw less.
    pub is_arm: bool,
    /// True in a virtual machine.
    pub is_virtual: bool,
}

impl Memory {
    /// Power of the share.
    pub fn watts(&self) -> Watts {
        let gigabytes = self.gigabytes();
        let modules = module_watts(gigabytes, self.is_arm).0;
        let slice = if self.is_virtual { gigabytes * GREEN_ALGORITHMS_WATTS_PER_GB } else { f64::INFINITY };
        Watts(modules.min(slice) * self.share)
    }

    /// All memory of the machine, in units of 2^30 bytes.
    pub fn gigabytes(&self) -> f64 {
        self.bytes as f64 / f64::from(1u32 << 30)
    }
}

/// CodeCarbon 3: 5 W (Arm: 1.5 W) for each of the first four modules, a tenth less for the next four, a fifth less
/// for the next eight, three tenths less beyond; at least 10 W (Arm: 3 W).
fn module_watts(gigabytes: f64, is_arm: bool) -> Watts {
    let modules = match gigabytes {
        gb if gb <= 2.0 => 1,
        gb if gb <= 16.0 => 2,
        gb if gb <= 64.0 => 4,
        gb if gb <= 128.0 => 8,
        gb => {
            let largest = [4.0, 8.0, 16.0, 32.0, 64.0, 128.0].into_iter().rfind(|size| *size <= gb / 8.0);
            ((gb / largest.unwrap_or(4.0)).ceil() as u32).min(32)
        }
    };
    let (each, floor) = if is_arm { (1.5, 3.0) } else { (5.0, 10.0) };
    // In tenths of the first module, so that the sum is exact.
    let tenths: u32 = (0..modules)
        .map(|module| match module {
            0..4 => 10,
            4..8 => 9,
            8..16 => 8,
            _ => 7,
        })
        .sum();
    Watts((each * f64::from(tenths) / 10.0).max(floor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const METAL: Memory = Memory { bytes: 64 << 30, share: 1.0, is_arm: false, is_virtual: false };

    #[test]
    fn memory_modules_draw_the_published_watts() {
        // Origin: the checks published with the CodeCarbon 3 memory model.
        for (gigabytes, watts) in [(8, 10.0), (32, 20.0), (64, 20.0), (128, 38.0), (1024, 38.0)] {
            assert_eq!(Memory { bytes: gigabytes << 30, ..METAL }.watts(), Watts(watts), "{gigabytes} GB");
        }
        // By hand: 1 and 2 modules at the floor, 4 of 1.5 W, and 16 modules: 4 + 4 * 0.9 + 8 * 0.8 = 14 times 5 W.
        assert_eq!(Memory { bytes: 1 << 30, ..METAL }.watts(), Watts(10.0));
        assert_eq!(Memory { bytes: 8 << 30, is_arm: true, ..METAL }.watts(), Watts(3.0));
        assert_eq!(Memory { bytes: 64 << 30, is_arm: true, ..METAL }.watts(), Watts(6.0));
        assert_eq!(Memory { bytes: 2048 << 30, ..METAL }.watts(), Watts(70.0));
    }

    #[test]
    fn a_process_is_charged_its_share_and_a_small_slice_of_a_host_little() {
        assert_eq!(Memory { share: 0.25, ..METAL }.watts(), Watts(5.0));
        assert_eq!(Memory { bytes: 4 << 30, is_virtual: true, ..METAL }.watts(), Watts(4.0 * 0.3725));
        // A virtual machine as large as a host is charged no more than the host.
        assert_eq!(Memory { bytes: 1024 << 30, is_virtual: true, ..METAL }.watts(), Watts(38.0));
    }

    proptest! {
        #[test]
        fn no_machine_draws_an_absurd_amount(gigabytes in 0.1f64..24_576.0, is_arm in prop::bool::ANY) {
            let watts = module_watts(gigabytes, is_arm).0;
            // 32 modules: 4 + 3.6 + 6.4 + 16 * 0.7 = 25.2 times 5 W.
            prop_assert!((3.0..=126.0).contains(&watts), "{gigabytes} GB: {watts} W");
            prop_assert!(is_arm == (watts < module_watts(gigabytes, false).0));
        }
    }
}
