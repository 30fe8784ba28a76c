//! A board that several processes use, by a script.

use proptest::prelude::*;

use super::*;
use crate::EnergyMonitor;
use crate::clock::Clock;

const OURS: u32 = 50;
const CHILD: u32 = 51;
const OTHER: u32 = 60;
const THIRD: u32 = 70;

/// A machine on which this process has one child, and others are strangers.
fn family() -> (tempfile::TempDir, Family) {
    let root = tempfile::tempdir().unwrap();
    for (pid, parent) in [(OURS, 1), (CHILD, OURS), (OTHER, 1), (THIRD, OTHER)] {
        crate::meter::host::write(root.path(), &format!("{pid}/stat"), &format!("{pid} (p) R {parent} 1"));
    }
    let family = Family { proc: root.path().into(), pid: OURS, hidden: false };
    (root, family)
}

/// One board, a meter on it, and a clock that goes on a second with each reading.
struct Bench {
    driver: ScriptedDriver,
    meter: NvmlMeter,
    second: u32,
    _proc: tempfile::TempDir,
}

impl Bench {
    fn with(processes: &[u32]) -> Self {
        let (proc, family) = family();
        Self::of(proc, &family, processes)
    }

    fn of(proc: tempfile::TempDir, family: &Family, processes: &[u32]) -> Self {
        let driver = ScriptedDriver::with(&[board("GPU-a")]);
        driver.change(|script| script.processes = processes.to_vec());
        let meter = NvmlMeter::with_driver(Box::new(driver.clone()), None, false, family).unwrap();
        let mut bench = Bench { driver, meter, second: 0, _proc: proc };
        bench.read();
        bench
    }

    /// Joules that count as ours, and what was noted.
    fn read(&mut self) -> (f64, Option<CounterEvent>) {
        let reading = self.meter.read(SECOND * self.second).unwrap();
        self.second += 1;
        assert!(reading.notes.len() <= 1, "{:?}", reading.notes);
        (joules(&reading)[0], reading.notes.first().map(|note| note.event))
    }

    /// Lets the board draw 100 J in a second of which each process used some percent.
    fn draw(&mut self, uses: &[(u32, u32)]) -> (f64, Option<CounterEvent>) {
        self.driver.rise("GPU-a", 100);
        let at_us = u64::from(self.second) * 1_000_000;
        self.driver.change(|script| {
            script.uses.extend(uses.iter().map(|&(pid, percent)| Use { pid, at_us, percent }));
        });
        self.read()
    }

    fn on_board(&self, processes: &[u32]) {
        self.driver.change(|script| script.processes = processes.to_vec());
    }

    fn shares(&self) -> sharing::Shares {
        let Division::Whole(sharing) = &self.meter.gpus[0].division else { panic!("it is not partitioned") };
        sharing.shares
    }
}

const APPORTIONED: Option<CounterEvent> = Some(CounterEvent::Apportioned);
const UNDIVIDED: Option<CounterEvent> = Some(CounterEvent::Undivided);

#[test]
fn a_process_alone_on_the_board_has_all_of_it_and_is_not_asked_for_its_use() {
    let mut bench = Bench::with(&[OURS, CHILD]);
    assert_eq!(bench.draw(&[(OURS, 30)]), (100.0, None));
    bench.on_board(&[]);
    assert_eq!(bench.draw(&[]), (200.0, None), "the board is named for us, busy or not");
    bench.driver.change(|script| assert_eq!(script.asked_from, [0u64; 0]));
}

#[test]
fn two_processes_have_the_energy_by_the_time_that_each_used() {
    let mut bench = Bench::with(&[OURS, OTHER]);
    assert_eq!(bench.draw(&[(OURS, 25), (OTHER, 75)]), (25.0, APPORTIONED));
    assert_eq!(bench.draw(&[(OURS, 80), (OTHER, 20)]), (105.0, APPORTIONED));
    assert_eq!(bench.shares().others, MicroJoules(95_000_000));
}

#[test]
fn what_none_of_three_used_is_a_residual_and_a_child_is_ours() {
    let mut bench = Bench::with(&[OURS, CHILD, OTHER, THIRD]);
    assert_eq!(bench.draw(&[(OURS, 20), (CHILD, 10), (OTHER, 15), (THIRD, 5)]), (30.0, APPORTIONED));
    let shares = bench.shares();
    assert_eq!((shares.others, shares.residual), (MicroJoules(20_000_000), MicroJoules(50_000_000)));
}

