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
    let mut tried = Tried::default();
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

/// True when two registers change and show the same number: nearly always, since an update may fall between the two
/// readings.
fn are_one(rounds: &[Vec<Option<u64>>], a: usize, b: usize) -> bool {
    let equal = rounds.iter().filter(|round| round[a].is_some() && round[a] == round[b]).count();
    changes(rounds, a) >= ENOUGH_CHANGES && equal * 4 >= rounds.len() * 3
}
