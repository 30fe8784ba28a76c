//! Tests of the monitor with scripted meters on a clock turned by hand.

use super::*;
use crate::clock::ClockHand;
use crate::meter::Plausible;
use crate::meter::machine::Machine;
use crate::meter::model::ModelMeter;
use crate::meter::replay::{ReplayMeter, Trace};
use crate::units::Watts;
use crate::units::{Joules, MicroJoules};
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);
const PLAUSIBLE: Plausible = Plausible { max_watts: Watts(500.0), update_slack: Duration::from_millis(100) };

fn trace(range: Option<u64>, points: Vec<(Duration, Option<u64>)>) -> Trace {
    Trace { domain: "package-0".into(), range, plausible: PLAUSIBLE, points }
}

fn monitor(meter: ReplayMeter) -> (EnergyMonitor, ClockHand) {
    let (clock, hand) = Clock::manual();
    let monitor = EnergyMonitor::builder().meter(Box::new(meter)).clock(clock).without_sampler();
    (monitor.start().unwrap(), hand)
}

#[test]
fn a_window_spans_from_the_close_before_it_to_its_own() {
    let points =
        vec![(Duration::ZERO, Some(1000)), (MS * 100, Some(5_001_000)), (MS * 300, Some(25_001_000))];
    let (monitor, hand) = monitor(ReplayMeter::new(vec![trace(None, points)], Duration::ZERO));
    hand.advance(MS * 100);
    let setup = monitor.close_window(WindowKind::Setup);
    hand.advance(MS * 200);
    let step = monitor.close_window(WindowKind::Step);
    assert_eq!((setup.seq, setup.joules), (0, Some(Joules(5.0))));
    assert_eq!((step.seq, step.joules, step.watts), (1, Some(Joules(20.0)), Some(Watts(100.0))));
    assert_eq!(step.error_bound, None);
    assert!(step.complete);
}

#[test]
fn an_unreadable_sensor_is_unknown_and_its_energy_joins_the_next_window() {
    let points = vec![(Duration::ZERO, Some(0)), (MS * 100, None), (MS * 200, Some(8_000_000))];
    let (monitor, hand) = monitor(ReplayMeter::new(vec![trace(None, points)], Duration::ZERO));
    hand.advance(MS * 100);
    let blind = monitor.close_window(WindowKind::Step);
    assert_eq!((blind.joules, blind.complete), (None, false));
    assert_eq!(monitor.take_alerts().len(), 1);
    hand.advance(MS * 100);
    let next = monitor.close_window(WindowKind::Step);
    assert_eq!((next.joules, next.complete), (Some(Joules(8.0)), true));
    assert_eq!(monitor.take_alerts(), []);
}

#[test]
fn a_slow_counter_gives_short_windows_an_interpolated_share() {
    let second = |s: u32| (MS * 1000 * s, Some(u64::from(s) * 100_000_000));
    let trace = trace(None, (0..=10).map(second).collect());
    let (clock, hand) = Clock::manual();
    let meter = Box::new(ReplayMeter::new(vec![trace], MS * 1000));
    let builder = EnergyMonitor::builder().meter(meter).clock(clock).interval(MS * 100);
    let monitor = builder.without_sampler().start().unwrap();
    let mut windows = Vec::new();
    for _ in 0..100 {
        hand.advance(MS * 50);
        monitor.sample();
        windows.push(monitor.close_window(WindowKind::Step));
    }
    // 100 W for 50 ms are 5 J, once the lag of one period and one interval has passed.
    for window in &windows[22..] {
        assert!((window.joules.unwrap().0 - 5.0).abs() < 0.1, "{window:?}");
        assert!(window.error_bound.is_some());
    }
    let given: u64 = windows.iter().flat_map(|window| &window.domains).map(|part| part.microjoules.0).sum();
    let totals = monitor.finish();
    assert_eq!(totals.domains[0].total, MicroJoules(500_000_000));
    assert_eq!(given + totals.domains[0].unattributed.0, 500_000_000);
    assert_eq!(totals.remainder().domains[0].microjoules, totals.domains[0].unattributed);
}

