//! Tests of the schedule: when a source asks, what it holds, what it says.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::*;
use crate::carbon::lookup;
use crate::carbon::provider::Answer;
use crate::config::{ProviderConfig, ProviderKind};
use crate::units::GramsPerKilowattHour;

const HOUR: Duration = Duration::from_secs(3600);
const START: &str = "2026-03-01T12:10:00Z";

type Script = Arc<Mutex<VecDeque<Result<Answer, Failure>>>>;

/// A provider that answers from a script and counts how often it is asked; beyond the script it fails.
#[derive(Clone, Default)]
struct Scripted {
    script: Script,
    asked_at: Arc<Mutex<Vec<Duration>>>,
}

impl Scripted {
    fn then(&self, values: &[GridIntensity]) -> &Self {
        self.then_answers(Answer { values: values.into(), ..Answer::default() })
    }

    fn then_answers(&self, answer: Answer) -> &Self {
        self.script.lock().unwrap().push_back(Ok(answer));
        self
    }

    fn then_fails(&self, kind: FailureKind) -> &Self {
        self.script.lock().unwrap().push_back(Err(Failure::new("Grid", kind, "broke", "wait")));
        self
    }

    fn num_asked(&self) -> usize {
        self.asked_at.lock().unwrap().len()
    }
}

impl Provider for Scripted {
    fn whom(&self) -> &str {
        "Grid"
    }

