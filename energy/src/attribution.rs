//! Where inside a step its energy went: phases, experts, and work that taught the model nothing.
//!
//! A counter cannot look inside a step, so a step's joules are split by time over its phases, and the experts' part
//! by the tokens each expert computed. The parts are whole microjoules and add up to the window exactly.

use std::time::Duration;

use crate::units::MicroJoules;
use crate::window::WindowEnergy;

/// The phase that is split over experts.
pub const EXPERTS_PHASE: &str = "experts";

/// The time of a window outside all named phases.
pub const OTHER_PHASE: &str = "other";

/// What the caller knows about a window.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attribution<'a> {
    /// Disjoint phases and their time.
    pub phases: &'a [(&'static str, Duration)],
    /// For each sparse layer its number and the assignments that each expert computed.
    pub experts: &'a [(usize, &'a [u64])],
    /// Work in vain.
    pub waste: &'a [Waste],
}

/// Work of a window that taught the model nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Waste {
    /// Why: `padding`, `dropped`, `skipped`.
    pub reason: &'static str,
    /// Padded tokens, dropped assignments, skipped steps.
    pub count: u64,
    /// Its part of the window, 0 to 1.
    pub share: f64,
}

/// A window's energy, split.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Split {
    /// Adds up to the window.
    pub phases: Vec<PhaseEnergy>,
    /// Adds up to the phase `experts`.
    pub experts: Vec<ExpertEnergy>,
    /// A look across; no part of the sums.
    pub waste: Vec<WastedEnergy>,
}

/// Energy of one phase.
#[derive(Clone, Debug, PartialEq)]
pub struct PhaseEnergy {
    /// `router`, `experts`, `attention`, ...
    pub phase: &'static str,
    /// Its time.
    pub seconds: f64,
    /// Its energy.
    pub microjoules: MicroJoules,
}

/// Energy of one expert of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertEnergy {
    /// From 0, dense layers counted.
    pub layer: usize,
    /// From 0.
    pub expert: usize,
    /// Assignments computed.
    pub tokens: u64,
    /// Its energy.
    pub microjoules: MicroJoules,
}

/// Energy of work in vain.
#[derive(Clone, Debug, PartialEq)]
pub struct WastedEnergy {
    /// Why.
    pub reason: &'static str,
    /// How often.
    pub count: u64,
    /// Its energy.
    pub microjoules: MicroJoules,
}

impl Attribution<'_> {
    /// Splits a window's energy; empty when the energy is unknown or no phase is.
    pub fn split(&self, window: &WindowEnergy) -> Split {
        if window.joules.is_none() || self.phases.is_empty() {
            return Split::default();
        }
        let energy = window.microjoules();
        let named: f64 = self.phases.iter().map(|(_, spent)| spent.as_secs_f64()).sum();
        let other = (OTHER_PHASE, (window.duration.0 - named).max(0.0));
        let seconds = self.phases.iter().map(|(phase, spent)| (*phase, spent.as_secs_f64())).chain([other]);
        let seconds: Vec<_> = seconds.filter(|(_, seconds)| *seconds > 0.0).collect();
        let parts = apportion(energy, seconds.iter().map(|(_, seconds)| *seconds));
        let phases = seconds.iter().zip(parts).map(|(&(phase, seconds), microjoules)| PhaseEnergy {
            phase,
            seconds,
            microjoules,
        });
        let phases: Vec<_> = phases.collect();
        let of_experts = phases.iter().find(|part| part.phase == EXPERTS_PHASE);
        let experts = of_experts.map_or(Vec::new(), |part| self.split_experts(part.microjoules));
        let waste = self.waste.iter().map(|waste| WastedEnergy {
            reason: waste.reason,
            count: waste.count,
            microjoules: MicroJoules((energy.0 as f64 * waste.share.clamp(0.0, 1.0)).round() as u64),
        });
        Split { phases, experts, waste: waste.collect() }
    }

    fn split_experts(&self, energy: MicroJoules) -> Vec<ExpertEnergy> {
        let loads = || {
            self.experts.iter().flat_map(|&(layer, tokens)| {
                tokens.iter().enumerate().map(move |(expert, &tokens)| (layer, expert, tokens))
            })
        };
        let parts = apportion(energy, loads().map(|(_, _, tokens)| tokens as f64));
        loads()
            .zip(parts)
            .map(|((layer, expert, tokens), microjoules)| ExpertEnergy { layer, expert, tokens, microjoules })
            .collect()
    }
}

impl Split {
    /// Adds another window's split.
    pub fn add(&mut self, other: &Split) {
        add_each(
            &mut self.phases,
            &other.phases,
            |own, new| own.phase == new.phase,
            |own, new| {
                own.seconds += new.seconds;
                own.microjoules += new.microjoules;
            },
        );
        add_each(
            &mut self.experts,
            &other.experts,
            |own, new| (own.layer, own.expert) == (new.layer, new.expert),
            |own, new| {
                own.tokens += new.tokens;
                own.microjoules += new.microjoules;
            },
        );
        add_each(
            &mut self.waste,
            &other.waste,
            |own, new| own.reason == new.reason,
            |own, new| {
                own.count += new.count;
                own.microjoules += new.microjoules;
            },
        );
    }
}