#[test]
fn use_beyond_all_of_the_time_is_shared_in_proportion() {
    let mut bench = Bench::with(&[OURS, OTHER]);
    assert_eq!(bench.draw(&[(OURS, 90), (OTHER, 90)]), (50.0, APPORTIONED));
    assert_eq!(bench.shares().residual, MicroJoules(0));
}

#[test]
fn a_process_that_comes_takes_its_share_and_leaves_all_when_it_goes() {
    let mut bench = Bench::with(&[OURS]);
    assert_eq!(bench.draw(&[]), (100.0, None));
    bench.on_board(&[OURS, OTHER]);
    bench.driver.change(|script| script.uses.push(Use { pid: OURS, at_us: 1, percent: 100 }));
    // The energy of the second in which it came waits for the first samples of both.
    assert_eq!(bench.draw(&[]), (100.0, APPORTIONED));
    assert_eq!(bench.draw(&[(OURS, 50), (OTHER, 50)]), (200.0, APPORTIONED));
    bench.on_board(&[OURS]);
    assert_eq!(
        bench.draw(&[(OURS, 90), (OTHER, 10)]),
        (290.0, APPORTIONED),
        "its last second is still its own"
    );
    assert_eq!(bench.draw(&[(OURS, 90)]), (390.0, None));
}

#[test]
fn a_child_that_has_ended_keeps_its_last_samples() {
    let mut bench = Bench::with(&[OURS, CHILD, OTHER]);
    bench.draw(&[(CHILD, 50), (OTHER, 50)]);
    bench.on_board(&[OURS, OTHER]);
    std::fs::remove_dir_all(bench._proc.path().join(CHILD.to_string())).unwrap();
    assert_eq!(bench.draw(&[(CHILD, 60), (OTHER, 40)]), (110.0, APPORTIONED));
}

#[test]
fn samples_are_asked_from_the_last_one_and_none_counts_twice() {
    let mut bench = Bench::with(&[OURS, OTHER]);
    // The script's ring keeps all samples, as a driver may: older ones, and the same again.
    assert_eq!(bench.draw(&[(OURS, 100)]), (100.0, APPORTIONED));
    assert_eq!(bench.draw(&[(OTHER, 40), (OURS, 60), (OTHER, 40)]), (160.0, APPORTIONED));
    bench.driver.change(|script| assert_eq!(script.asked_from, [0, 0, 1_000_000]));
    // Garbage that drivers are known to tell.
    bench.driver.change(|script| script.uses.push(Use { pid: 9, at_us: u64::MAX, percent: 12_345 }));
    assert_eq!(bench.draw(&[(OURS, 50), (OTHER, 50)]), (210.0, APPORTIONED));
    bench.driver.change(|script| assert_eq!(script.asked_from.last(), Some(&2_000_000)));
    bench.on_board(&[OURS]);
    bench.draw(&[(OURS, 100)]);
    assert_eq!(bench.draw(&[(OURS, 100)]), (410.0, None));
    bench.on_board(&[OURS, OTHER]);
    bench.draw(&[]);
    assert_eq!(
        bench.draw(&[(OTHER, 100)]),
        (410.0, APPORTIONED),
        "nor does garbage hide what comes after it"
    );
}

#[test]
fn several_samples_of_one_time_are_its_mean_and_one_who_has_few_was_there_for_less() {
    let mut bench = Bench::with(&[OURS, OTHER]);
    bench.driver.rise("GPU-a", 100);
    bench.driver.change(|script| {
        let of = |pid, at_us, percent| Use { pid, at_us, percent };
        script.uses =
            vec![of(OURS, 1, 80), of(OURS, 2, 60), of(OURS, 3, 40), of(OURS, 4, 20), of(OTHER, 4, 80)];
    });
    assert_eq!(bench.read(), (50.0, APPORTIONED));
    assert_eq!(bench.shares().others, MicroJoules(20_000_000));
}

#[test]
fn energy_waits_for_samples_and_two_seconds_without_any_were_idle() {
    let mut bench = Bench::with(&[OURS, OTHER]);
    assert_eq!(bench.draw(&[]), (0.0, APPORTIONED), "none yet");
    assert_eq!(bench.draw(&[(OURS, 50), (OTHER, 50)]), (100.0, APPORTIONED), "of both seconds");
    assert_eq!(bench.draw(&[]), (100.0, APPORTIONED));
    assert_eq!(bench.draw(&[]), (100.0, APPORTIONED));
    assert_eq!(bench.shares().residual, MicroJoules(200_000_000));
}