    fn delay(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn recent(&mut self, now: Moment) -> Result<Answer, Failure> {
        self.asked_at.lock().unwrap().push(now.monotonic);
        let over = || Err(Failure::new("Grid", FailureKind::Passing, "the script is over", "wait"));
        self.script.lock().unwrap().pop_front().unwrap_or_else(over)
    }

    fn history(&mut self, _: Period, _: Moment) -> Result<Vec<GridIntensity>, Failure> {
        Ok(Vec::new())
    }
}

fn start() -> Moment {
    Moment { monotonic: Duration::from_secs(1000), wall: START.parse().unwrap() }
}

/// Both clocks, some minutes after the start.
fn after(minutes: u64) -> Moment {
    let passed = Duration::from_secs(60 * minutes);
    Moment { monotonic: start().monotonic + passed, wall: start().wall + passed }
}

/// The value of an hour of the day of the start.
fn value(hour: i8, grams: f64, estimated: bool) -> GridIntensity {
    let midnight: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
    let from = midnight + HOUR * hour as u32;
    GridIntensity {
        grams_per_kwh: GramsPerKilowattHour(grams),
        period: Some(Period { from, until: from + HOUR }),
        estimated,
        ..lookup("FRA").unwrap()
    }
}

fn source(provider: &Scripted) -> Source {
    Source::new(Box::new(provider.clone()), Role::Priced, None, 2 * HOUR, start())
}

fn with_cache(provider: &Scripted, directory: &Path, now: Moment) -> Source {
    let config = ProviderConfig {
        kind: ProviderKind::ElectricityMaps,
        zone: Some("DE".into()),
        url: None,
        path: None,
        stale_after_minutes: 120,
    };
    let cache = Cache::new(directory, &config);
    Source::new(Box::new(provider.clone()), Role::Priced, Some(cache), 2 * HOUR, now)
}

/// Looks once a minute from one minute to another, as the thread does whenever it is woken.
fn look_from(source: &mut Source, minutes: std::ops::RangeInclusive<u64>) -> News {
    let mut all = News::default();
    for minute in minutes {
        let news = source.look(after(minute));
        all.values.extend(news.values);
        all.alerts.extend(news.alerts);
    }
    all
}

#[test]
fn a_provider_is_asked_once_for_each_period_and_a_little_after_its_start() {
    let provider = Scripted::default();
    provider.then(&[value(12, 100.0, false)]).then(&[value(12, 100.0, false), value(13, 90.0, true)]);
    let mut source = source(&provider);
    assert_eq!(source.look(start()).values, [value(12, 100.0, false)]);
    assert_eq!(look_from(&mut source, 1..=49).values, []);
    assert_eq!(provider.num_asked(), 1);
    assert_eq!(look_from(&mut source, 50..=53).values, [value(13, 90.0, true)]);
    assert_eq!(provider.num_asked(), 2);
}

#[test]
fn a_measured_value_corrects_an_estimate_and_never_the_other_way() {
    let provider = Scripted::default();
    provider.then(&[value(12, 100.0, true)]).then(&[value(12, 120.0, false), value(13, 90.0, true)]).then(&[
        value(12, 110.0, true),
        value(13, 95.0, true),
        value(14, 80.0, true),
    ]);
    let mut source = source(&provider);
    assert_eq!(source.look(start()).values, [value(12, 100.0, true)]);
    let news = look_from(&mut source, 53..=53).values;
    assert_eq!(news, [value(12, 120.0, false), value(13, 90.0, true)]);
    let news = look_from(&mut source, 113..=113).values;
    assert_eq!(news, [value(13, 95.0, true), value(14, 80.0, true)]);
}

#[test]
fn what_was_over_before_the_run_and_what_is_to_come_is_no_news() {
    let provider = Scripted::default();
    provider.then(&[
        value(10, 1.0, false),
        value(11, 2.0, false),
        value(12, 3.0, false),
        value(13, 4.0, true),
    ]);
    assert_eq!(source(&provider).look(start()).values, [value(12, 3.0, false)]);
}

#[test]
fn failures_are_told_once_for_each_stretch_and_so_is_their_end() {
    let provider = Scripted::default();
    provider.then(&[value(12, 100.0, false)]);
    for _ in 0..3 {
        provider.then_fails(FailureKind::Passing);
    }
    provider.then(&[value(13, 90.0, false)]).then_fails(FailureKind::Unusable);
    let mut source = source(&provider);
    assert_eq!(look_from(&mut source, 0..=49).alerts, [""; 0]);
    assert_eq!(look_from(&mut source, 50..=90).alerts, ["Grid: broke; wait", "Grid answers again"]);
    assert_eq!(look_from(&mut source, 91..=115).alerts, ["Grid: broke; wait"]);
}

#[test]
fn waiting_doubles_with_each_failure_up_to_a_limit_and_never_under_a_minute() {
    let failure = |kind| Failure::new("Grid", kind, "", "");
    let minute = Duration::from_secs(60);
    for (num_failures, factor) in [(1, 1), (2, 2), (3, 4), (5, 16), (6, 30), (100, 30), (u32::MAX, 30)] {
        let wait = wait_after(&failure(FailureKind::Passing), num_failures);
        assert!(wait >= minute * factor && wait <= minute * factor * 3 / 2, "{num_failures}: {wait:?}");
    }
    let busy = |seconds| wait_after(&failure(FailureKind::Busy(Duration::from_secs(seconds))), 1);
    assert_eq!([busy(0), busy(77), busy(u64::MAX)], [minute, Duration::from_secs(77), MAX_BUSY]);
    assert_eq!(wait_after(&failure(FailureKind::Unauthorised), 1), UNUSABLE);
}

#[test]
fn a_busy_provider_is_left_alone_as_long_as_it_says() {
    let provider = Scripted::default();
    provider.then_fails(FailureKind::Busy(Duration::from_secs(30 * 60))).then(&[value(12, 100.0, false)]);
    let mut source = source(&provider);
    look_from(&mut source, 0..=29);
    assert_eq!(provider.num_asked(), 1);
    assert_eq!(look_from(&mut source, 30..=30).values, [value(12, 100.0, false)]);
}

#[test]
fn a_provider_that_answers_and_wants_a_rest_has_it_and_its_note_is_passed_on() {
    let provider = Scripted::default();
    let busy = Some(Duration::from_secs(90 * 60));
    provider.then_answers(Answer { values: vec![value(12, 100.0, false)], note: Some("half".into()), busy });
    let mut source = source(&provider);
    let news = look_from(&mut source, 0..=89);
    assert_eq!((provider.num_asked(), news.alerts), (1, vec!["half".to_owned()]));
    assert_eq!(news.values, [value(12, 100.0, false)]);
    look_from(&mut source, 90..=90);
    assert_eq!(provider.num_asked(), 2);
}

#[test]
fn the_last_value_is_held_as_an_estimate_within_the_stale_limit() {
    let provider = Scripted::default();
    provider.then(&[value(12, 100.0, false)]);
    let mut source = source(&provider);
    source.look(start());
    let held = look_from(&mut source, 50..=160).values;
    assert_eq!(held.len(), 1, "it is told once");
    let period = held[0].period.unwrap();
    assert_eq!(period.from.to_string(), "2026-03-01T13:00:00Z");
    assert_eq!(period.until.to_string(), "2026-03-01T15:00:00Z");
    assert_eq!((held[0].grams_per_kwh.0, held[0].estimated), (100.0, true));
    assert!(held[0].source.ends_with("last value held"), "{}", held[0].source);
}

#[test]
fn beyond_the_stale_limit_nothing_holds_until_a_value_comes() {
    let provider = Scripted::default();
    provider.then(&[value(12, 100.0, false)]);
    let mut source = source(&provider);
    look_from(&mut source, 0..=169);
    assert!(source.holds_until() > after(169).monotonic);
    let stale = look_from(&mut source, 170..=200).alerts;
    assert_eq!(source.holds_until(), after(170).monotonic, "13:00 and two hours");
    assert_eq!(
        stale,
        ["Grid has given no value for 120 minutes; energy is priced with the figure of carbon.location"]
    );
    // When it is asked next is left to chance, so this value is of a longer time.
    let from = start().wall + 3 * HOUR;
    let period = Some(Period { from, until: from + 3 * HOUR });
    let new = GridIntensity { period, ..value(15, 70.0, false) };
    provider.then(std::slice::from_ref(&new));
    let back = look_from(&mut source, 201..=260);
    assert_eq!(back.values, [new]);
    assert_eq!(back.alerts, ["Grid answers again", "Grid gives values again"]);
    assert!(source.holds_until() > after(260).monotonic);
}

#[test]
fn a_provider_that_repeats_an_old_value_goes_stale_all_the_same() {
    let provider = Scripted::default();
    for _ in 0..50 {
        provider.then(&[value(12, 100.0, false)]);
    }
    let mut source = source(&provider);
    let alerts = look_from(&mut source, 0..=180).alerts;
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert!(source.holds_until() <= after(170).monotonic);
}

#[test]
fn a_provider_that_never_answers_goes_stale_after_its_limit() {
    let mut source = source(&Scripted::default());
    let alerts = look_from(&mut source, 0..=119).alerts;
    assert_eq!(alerts, ["Grid: the script is over; wait"]);
    assert_eq!(look_from(&mut source, 120..=300).alerts.len(), 1);
}

#[test]
fn a_wall_clock_that_jumps_causes_no_burst_of_requests() {
    let directory = tempfile::tempdir().unwrap();
    let (bare, cached) = (Scripted::default(), Scripted::default());
    jump_about(&bare, source(&bare));
    jump_about(&cached, with_cache(&cached, directory.path(), start()));
}

fn jump_about(provider: &Scripted, mut source: Source) {
    let jumps = [0i64, 86_400, -86_400, 3600, -3600, 30 * 86_400, -300 * 86_400];
    for second in 0..6 * 3600u64 {
        let passed = Duration::from_secs(second);
        let jump = SignedDuration::from_secs(jumps[second as usize / 7 % jumps.len()]);
        let wall = start().wall + passed + jump;
        let monotonic = start().monotonic + passed;
        // Whatever it is asked, it knows the hour of the wall clock.
        let hour =
            wall.round(jiff::TimestampRound::new().smallest(jiff::Unit::Hour).mode(jiff::RoundMode::Floor));
        let from = hour.unwrap();
        provider.script.lock().unwrap().clear();
        let period = Some(Period { from, until: from + HOUR });
        provider.then(&[GridIntensity { period, ..value(0, 50.0, false) }]);
        source.look(Moment { monotonic, wall });
    }
    let asked = provider.asked_at.lock().unwrap();
    assert!(asked.len() > 3, "it goes on asking: {}", asked.len());
    assert!(asked.windows(2).all(|pair| pair[1] - pair[0] >= MIN_INTERVAL));
}

#[test]
fn a_clock_set_back_after_the_start_hides_nothing_of_the_run() {
    let provider = Scripted::default();
    provider.then(&[value(12, 100.0, false)]);
    let ahead = Moment { wall: start().wall + 48 * HOUR, ..start() };
    let mut source = Source::new(Box::new(provider), Role::Priced, None, 2 * HOUR, ahead);
    assert_eq!(source.look(start()).values, [value(12, 100.0, false)]);
}

#[test]
fn a_restart_within_the_period_does_not_ask_again() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (Scripted::default(), Scripted::default());
    first.then(&[value(11, 90.0, false), value(12, 100.0, true)]);
    with_cache(&first, directory.path(), start()).look(start());
    second.then(&[value(13, 80.0, true)]);
    let mut restarted = with_cache(&second, directory.path(), after(20));
    assert_eq!(restarted.look(after(20)).values, [value(12, 100.0, true)]);
    look_from(&mut restarted, 21..=49);
    assert_eq!(second.num_asked(), 0);
    let news = look_from(&mut restarted, 50..=55).values;
    assert_eq!((second.num_asked(), news), (1, vec![value(13, 80.0, true)]));
}

