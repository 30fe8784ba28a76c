//! One hardware energy register, and the meter that follows it.
//!
//! Each register is a meter of its own, so that one that fails, leaves or stands still takes no other with it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::counter::CounterTracker;
use super::{Domain, Meter, MeterError, MeterErrorKind, Note, Plausible, Provenance, Reading};
use crate::units::Watts;

/// No package sold draws this much for longer than a counter update.
pub(super) const PACKAGE: Plausible =
    Plausible { max_watts: Watts(1000.0), update_slack: Duration::from_millis(50) };
/// The memory of one socket.
pub(super) const DRAM: Plausible =
    Plausible { max_watts: Watts(300.0), update_slack: Duration::from_millis(50) };
/// A whole machine of several sockets.
pub(super) const PLATFORM: Plausible =
    Plausible { max_watts: Watts(5000.0), update_slack: Duration::from_millis(50) };

/// What the plausible draw of a domain of that name is.
pub(super) fn plausible(domain: &str) -> Plausible {
    match domain {
        name if name.starts_with("dram") => DRAM,
        "psys" => PLATFORM,
        _ => PACKAGE,
    }
}

/// The longest time between two readings in which no wrap can hide: half of the shortest one, at most a minute.
pub(super) fn longest_pause(range: Option<u64>, plausible: Plausible) -> Duration {
    const MOST: Duration = Duration::from_secs(60);
    let Some(range) = range else { return MOST };
    Duration::try_from_secs_f64(range as f64 / 1e6 / (2.0 * plausible.max_watts.0))
        .map_or(MOST, |t| t.min(MOST))
}

/// A register behind an open file.
#[derive(Debug)]
pub(super) enum Register {
    /// A file in sysfs that shows whole microjoules. Kept open and read from its start.
    Text {
        /// The file.
        file: File,
        /// Its name, for messages.
        path: PathBuf,
    },
    /// A perf event: a count of eight bytes, read at the cursor.
    Event {
        /// The event.
        file: File,
        /// Its name, for messages.
        name: String,
        /// Joules for each count.
        scale: f64,
    },
}

impl Register {
    /// Opens a file that shows whole microjoules.
    pub(super) fn open_text(path: &Path) -> io::Result<Self> {
        Ok(Register::Text { file: File::open(path)?, path: path.into() })
    }

    /// Microjoules.
    pub(super) fn read(&self) -> io::Result<u64> {
        match self {
            Register::Text { file, .. } => {
                let mut text = [0u8; 32];
                let length = file.read_at(&mut text, 0)?;
                let text = std::str::from_utf8(&text[..length]).ok();
                text.and_then(|text| text.trim().parse().ok())
                    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a whole number"))
            }
            Register::Event { file, scale, .. } => {
                let mut count = [0u8; 8];
                let mut cursor: &File = file;
                cursor.read_exact(&mut count)?;
                // The unit is 2^-32 J: even at 2^64 counts a double is exact to half a microjoule.
                Ok((u64::from_ne_bytes(count) as f64 * scale * 1e6) as u64)
            }
        }
    }

    /// Its name in messages.
    pub(super) fn name(&self) -> String {
        match self {
            Register::Text { path, .. } => path.display().to_string(),
            Register::Event { name, .. } => format!("perf event {name}"),
        }
    }
}

/// The meter of one register.
pub struct RegisterMeter {
    domain: [Domain; 1],
    register: Register,
    tracker: CounterTracker,
    last_try: Duration,
    newest: Option<u64>,
}

impl RegisterMeter {
    /// Follows `register`, which goes from `range` (where it has one) to 0.
    pub(super) fn new(name: &str, sensor: &'static str, register: Register, range: Option<u64>) -> Self {
        RegisterMeter {
            domain: [Domain { name: name.into(), sensor, provenance: Provenance::MeasuredCounter }],
            register,
            tracker: CounterTracker::new(range, plausible(name)),
            last_try: Duration::ZERO,
            newest: None,
        }
    }

    /// The domain's name.
    pub fn name(&self) -> &str {
        &self.domain[0].name
    }

    pub(super) fn register(&self) -> &Register {
        &self.register
    }