#[test]
fn a_clock_of_the_driver_that_goes_back_is_followed_after_an_idle_time() {
    let mut bench = Bench::with(&[OURS, OTHER]);
    bench.driver.change(|script| script.uses.push(Use { pid: OURS, at_us: 9_000_000_000, percent: 100 }));
    assert_eq!(bench.draw(&[]), (100.0, APPORTIONED));
    bench.driver.change(|script| script.uses.clear());
    for _ in 0..3 {
        bench.draw(&[(OURS, 100)]);
    }
    let (before, _) = bench.draw(&[(OURS, 100)]);
    assert_eq!(bench.draw(&[(OURS, 100)]), (before + 100.0, APPORTIONED));
    assert!(bench.shares().residual <= MicroJoules(200_000_000));
}

#[test]
fn a_use_that_cannot_be_read_counts_the_whole_board_and_says_so() {
    for failure in [|| NvmlError::NoPermission, || NvmlError::NotSupported] as [fn() -> NvmlError; 2] {
        let mut bench = Bench::with(&[OURS, OTHER]);
        bench.driver.change(|script| script.use_failure = Some(failure));
        assert_eq!(bench.draw(&[(OURS, 10), (OTHER, 90)]), (100.0, UNDIVIDED));
        bench.driver.change(|script| script.use_failure = None);
        assert_eq!(bench.draw(&[]), (100.0, APPORTIONED), "samples from here on");
        assert_eq!(bench.draw(&[(OURS, 10), (OTHER, 90)]), (120.0, APPORTIONED));
        bench.on_board(&[OURS]);
        bench.driver.change(|script| script.use_failure = Some(failure));
        assert_eq!(bench.draw(&[]), (220.0, UNDIVIDED));
        assert_eq!(bench.draw(&[]), (320.0, None), "alone: nothing is left to divide");
    }
}

#[test]
fn a_list_that_cannot_be_read_counts_the_whole_board_and_says_so() {
    let mut bench = Bench::with(&[OURS]);
    bench.driver.change(|script| script.list_failure = Some(|| NvmlError::NotSupported));
    assert_eq!(bench.draw(&[]), (100.0, UNDIVIDED));
    bench.driver.change(|script| script.list_failure = None);
    assert_eq!(bench.draw(&[]), (200.0, None));
}

#[test]
fn in_a_container_that_hides_process_numbers_two_processes_are_undivided_and_one_is_ours() {
    let (proc, family) = family();
    let mut bench = Bench::of(proc, &Family { hidden: true, ..family }, &[91_234]);
    assert_eq!(bench.draw(&[]), (100.0, None));
    bench.on_board(&[91_234, 91_300]);
    assert_eq!(bench.draw(&[(91_234, 50), (91_300, 50)]), (200.0, UNDIVIDED));
    // A number that happens to be ours is not.
    bench.on_board(&[OURS, 91_300]);
    assert_eq!(bench.draw(&[(OURS, 50), (91_300, 50)]), (300.0, UNDIVIDED));
}

#[test]
fn windows_carry_whether_the_board_was_shared_and_a_person_is_told_once_what_is_not_divided() {
    let (_proc, family) = family();
    let driver = ScriptedDriver::with(&[board("GPU-a")]);
    driver.change(|script| script.refresh_mj = 0);
    let meter = NvmlMeter::with_driver(Box::new(driver.clone()), None, false, &family).unwrap();
    let (clock, hand) = Clock::manual();
    let monitor =
        EnergyMonitor::builder().clock(clock).meter(Box::new(meter)).without_sampler().start().unwrap();
    let window = |processes: &[u32], uses: &[(u32, u32)]| {
        for _ in 0..8 {
            driver.rise("GPU-a", 100);
            driver.change(|script| {
                script.processes = processes.to_vec();
                let at_us = script.millijoules["GPU-a"];
                script.uses = uses.iter().map(|&(pid, percent)| Use { pid, at_us, percent }).collect();
            });
            hand.advance(SECOND);
            monitor.sample();
        }
        let window = monitor.close_window(crate::WindowKind::Step);
        assert!(window.complete && window.domains.len() == 1, "{window:?}");
        (window.domains[0].provenance, window.domains[0].microjoules.joules().0.round())
    };
    use Provenance::{Apportioned, MeasuredCounter, Undivided};
    // Windows look 1.1 s back.
    assert_eq!(window(&[OURS], &[]), (MeasuredCounter, 690.0));
    assert_eq!(window(&[OURS, OTHER], &[(OTHER, 100)]).0, Apportioned, "and no share is no stuck counter");
    assert_eq!(window(&[OURS, OTHER], &[(OTHER, 100)]), (Apportioned, 0.0));
    assert_eq!(monitor.take_alerts(), []);
    driver.change(|script| script.use_failure = Some(|| NvmlError::NoPermission));
    assert_eq!(window(&[OURS, OTHER], &[]).0, Undivided);
    assert_eq!(window(&[OURS, OTHER], &[]), (Undivided, 800.0));
    let told: Vec<String> = monitor.take_alerts().iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("gpu-0") && told[0].contains("--pid=host"), "{}", told[0]);
    window(&[OURS], &[]);
    assert_eq!(window(&[OURS], &[]), (MeasuredCounter, 800.0));
}