#[test]
fn a_restart_while_the_provider_is_down_holds_the_cached_value_and_keeps_away() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (Scripted::default(), Scripted::default());
    first.then(&[value(12, 100.0, false)]).then_fails(FailureKind::Busy(Duration::from_secs(20 * 60)));
    let mut running = with_cache(&first, directory.path(), start());
    look_from(&mut running, 0..=55);
    assert_eq!(first.num_asked(), 2);
    let mut restarted = with_cache(&second, directory.path(), after(60));
    let news = restarted.look(after(60));
    assert_eq!(news.values.len(), 1);
    assert!(news.values[0].source.ends_with("last value held"));
    look_from(&mut restarted, 61..=69);
    assert_eq!(second.num_asked(), 0, "the first was sent away until minute 71 or so");
    look_from(&mut restarted, 70..=75);
    assert!(second.num_asked() > 0);
}

#[test]
fn processes_that_share_a_cache_ask_once_for_all() {
    let directory = tempfile::tempdir().unwrap();
    let provider = Scripted::default();
    for hour in 12..15 {
        provider.then(&[value(hour - 1, 1.0, false), value(hour, 2.0, true)]);
    }
    let mut sources: Vec<Source> = (0..4).map(|_| with_cache(&provider, directory.path(), start())).collect();
    let mut last = vec![None; 4];
    for minute in 0..=169 {
        for (source, last) in sources.iter_mut().zip(&mut last) {
            let news = source.look(after(minute)).values;
            *last = news.last().cloned().or(last.take());
        }
    }
    assert_eq!(provider.num_asked(), 3);
    let present = value(14, 2.0, true);
    assert!(last.iter().all(|last| last.as_ref() == Some(&present)));
}