/// Adds each part to its like, or appends it. Parts in the same order, the usual case, cost no search.
pub(crate) fn add_each<T: Clone>(
    own: &mut Vec<T>,
    new: &[T],
    same: impl Fn(&T, &T) -> bool,
    add: impl Fn(&mut T, &T),
) {
    for (index, part) in new.iter().enumerate() {
        let at = match own.get(index) {
            Some(first) if same(first, part) => Some(index),
            _ => own.iter().position(|old| same(old, part)),
        };
        match at {
            Some(at) => add(&mut own[at], part),
            None => own.push(part.clone()),
        }
    }
}

/// Divides a whole by weights into parts that add up to it exactly; each is within a microjoule of its share. Weights
/// without a positive sum count as equal.
pub fn apportion(whole: MicroJoules, weights: impl Iterator<Item = f64> + Clone) -> Vec<MicroJoules> {
    let (count, sum) = weights.clone().fold((0usize, 0.0), |(count, sum), weight| (count + 1, sum + weight));
    let has_sum = sum > 0.0 && sum.is_finite();
    let (mut reached, mut given) = (0.0, 0);
    let mut parts = Vec::with_capacity(count);
    for (index, weight) in weights.enumerate() {
        reached += if has_sum { weight / sum } else { 1.0 / count as f64 };
        // Rounding the running sum, not each part, is what makes the parts add up.
        let until = match index + 1 == count {
            true => whole.0,
            false => ((whole.0 as f64 * reached).round() as u64).clamp(given, whole.0),
        };
        parts.push(MicroJoules(until - given));
        given = until;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Provenance;
    use crate::units::Seconds;
    use crate::window::{DomainEnergy, WindowKind};
    use proptest::prelude::*;

    fn window(microjoules: u64, seconds: f64) -> WindowEnergy {
        let part = DomainEnergy {
            domain: "cpu".into(),
            sensor: "model",
            provenance: Provenance::Modelled,
            microjoules: MicroJoules(microjoules),
        };
        WindowEnergy::new(0, WindowKind::Step, Seconds(seconds), None, true, vec![part])
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_step_splits_by_time_and_its_experts_by_tokens() {
        let split = Attribution {
            phases: &[("attention", ms(250)), ("router", ms(0)), ("experts", ms(500))],
            experts: &[(1, &[3, 0]), (2, &[1, 0])],
            waste: &[Waste { reason: "padding", count: 10, share: 0.1 }],
        }
        .split(&window(4_000_000, 1.0));
        let phases: Vec<_> = split.phases.iter().map(|part| (part.phase, part.microjoules.0)).collect();
        assert_eq!(phases, [("attention", 1_000_000), ("experts", 2_000_000), ("other", 1_000_000)]);
        let experts: Vec<_> = split
            .experts
            .iter()
            .map(|part| (part.layer, part.expert, part.tokens, part.microjoules.0))
            .collect();
        assert_eq!(experts, [(1, 0, 3, 1_500_000), (1, 1, 0, 0), (2, 0, 1, 500_000), (2, 1, 0, 0)]);
        assert_eq!(split.waste[0].microjoules, MicroJoules(400_000));
    }

    #[test]
    fn phases_longer_than_the_window_leave_nothing_for_other() {
        let split = Attribution { phases: &[("head", ms(1500))], ..Attribution::default() };
        let split = split.split(&window(9, 1.0));
        assert_eq!(split.phases.len(), 1);
        assert_eq!(split.phases[0].microjoules, MicroJoules(9));
    }

    #[test]
    fn unknown_energy_is_not_split_into_zeros() {
        let unread = WindowEnergy::new(0, WindowKind::Step, Seconds(1.0), None, false, Vec::new());
        let split = Attribution { phases: &[("head", ms(1000))], ..Attribution::default() }.split(&unread);
        assert_eq!(split, Split::default());
    }

    proptest! {
        #[test]
        fn parts_add_up_and_are_within_a_microjoule_of_their_share(
            whole in 0u64..1 << 50,
            weights in prop::collection::vec(prop_oneof![Just(0.0), 0.0f64..1e6], 1..200),
        ) {
            let parts = apportion(MicroJoules(whole), weights.iter().copied());
            prop_assert_eq!(parts.iter().map(|part| part.0).sum::<u64>(), whole);
            let sum: f64 = weights.iter().sum();
            if sum > 0.0 {
                for (part, weight) in parts.iter().zip(&weights) {
                    let share = whole as f64 * weight / sum;
                    // Beside the microjoule of rounding, what f64 cannot hold of the whole.
                    prop_assert!((part.0 as f64 - share).abs() <= 1.0 + whole as f64 * 1e-13, "{part:?} {share}");
                }
            }
        }
    }
}