#[test]
fn a_counter_that_stands_still_is_stuck_whether_the_board_is_shared_or_not() {
    let (_proc, family) = family();
    let driver = ScriptedDriver::with(&[board("GPU-a")]);
    driver.change(|script| (script.refresh_mj, script.processes) = (0, vec![OURS, OTHER]));
    let meter = NvmlMeter::with_driver(Box::new(driver.clone()), None, false, &family).unwrap();
    let (clock, hand) = Clock::manual();
    let monitor =
        EnergyMonitor::builder().clock(clock).meter(Box::new(meter)).without_sampler().start().unwrap();
    for at_us in 1..10 {
        driver.change(|script| script.uses = vec![Use { pid: OURS, at_us, percent: 100 }]);
        hand.advance(SECOND);
        monitor.sample();
    }
    let told = monitor.take_alerts();
    assert!(told.len() == 1 && told[0].message.contains("gpu-0 has shown the same value"), "{told:?}");
}

/// Who is on the board in a second, with what use, and what fails.
type Turn = (u32, Vec<u32>, Vec<(u32, u32)>, u8, u32);

fn turn() -> impl Strategy<Value = Turn> {
    let pid = || prop::sample::select(vec![OURS, CHILD, OTHER, THIRD]);
    (
        0u32..500_000,
        prop::collection::vec(pid(), 0..4),
        prop::collection::vec((pid(), 0u32..130), 0..6),
        0u8..10,
        1u32..3000,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn shares_are_the_board_to_the_microjoule_whatever_happens(turns in prop::collection::vec(turn(), 1..40)) {
        let mut bench = Bench::with(&[OURS]);
        let (mut now, mut drawn_mj, mut last) = (SECOND, 0u64, 0.0);
        for (millijoules, processes, uses, fails, ms) in turns {
            now += Duration::from_millis(u64::from(ms));
            drawn_mj += u64::from(millijoules);
            bench.driver.change(|script| {
                *script.millijoules.get_mut("GPU-a").unwrap() += u64::from(millijoules);
                script.processes = processes;
                let at_us = now.as_micros() as u64;
                script.uses.extend(uses.into_iter().map(|(pid, percent)| Use { pid, at_us, percent }));
                script.list_failure = (fails == 0).then_some(|| NvmlError::Unknown);
                script.use_failure = (fails == 1).then_some(|| NvmlError::NoPermission);
            });
            let reading = bench.meter.read(now).unwrap();
            let (shares, ours) = (bench.shares(), reading.cumulative[0]);
            prop_assert!(joules(&reading)[0] >= last);
            last = joules(&reading)[0];
            prop_assert_eq!(shares.ours, ours);
            let waiting = drawn_mj * 1000 - (shares.ours.0 + shares.others.0 + shares.residual.0);
            let is_waiting = reading.notes.iter().any(|note| note.event == CounterEvent::Apportioned);
            prop_assert!(waiting == 0 || is_waiting || millijoules == 0, "{waiting} uJ are nowhere");
        }
        // Whatever waits is divided in the end, and nothing is lost or made.
        bench.driver.change(|script| {
            (script.processes, script.list_failure, script.use_failure) = (vec![OURS], None, None);
        });
        for _ in 0..3 {
            now += SECOND * 2;
            bench.meter.read(now).unwrap();
        }
        let shares = bench.shares();
        prop_assert_eq!(shares.ours.0 + shares.others.0 + shares.residual.0, drawn_mj * 1000);
    }
}