#[test]
fn a_refused_token_keeps_no_restart_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let provider = Scripted::default();
    provider.then_fails(FailureKind::Unauthorised).then(&[value(12, 100.0, false)]);
    with_cache(&provider, directory.path(), start()).look(start());
    let mut mended = with_cache(&provider, directory.path(), after(1));
    assert_eq!(mended.look(after(1)).values, [value(12, 100.0, false)]);
}

#[test]
fn a_trace_from_the_future_keeps_nobody_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let provider = Scripted::default();
    provider.then_fails(FailureKind::Passing).then(&[value(12, 100.0, false)]);
    let ahead = Moment { wall: start().wall + 48 * HOUR, ..start() };
    with_cache(&provider, directory.path(), ahead).look(ahead);
    let mut restarted = with_cache(&provider, directory.path(), start());
    assert_eq!(restarted.look(start()).values, [value(12, 100.0, false)]);
}

#[test]
fn a_cache_that_cannot_be_written_is_told_once_and_stops_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let provider = Scripted::default();
    for hour in [12, 13, 14] {
        provider.then(&[value(hour, 1.0, false)]);
    }
    let news = look_from(&mut with_cache(&provider, &file, start()), 0..=125);
    assert!(news.values.contains(&value(14, 1.0, false)));
    assert_eq!(news.alerts.len(), 1, "{:?}", news.alerts);
    assert!(news.alerts[0].contains("cannot be kept on disk"));
}