    fn failure(&self, kind: MeterErrorKind, what: &str) -> MeterError {
        let remedy = match kind {
            MeterErrorKind::Retry => "the span is recorded as a gap until the counter can be read again",
            MeterErrorKind::Gone => "it is no longer counted; restart the run once the processor is back",
            MeterErrorKind::Fatal => "give back the permission to read it and restart the run",
        };
        MeterError {
            sensor: self.domain[0].sensor,
            kind,
            message: format!("{}: {what}", self.register.name()),
            remedy: remedy.into(),
        }
    }
}

impl Meter for RegisterMeter {
    fn domains(&self) -> &[Domain] {
        &self.domain
    }

    fn update_period(&self) -> Duration {
        // The registers update about every millisecond: fresh beside any window worth measuring.
        Duration::ZERO
    }

    fn read(&mut self, now: Duration) -> Result<Reading, MeterError> {
        // A clock that goes back would make two spans of one.
        let now = self.last_try.max(now);
        self.last_try = now;
        let raw = self
            .register
            .read()
            .map_err(|error| self.failure(kind_of(&self.register, &error), &error.to_string()))?;
        let mut reading = Reading::default();
        // A repeated value is not entered: what comes after it is judged by the whole time since the last change.
        if self.newest.replace(raw) != Some(raw)
            && let Some((event, span)) = self.tracker.advance(now, raw)
        {
            reading.notes.push(Note { domain: 0, event, span });
        }
        reading.cumulative.push(self.tracker.cumulative());
        Ok(reading)
    }
}

