//! A trial of registers before they are trusted.
//!
//! A register that is there may still count nothing (hypervisors show RAPL that stays at zero, some boards a dead
//! `dram`), and two may be one: the dies of an AMD package can mirror its counter. Neither is told by a name, both
//! by watching for a few milliseconds.

use super::host::Host;
use super::register::RegisterMeter;
use super::{MeterError, MeterErrorKind};

/// Changes of a register after which its likeness to another is believed.
const ENOUGH_CHANGES: usize = 4;
/// Readings before a register that never changed is given up: 0.2 s.
const MOST_ROUNDS: usize = 40;

/// Meters that count, each energy once, and what was left out and why.
#[derive(Default)]
pub struct Tried {
    /// The meters to read.
    pub meters: Vec<RegisterMeter>,
    /// Registers that are there and are not read.
    pub left_out: Vec<MeterError>,
    /// The domains of both.
    pub domains: Vec<String>,
}

/// Watches the registers of `meters` and keeps those that move, each once.
///
/// # Errors
/// When none is kept: why the first was left out.
pub(super) fn try_out(
    host: &Host,
    sensor: &'static str,
    meters: Vec<RegisterMeter>,
) -> Result<Tried, MeterError> {
    let rounds = watch(host, &meters);
    let domains = meters.iter().map(|meter| meter.name().to_owned()).collect();
    let mut tried = Tried { domains, ..Tried::default() };
    let mut kept: Vec<usize> = Vec::new();
    for (index, meter) in meters.into_iter().enumerate() {
        let twin = kept.iter().position(|&other| are_one(&rounds, other, index));
        let (kind, message, remedy) = if let Some(twin) = twin {
            let message = format!("{} shows the same counter as {}", meter.name(), tried.meters[twin].name());
            (MeterErrorKind::Fatal, message, "nothing is to be done: it is counted once")
        } else if changes(&rounds, index) == 0 {
            let shown = rounds.iter().rev().find_map(|round| round[index]);
            let message = match shown {
                Some(value) => {
                    format!("{} ({}) stands still at {value} uJ", meter.name(), meter.register().name())
                }
                None => format!("{} ({}) shows no number", meter.name(), meter.register().name()),
            };
            // One that never counted is as good as absent; one that stopped deserves a look.
            let kind = if shown == Some(0) { MeterErrorKind::Gone } else { MeterErrorKind::Fatal };
            let remedy = "it is not counted, since hypervisors and some boards show counters that nothing drives; \
                          where there is no other, use energy.meter = \"model\"";
            (kind, message, remedy)
        } else {
            kept.push(index);
            tried.meters.push(meter);
            continue;
        };
        tried.left_out.push(MeterError { sensor, kind, message, remedy: remedy.into() });
    }
    match tried.left_out.first() {
        Some(why) if tried.meters.is_empty() => Err(why.clone()),
        _ => Ok(tried),
    }
}

/// Reads all registers again and again until each has changed often enough.
fn watch(host: &Host, meters: &[RegisterMeter]) -> Vec<Vec<Option<u64>>> {
    let read = || meters.iter().map(|meter| meter.register().read().ok()).collect::<Vec<_>>();
    // A register that stands alone has no twin: one change is enough.
    let enough = if meters.len() > 1 { ENOUGH_CHANGES } else { 1 };
    let mut rounds = vec![read()];
    while rounds.len() < MOST_ROUNDS && (0..meters.len()).any(|index| changes(&rounds, index) < enough) {
        host.pause();
        rounds.push(read());
    }
    rounds
}

fn changes(rounds: &[Vec<Option<u64>>], index: usize) -> usize {
    let values: Vec<u64> = rounds.iter().filter_map(|round| round[index]).collect();
    values.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

/// True when two registers change and stay at the same distance: nearly always, since an update may fall between the
/// two readings. Perf events count from their own opening, so that even twins lie some microjoules apart.
fn are_one(rounds: &[Vec<Option<u64>>], a: usize, b: usize) -> bool {
    let distance = |round: &Vec<Option<u64>>| Some(i128::from(round[a]?) - i128::from(round[b]?));
    let mut distances: Vec<i128> = rounds.iter().filter_map(distance).collect();
    distances.sort_unstable();
    let Some(&usual) = distances.get(distances.len() / 2) else { return false };
    // Rounding to whole microjoules may add one; a step of any register is larger.
    let equal = distances.iter().filter(|distance| (**distance - usual).abs() <= 1).count();
    changes(rounds, a) >= ENOUGH_CHANGES && equal * 4 >= rounds.len() * 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(pairs: &[(u64, u64)], expect: bool) {
        let rounds: Vec<Vec<Option<u64>>> = pairs.iter().map(|&(a, b)| vec![Some(a), Some(b)]).collect();
        assert_eq!(are_one(&rounds, 0, 1), expect, "{pairs:?}");
    }

    #[test]
    fn twins_are_known_by_their_distance_even_when_an_update_falls_between() {
        check(&[(0, 0), (61, 61), (122, 122), (183, 183), (244, 244)], true);
        check(&[(0, 900), (61, 961), (122, 1022), (183, 1084), (244, 1144)], true);
        check(&[(0, 0), (61, 61), (122, 183), (244, 244), (305, 305), (366, 366)], true);
    }

    #[test]
    fn others_are_not_taken_for_twins() {
        check(&[(0, 0), (61, 61), (122, 122), (183, 244), (244, 305), (305, 427)], false);
        // Two that stand still are alike and nothing is known of them.
        check(&[(5, 5), (5, 5), (5, 5), (5, 5), (5, 5)], false);
        check(&[(5, 5), (66, 66)], false);
    }

    proptest! {
        #[test]
        fn a_register_is_its_own_twin_at_any_distance(
            rises in prop::collection::vec(1u64..1_000_000, 4..40),
            offset in 0u64..1_000_000,
        ) {
            let mut value = 0;
            let rounds: Vec<_> = std::iter::once(0).chain(rises).map(|rise| {
                value += rise;
                vec![Some(value), Some(value + offset)]
            }).collect();
            prop_assert!(are_one(&rounds, 0, 1));
        }
    }
}
