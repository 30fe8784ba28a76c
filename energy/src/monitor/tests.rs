//! Tests of the monitor with scripted meters on a clock turned by hand.

use super::*;
use crate::clock::ClockHand;
use crate::meter::machine::Machine;
use crate::meter::model::ModelMeter;
use crate::meter::replay::{ReplayMeter, Trace};
use crate::meter::{Plausible, trace};
use crate::units::{Joules, MicroJoules, Watts};

const MS: Duration = Duration::from_millis(1);
const PLAUSIBLE: Plausible = Plausible { max_watts: Watts(500.0), update_slack: Duration::from_millis(100) };

/// A counter that starts at 0 and rises by these joules, one value each 100 ms.
fn rising(joules: &[u64]) -> ReplayMeter {
    let at = |tick: usize| MS * 100 * tick as u32;
    let points = joules.iter().enumerate().scan(0, |raw, (tick, joules)| {
        *raw += joules * 1_000_000;
        Some((at(tick), Some(*raw)))
    });
    ReplayMeter::new(vec![package(None, points.collect())], Duration::ZERO)
}

fn package(range: Option<u64>, points: Vec<(Duration, Option<u64>)>) -> Trace {
    Trace { domain: "package-0".into(), range, plausible: PLAUSIBLE, points }
}

pub(super) fn monitor(meter: ReplayMeter) -> (EnergyMonitor, ClockHand) {
    let (clock, hand) = Clock::manual();
    let monitor = EnergyMonitor::builder().meter(Box::new(meter)).clock(clock).without_sampler();
    (monitor.start().unwrap(), hand)
}