/// What a failed reading means.
pub(super) fn kind_of(register: &Register, error: &io::Error) -> MeterErrorKind {
    match (error.raw_os_error(), error.kind(), register) {
        (Some(libc::ENODEV | libc::ENXIO), _, _) | (_, io::ErrorKind::NotFound, _) => MeterErrorKind::Gone,
        // An event whose processor was unplugged reads as an empty file.
        (_, io::ErrorKind::UnexpectedEof, Register::Event { .. }) => MeterErrorKind::Gone,
        (_, io::ErrorKind::PermissionDenied, _) => MeterErrorKind::Fatal,
        _ => MeterErrorKind::Retry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::CounterEvent;
    use crate::meter::host::write;
    use proptest::prelude::*;

    const RANGE: u64 = 262_143_328_850;

    struct Zone {
        root: tempfile::TempDir,
        meter: RegisterMeter,
    }

    impl Zone {
        fn new(energy_uj: u64, range: Option<u64>) -> Self {
            let root = tempfile::tempdir().unwrap();
            write(root.path(), "energy_uj", &energy_uj.to_string());
            let register = Register::open_text(&root.path().join("energy_uj")).unwrap();
            Zone { root, meter: RegisterMeter::new("package-0", "rapl", register, range) }
        }

        fn show(&self, text: &str) {
            write(self.root.path(), "energy_uj", text);
        }

        /// Total microjoules and what was noted.
        fn read(&mut self, ms: u64) -> Result<(u64, Option<CounterEvent>), MeterErrorKind> {
            let reading = self.meter.read(Duration::from_millis(ms)).map_err(|error| error.kind)?;
            Ok((reading.cumulative[0].0, reading.notes.first().map(|note| note.event)))
        }
    }

    #[test]
    fn a_wrap_is_counted_through_and_a_reset_is_noted() {
        let mut zone = Zone::new(RANGE - 999, Some(RANGE));
        assert_eq!(zone.read(0), Ok((0, None)));
        zone.show("4000000");
        assert_eq!(zone.read(1000), Ok((4_001_000, Some(CounterEvent::Wrap))));
        zone.show("0");
        assert_eq!(zone.read(2000), Ok((4_001_000, Some(CounterEvent::Reset))));
        zone.show("3000000");
        assert_eq!(zone.read(3000), Ok((7_001_000, None)));
    }

    #[test]
    fn an_unreadable_counter_is_an_error_and_loses_nothing_once_it_reads_again() {
        let mut zone = Zone::new(5, Some(RANGE));
        assert_eq!(zone.read(0), Ok((0, None)));
        for garbage in ["", "-1", "12 J", "99999999999999999999999999"] {
            zone.show(garbage);
            assert_eq!(zone.read(1000), Err(MeterErrorKind::Retry), "{garbage:?}");
        }
        zone.show("50000005");
        assert_eq!(zone.read(2000), Ok((50_000_000, None)));
    }

    #[test]
    fn an_absurd_jump_is_noted_and_not_counted() {
        let mut zone = Zone::new(0, Some(RANGE));
        assert_eq!(zone.read(0), Ok((0, None)));
        // 250 kJ in 0.1 s are 2.5 MW.
        zone.show("250000000000");
        assert_eq!(zone.read(100), Ok((0, Some(CounterEvent::Spike))));
    }

    #[test]
    fn energy_that_comes_at_once_after_a_standstill_is_judged_by_the_whole_time() {
        let mut zone = Zone::new(0, Some(RANGE));
        for ms in (0..2000).step_by(50) {
            assert_eq!(zone.read(ms), Ok((0, None)));
        }
        // 400 J in 2 s are 200 W; in the 50 ms since the last reading they would be 8 kW.
        zone.show("400000000");
        assert_eq!(zone.read(2000), Ok((400_000_000, None)));
    }

    #[test]
    fn a_clock_that_goes_back_neither_loses_nor_doubles() {
        let mut zone = Zone::new(0, Some(RANGE));
        assert_eq!(zone.read(1000), Ok((0, None)));
        zone.show("100000000");
        assert_eq!(zone.read(2000), Ok((100_000_000, None)));
        zone.show("100000500");
        assert_eq!(zone.read(1500), Ok((100_000_500, None)));
        zone.show("200000000");
        assert_eq!(zone.read(3000), Ok((200_000_000, None)));
    }

    #[test]
    fn what_a_failed_reading_means_is_told_apart() {
        let zone = Zone::new(0, None);
        let kind = |error: io::Error| kind_of(zone.meter.register(), &error);
        let system = io::Error::from_raw_os_error;
        assert_eq!(kind(system(libc::ENODEV)), MeterErrorKind::Gone);
        assert_eq!(kind(system(libc::ENOENT)), MeterErrorKind::Gone);
        assert_eq!(kind(system(libc::EACCES)), MeterErrorKind::Fatal);
        assert_eq!(kind(system(libc::EIO)), MeterErrorKind::Retry);
        assert_eq!(kind(io::ErrorKind::InvalidData.into()), MeterErrorKind::Retry);
    }

    #[test]
    fn no_wrap_hides_between_two_readings_that_are_half_the_shortest_one_apart() {
        let seconds = |range| longest_pause(range, PACKAGE).as_secs_f64();
        assert_eq!(seconds(None), 60.0);
        assert_eq!(seconds(Some(RANGE)), 60.0);
        // AMD: 32 bits of 15.3 uJ, 65.5 kJ over twice 1 kW.
        assert!((seconds(Some(65_532_610_987)) - 32.766).abs() < 0.001);
        assert_eq!(seconds(Some(u64::MAX)), 60.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_the_register_shows_energy_never_falls_and_stays_plausible(
            shown in prop::collection::vec((0u64..3000, prop::option::of(0u64..RANGE)), 1..100),
        ) {
            let mut zone = Zone::new(0, Some(RANGE));
            let (mut now_ms, mut last_uj, mut readings) = (0, 0, 0u32);
            for (ms, value) in shown {
                now_ms += ms;
                zone.show(&value.map_or(String::new(), |value| value.to_string()));
                match zone.read(now_ms) {
                    Ok((uj, _)) => {
                        prop_assert!(value.is_some() && uj >= last_uj);
                        (last_uj, readings) = (uj, readings + 1);
                    }
                    Err(kind) => prop_assert!(value.is_none() && kind == MeterErrorKind::Retry),
                }
            }
            let possible = PACKAGE.max_watts.0 * 1e3 * (now_ms as f64 + 50.0 * f64::from(readings));
            prop_assert!(last_uj as f64 <= possible, "{last_uj} of {possible} uJ");
        }

        #[test]
        fn perf_counts_become_microjoules_within_one_and_never_fall(count in any::<u64>(), more in any::<u64>()) {
            let scale = 2f64.powi(-32);
            let read = |count: u64| {
                let mut file = tempfile::tempfile().unwrap();
                io::Write::write_all(&mut file, &count.to_ne_bytes()).unwrap();
                io::Seek::rewind(&mut file).unwrap();
                Register::Event { file, name: "energy-pkg".into(), scale }.read().unwrap()
            };
            let exact = (u128::from(count) * 1_000_000) >> 32;
            prop_assert!(u128::from(read(count)).abs_diff(exact) <= 1);
            prop_assert!(read(count.saturating_add(more)) >= read(count));
        }
    }
}