#[test]
fn the_sampler_thread_reads_without_being_asked_and_stops_at_the_end() {
    let monitor = EnergyMonitor::builder()
        .meter(Box::new(ModelMeter::with_clock(
            Machine::detect(Some(50.0)),
            Box::new(|| Ok(Duration::from_millis(7))),
        )))
        .interval(MS)
        .start()
        .unwrap();
    while monitor.totals().joules.0 == 0.0 {
        std::thread::yield_now();
    }
    assert_eq!(monitor.source_label(), "model");
    let totals = monitor.finish();
    assert!(totals.joules.0 > 0.0 && totals.measured_share == 0.0);
}

#[test]
fn a_monitor_without_meters_knows_nothing_rather_than_zero() {
    let monitor = EnergyMonitor::builder().start().unwrap();
    let window = monitor.close_window(WindowKind::Step);
    assert_eq!((window.joules, window.watts), (None, None));
    assert_eq!(monitor.source_label(), "none");
}

/// One reading of a random history.
#[derive(Clone, Debug)]
enum Tick {
    Rise(u64),
    Reset,
    Unreadable,
}

fn tick() -> impl Strategy<Value = Tick> {
    prop_oneof![
        8 => (0u64..5_000_000).prop_map(Tick::Rise),
        1 => Just(Tick::Reset),
        1 => Just(Tick::Unreadable),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn windows_and_remainder_equal_the_counter_through_wraps_resets_and_gaps(
        ticks in prop::collection::vec((tick(), 1u32..60), 1..200),
        slow in prop::bool::ANY,
        with_resets in prop::bool::ANY,
    ) {
        // Small enough to wrap often, large enough that a reset is seldom taken for a wrap.
        const RANGE: u64 = 60_000_000;
        let (mut at, mut raw, mut spent) = (Duration::ZERO, RANGE / 2, 0u64);
        let mut points = vec![(at, Some(raw))];
        let mut truth = vec![(at, spent)];
        for (tick, _) in &ticks {
            at += MS * 20;
            match tick {
                Tick::Rise(rise) => {
                    spent += rise;
                    raw = (raw + rise) % (RANGE + 1);
                    points.push((at, Some(raw)));
                }
                Tick::Reset => {
                    raw = if with_resets { 0 } else { raw };
                    points.push((at, Some(raw)));
                }
                Tick::Unreadable => points.push((at, None)),
            }
            truth.push((at, spent));
        }
        let period = if slow { MS * 60 } else { Duration::ZERO };
        let (monitor, hand) = monitor(ReplayMeter::new(vec![trace(Some(RANGE), points.clone())], period));
        let mut given = 0;
        for (_, ms) in &ticks {
            hand.advance(MS * *ms);
            monitor.sample();
            let window = monitor.close_window(WindowKind::Step);
            given += window.domains.iter().map(|part| part.microjoules.0).sum::<u64>();
        }
        let totals = monitor.finish();
        let domain = &totals.domains[0];
        prop_assert_eq!(domain.attributed.0, given);
        prop_assert_eq!(domain.attributed + domain.unattributed, domain.total);
        // 500 W over the whole trace and its slack bound what may be counted at all.
        let possible_j = 500.0 * (totals.duration.0 + 0.1 * (ticks.len() + 1) as f64);
        prop_assert!(totals.joules.0 <= possible_j, "{} of {}", totals.joules, possible_j);
        // Where every wrap could be seen, the total is what was spent, to the microjoule.
        let end = Duration::from_millis(ticks.iter().map(|(_, ms)| u64::from(*ms)).sum());
        let last = points.partition_point(|(at, _)| *at <= end) - 1;
        if !with_resets && totals.gap.0 == 0.0 && points[last].1.is_some() {
            prop_assert_eq!(totals.spikes + totals.resets, 0);
            prop_assert_eq!(domain.total.0, truth[last].1);
        }
    }
}