#[test]
fn a_window_spans_from_the_close_before_it_to_its_own() {
    let points =
        vec![(Duration::ZERO, Some(1000)), (MS * 100, Some(5_001_000)), (MS * 300, Some(25_001_000))];
    let (monitor, hand) = monitor(ReplayMeter::new(vec![package(None, points)], Duration::ZERO));
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
    let (monitor, hand) = monitor(ReplayMeter::new(vec![package(None, points)], Duration::ZERO));
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
    let trace = package(None, (0..=10).map(second).collect());
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

#[test]
fn spans_nest_inside_windows_and_do_not_disturb_them() {
    let (monitor, hand) = monitor(rising(&[0, 1, 2, 3, 4, 5, 6]));
    let tick = || hand.advance(MS * 100);
    let outer = monitor.begin("fit");
    tick();
    let first = monitor.close_window(WindowKind::Step);
    let inner = outer.begin("attention");
    tick();
    tick();
    let inner = inner.end();
    let second = monitor.close_window(WindowKind::Step);
    tick();
    let outer = outer.end();
    assert_eq!((inner.name.as_str(), inner.joules), ("fit/attention", Some(Joules(5.0))));
    assert_eq!(
        (outer.name.as_str(), outer.joules, outer.watts),
        ("fit", Some(Joules(10.0)), Some(Watts(25.0)))
    );
    assert_eq!((first.joules, second.joules), (Some(Joules(1.0)), Some(Joules(5.0))));
    let totals = monitor.finish();
    assert_eq!(totals.domains[0].attributed, MicroJoules(6_000_000));
    assert_eq!(totals.domains[0].total, MicroJoules(10_000_000));
}

#[test]
fn a_closure_is_measured_with_the_provenance_of_its_joules() {
    let (monitor, hand) = monitor(rising(&[0, 7]));
    let (answer, energy) = monitor.measure("work", || {
        hand.advance(MS * 100);
        42
    });
    assert_eq!((answer, energy.to_string().as_str()), (42, "work: 7.00 J in 0.10 s (replayed)"));
}

#[test]
fn the_energy_of_a_sleep_is_unknown_and_its_jump_is_no_spike() {
    // Over a sleep the counter jumps further than it could draw, by what it could draw, or starts anew.
    for jump in [2_500_000_000, 10, 0] {
        let mut points: Vec<_> = [0, 1, 2, 2 + jump, 3 + jump].map(|joules| joules * 1_000_000).into();
        if jump == 0 {
            points[3..].copy_from_slice(&[0, 1_000_000]);
        }
        let points = points.into_iter().enumerate().map(|(tick, raw)| (MS * 100 * tick as u32, Some(raw)));
        let (monitor, hand) =
            monitor(ReplayMeter::new(vec![package(None, points.collect())], Duration::ZERO));
        hand.advance(MS * 100);
        hand.advance(MS * 100);
        assert!(monitor.close_window(WindowKind::Step).complete);
        hand.sleep(MS * 60_000);
        hand.advance(MS * 100);
        let asleep = monitor.close_window(WindowKind::Step);
        assert_eq!((asleep.joules, asleep.complete), (Some(Joules(0.0)), false), "{jump}");
        hand.advance(MS * 100);
        let awake = monitor.close_window(WindowKind::Step);
        assert_eq!((awake.joules, awake.complete), (Some(Joules(1.0)), true), "{jump}");
        let totals = monitor.finish();
        assert_eq!(totals.domains[0].total, MicroJoules(3_000_000));
        assert_eq!((totals.sleeps, totals.spikes, totals.resets), (1, 0, 0));
        assert!((totals.gap.0 - 60.1).abs() < 1e-9, "{}", totals.gap.0);
    }
}

#[test]
fn a_stuck_counter_is_told_and_counted_and_its_energy_is_unknown_rather_than_zero() {
    let points = vec![(Duration::ZERO, Some(0)), (MS * 100, Some(5_000_000)), (MS * 9000, Some(6_000_000))];
    let (monitor, hand) = monitor(ReplayMeter::new(vec![package(None, points)], Duration::ZERO));
    let mut unknown = 0;
    for _ in 0..85 {
        hand.advance(MS * 100);
        unknown += u32::from(monitor.close_window(WindowKind::Step).joules.is_none());
    }
    // The value of 0.1 s is seen until 8.5 s; the counter is stuck from 5.1 s.
    assert_eq!(unknown, 35);
    let alerts = monitor.take_alerts();
    assert_eq!(alerts.len(), 1);
    assert!(alerts[0].to_string().contains("package-0 has shown the same value for 5 s"), "{}", alerts[0]);
    let totals = monitor.totals();
    assert_eq!(totals.stuck_readings, 84);
    assert!((totals.gap.0 - 8.4).abs() < 1e-9, "{}", totals.gap.0);

    hand.advance(MS * 500);
    let moved = monitor.close_window(WindowKind::Step);
    assert_eq!((moved.joules, moved.complete), (Some(Joules(1.0)), false));
    assert!((monitor.finish().gap.0 - 8.9).abs() < 1e-9);
}

#[test]
fn one_unreadable_domain_leaves_the_others_of_its_meter_counting() {
    let trace = |name: &str, points| Trace { domain: name.into(), ..package(None, points) };
    let lost = trace("gpu-0", vec![(Duration::ZERO, Some(0)), (MS * 100, None), (MS * 300, Some(9_000_000))]);
    let well = trace("gpu-1", (0..4).map(|s| (MS * 100 * s, Some(u64::from(s) * 1_000_000))).collect());
    let (monitor, hand) = monitor(ReplayMeter::new(vec![lost, well], Duration::ZERO));
    let mut windows = Vec::new();
    for _ in 0..3 {
        hand.advance(MS * 100);
        let window = monitor.close_window(WindowKind::Step);
        let parts = window.domains.iter().map(|part| (part.domain.to_string(), part.microjoules.0));
        windows.push((window.complete, parts.collect::<Vec<_>>()));
    }
    let part = |name: &str, joules: u64| (name.to_owned(), joules * 1_000_000);
    assert_eq!(windows[0], (false, vec![part("gpu-1", 1)]));
    assert_eq!(windows[1], (false, vec![part("gpu-1", 1)]));
    assert_eq!(windows[2], (true, vec![part("gpu-0", 9), part("gpu-1", 1)]));
    assert_eq!(monitor.take_alerts().len(), 1);
    assert_eq!(monitor.finish().gap.0, 0.0);
}

#[test]
fn a_recorded_run_plays_back_to_the_same_energy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.trace");
    // Two resets, a wrap and an unreadable stretch, which the recording holds settled.
    let raw = [50, 58, 2, 9, 0, 4, 99, 0, 8];
    let mut points: Vec<_> =
        raw.iter().enumerate().map(|(tick, raw)| (MS * 100 * tick as u32, Some(raw * 1_000_000))).collect();
    points[5].1 = None;
    let run = |meters: Vec<ReplayMeter>, recording: Option<&std::path::Path>| {
        let (clock, hand) = Clock::manual();
        let mut builder = EnergyMonitor::builder().clock(clock).without_sampler();
        for meter in meters {
            builder = builder.meter(Box::new(meter));
        }
        let monitor =
            recording.into_iter().fold(builder, |builder, path| builder.record_to(path)).start().unwrap();
        let windows: Vec<_> = (0..8)
            .map(|_| {
                hand.advance(MS * 100);
                monitor.close_window(WindowKind::Step).joules
            })
            .collect();
        (windows, monitor.finish().domains[0].total)
    };
    let played = ReplayMeter::new(vec![package(Some(60_000_000), points)], Duration::ZERO);
    let recorded = run(vec![played], Some(&path));
    assert!(recorded.1 > MicroJoules(0));
    assert_eq!(run(trace::read(&path).unwrap(), None), recorded);
}

