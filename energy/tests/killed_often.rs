//! A process killed at 200 random instants of one run: what the ledger misses is at most a sampling period a kill,
//! and nothing is counted twice.
//!
//! The meter is a clock: a fixed power times the system's monotonic time, so that the truth is known to whoever reads
//! the clock. Each life of the process goes on from the last step that was flushed, as a resumed training run does.

#![cfg(test)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use wattle_energy::meter::{Domain, Meter, MeterError, Provenance, Reading};
use wattle_energy::{
    CarbonConfig, EnergyMonitor, Ledger, MicroJoules, Overrides, Report, RunInfo, RunStatus, WindowKind,
    WindowTags,
};

const CHILD: &str = "WATTLE_TEST_KILLED_OFTEN";
const KILLS: u64 = 200;
const SAMPLING_PERIOD: Duration = Duration::from_millis(20);
/// A step is many sampling periods long, so that losing a step would be seen.
const STEP: Duration = Duration::from_millis(150);
const WATTS: u64 = 1000;

/// Microjoules at a constant power since the machine was started.
struct ClockMeter([Domain; 1]);

impl ClockMeter {
    fn new() -> Self {
        ClockMeter([Domain {
            name: "clock".into(),
            sensor: "clock",
            provenance: Provenance::MeasuredCounter,
        }])
    }
}

impl Meter for ClockMeter {
    fn domains(&self) -> &[Domain] {
        &self.0
    }

    fn update_period(&self) -> Duration {
        Duration::ZERO
    }

    fn read(&mut self, _: Duration) -> Result<Reading, MeterError> {
        Ok(Reading {
            cumulative: vec![MicroJoules(since_boot().as_micros() as u64 * WATTS)],
            notes: Vec::new(),
        })
    }
}

/// The system's monotonic clock, the same for parent and child.
fn since_boot() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for one timespec, and the call keeps no pointer to it.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn two_hundred_kills_lose_a_sampling_period_each_at_most_and_count_nothing_twice() {
    if let Some(path) = std::env::var_os(CHILD) {
        train_until_killed(Path::new(&path));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.sqlite");
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let (mut lived, mut before) = (Duration::ZERO, MicroJoules(0));
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "two_hundred_kills_lose_a_sampling_period_each_at_most_and_count_nothing_twice",
            ])
            .arg("--nocapture")
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The child tells when its counting began, on the clock that both read.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let began = loop {
            let line = lines.next().unwrap().unwrap();
            if let Some(nanos) = line.strip_prefix("began ") {
                break Duration::from_nanos(nanos.parse().unwrap());
            }
        };
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        std::thread::sleep(Duration::from_micros((random >> 33) % 200_000));
        child.kill().unwrap();
        let died = since_boot();
        child.wait().unwrap();

        let report = Report::from_ledger(&path, &Overrides::default()).unwrap();
        let account = &report.runs[0].account;
        let by_domain: MicroJoules = account.domains.iter().map(|domain| domain.energy).sum();
        assert_eq!(by_domain, account.energy, "kill {kill}");
        let by_segment: MicroJoules = report.runs[0].segments.iter().map(|segment| segment.energy).sum();
        assert_eq!(by_segment, account.energy, "kill {kill}");
        assert!(account.energy >= before, "kill {kill}: energy that was counted is gone");
        lived += died - began;
        before = account.energy;
        let true_energy = lived.as_micros() as u64 * WATTS;
        assert!(account.energy.0 <= true_energy + (kill + 1) * WATTS, "kill {kill}: more than was drawn");
    }
    let true_energy = lived.as_micros() as u64 * WATTS;
    let missed = Duration::from_micros((true_energy - before.0) / WATTS);
    println!("missed {:?} a kill of {:?} a life", missed / KILLS as u32, lived / KILLS as u32);
    // About half a period, where the machine gives every thread its time. Without the window in progress nearly all
    // of these lives, shorter than a step, would be missing.
    assert!(missed < lived / 2, "missed {missed:?} of {lived:?}");
    let report = Report::from_ledger(&path, &Overrides::default()).unwrap();
    let ids: Vec<&String> = report.runs[0].segments.iter().map(|segment| &segment.uid).collect();
    assert_eq!((report.runs.len(), ids.len()), (1, KILLS as usize));
}

fn train_until_killed(path: &Path) -> ! {
    let state = path.with_extension("step");
    let resumed: Option<u64> = std::fs::read_to_string(&state).ok().and_then(|text| text.parse().ok());
    let intensity = CarbonConfig::default().intensity().unwrap();
    let info = RunInfo { resumed_from_step: resumed, ..RunInfo::new("killed-often", intensity) };
    let mut ledger = Ledger::open(path, &info).unwrap();
    let monitor = EnergyMonitor::builder()
        .meter(Box::new(ClockMeter::new()))
        .interval(SAMPLING_PERIOD)
        .start()
        .unwrap();
    println!("began {}", since_boot().as_nanos());
    ledger.watch(SAMPLING_PERIOD, monitor.in_progress()).unwrap();
    for step in resumed.unwrap_or(0) + 1.. {
        std::thread::sleep(STEP);
        let window = monitor.close_window(WindowKind::Step);
        ledger.record(&window, WindowTags { step: Some(step), tokens: 10, loss: None }).unwrap();
        if step.is_multiple_of(2) {
            ledger.flush().unwrap();
            std::fs::write(&state, step.to_string()).unwrap();
        }
    }
    unreachable!("the steps never end: {:?}", RunStatus::Running)
}