#[test]
fn a_recording_that_cannot_be_created_is_an_error_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let error =
        EnergyMonitor::builder().record_to(directory.path().join("none/run.trace")).start().unwrap_err();
    assert!(error.to_string().contains("run.trace: the recording cannot be written"), "{error}");
}

#[test]
fn a_trace_named_in_the_configuration_is_played() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.trace");
    drop(EnergyMonitor::builder().meter(Box::new(rising(&[3]))).record_to(&path).start().unwrap());
    let config = EnergyConfig {
        meter: crate::config::MeterChoice::Replay,
        trace: Some(path),
        ..EnergyConfig::default()
    };
    assert_eq!(config.validate(), []);
    assert_eq!(EnergyMonitor::from_config(&config).unwrap().source_label(), "replay");
    let unnamed = EnergyConfig { trace: None, ..config };
    assert_eq!(unnamed.validate()[0].key, "energy.trace");
    assert!(EnergyMonitor::from_config(&unnamed).unwrap_err().to_string().contains("energy.trace"));
}

/// Every window of 50 ms on a counter read once a second, against the energy that a smooth power really had in it.
fn worst_window_error(name: &str, watts: impl Fn(f64) -> f64) {
    const SLICES: usize = 40_000;
    // The true energy at each millisecond, by the midpoint rule.
    let mut joules = vec![0.0];
    for ms in 0..SLICES {
        joules.push(joules[ms] + watts((ms as f64 + 0.5) / 1e3) / 1e3);
    }
    let counter = |ms: usize| (MS * ms as u32, Some((joules[ms] * 1e6) as u64));
    let trace = package(None, (0..=SLICES / 1000).map(|s| counter(s * 1000)).collect());
    let (clock, hand) = Clock::manual();
    let meter = Box::new(ReplayMeter::new(vec![trace], MS * 1000));
    let monitor = EnergyMonitor::builder().meter(meter).clock(clock).interval(MS * 50).without_sampler();
    let monitor = monitor.start().unwrap();
    // A window shows what was drawn one period and one interval before.
    let lag_ms = 1050;
    for edge_ms in (50..=SLICES).step_by(50) {
        hand.advance(MS * 50);
        monitor.sample();
        let window = monitor.close_window(WindowKind::Step);
        // In the first second nothing is known of the power before.
        if edge_ms > lag_ms + 1050 {
            let shown = window.joules.unwrap().0;
            let truth = joules[edge_ms - lag_ms] - joules[edge_ms - lag_ms - 50];
            let error = (shown - truth).abs() / truth;
            assert!(error < 0.02, "{name}: {shown} J for {truth} J at {edge_ms} ms");
            let bound = window.error_bound.unwrap().0;
            assert!((shown - truth).abs() <= bound + 2e-6, "{name}: {bound} J is no bound at {edge_ms} ms");
        }
    }
}

#[test]
fn windows_of_50_ms_on_a_counter_of_1_hz_err_by_less_than_2_percent_on_smooth_power() {
    use std::f64::consts::TAU;
    worst_window_error("steady", |_| 300.0);
    worst_window_error("ramp", |t| 250.0 + 6.0 * t);
    worst_window_error("sine", |t| 300.0 + 80.0 * (TAU * t / 20.0).sin());
    worst_window_error("warm-up", |t| 350.0 - 200.0 * (-t / 12.0).exp());
}

#[test]
fn the_window_in_progress_is_what_closing_it_would_give() {
    let points = (0..100).map(|tick| (MS * 100 * tick, Some(u64::from(tick) * 5_000_000)));
    let (monitor, hand) = monitor(ReplayMeter::new(vec![package(None, points.collect())], Duration::ZERO));
    let in_progress = monitor.in_progress();
    hand.advance(MS * 1000);
    let open = in_progress();
    assert_eq!((open.seq, open.kind, open.microjoules()), (0, WindowKind::Open, MicroJoules(50_000_000)));
    let closed = monitor.close_window(WindowKind::Step);
    assert_eq!(WindowEnergy { kind: WindowKind::Open, ..closed }, open);
    hand.advance(MS * 500);
    assert_eq!((in_progress().seq, in_progress().microjoules()), (1, MicroJoules(25_000_000)));
}

mod random;
