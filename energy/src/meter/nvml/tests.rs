//! The meter with a driver that plays a script: no GPU is needed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use nvml_wrapper::enums::device::DeviceArchitecture;

use super::driver::{PowerSample, Slice, Use, usage_meaning};
use super::*;

mod shared;

const SECOND: Duration = Duration::from_secs(1);

/// A data-centre board without slices.
pub(super) fn board(uuid: &str) -> Board {
    Board {
        uuid: uuid.into(),
        name: "NVIDIA Script".into(),
        is_consumer: false,
        usage_meaning: PowerMeaning::Average,
        mig_slices: None,
        slices: Vec::new(),
    }
}

/// A slice of a board.
pub(super) fn slice(uuid: &str, compute_slices: u32) -> Slice {
    Slice { uuid: uuid.into(), compute_slices }
}

/// What the driver would say, for the test to change as it goes.
#[derive(Default)]
struct Script {
    boards: Vec<Board>,
    millijoules: BTreeMap<String, u64>,
    /// Milliwatts by field; a field that is not there is not supported.
    power: BTreeMap<&'static str, u64>,
    /// The device's time; none where it gives none.
    device_time: Option<Duration>,
    /// What the counters rise by while time passes.
    refresh_mj: u64,
    failures: BTreeMap<String, fn() -> NvmlError>,
    reloads: u32,
    /// The processes on every board, and the ring of samples of their use, old ones included.
    processes: Vec<u32>,
    uses: Vec<Use>,
    /// The time stamps that the uses were asked from.
    asked_from: Vec<u64>,
    list_failure: Option<fn() -> NvmlError>,
    use_failure: Option<fn() -> NvmlError>,
}

#[derive(Clone, Default)]
struct ScriptedDriver(Arc<Mutex<Script>>);

impl ScriptedDriver {
    fn with(boards: &[Board]) -> Self {
        let counters = boards.iter().map(|board| (board.uuid.clone(), 5000));
        let script = Script {
            boards: boards.to_vec(),
            millijoules: counters.collect(),
            refresh_mj: 1,
            ..Script::default()
        };
        ScriptedDriver(Arc::new(Mutex::new(script)))
    }

    fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.0.lock().unwrap());
    }

    fn rise(&self, uuid: &str, joules: u64) {
        self.change(|script| *script.millijoules.get_mut(uuid).unwrap() += joules * 1000);
    }

    fn open(&self, list: Option<&str>) -> Result<NvmlMeter, MeterError> {
        NvmlMeter::with_driver(Box::new(self.clone()), list, false, &Family::this())
    }
}

impl Driver for ScriptedDriver {
    fn boards(&self) -> Result<Vec<Board>, NvmlError> {
        Ok(self.0.lock().unwrap().boards.clone())
    }

    fn slice(&self, _: &str) -> Result<String, NvmlError> {
        Err(NvmlError::NotFound)
    }

    fn millijoules(&self, uuid: &str) -> Result<u64, NvmlError> {
        let script = self.0.lock().unwrap();
        match script.failures.get(uuid) {
            Some(failure) => Err(failure()),
            None => script.millijoules.get(uuid).copied().ok_or(NvmlError::NotSupported),
        }
    }

    fn power(&self, _: &str, field: PowerField) -> Result<PowerSample, NvmlError> {
        let script = self.0.lock().unwrap();
        let name = match field {
            PowerField::Average => "average",
            PowerField::Instant => "instant",
            PowerField::Usage => "usage",
        };
        let milliwatts = script.power.get(name).ok_or(NvmlError::NotSupported)?;
        Ok(PowerSample { at: script.device_time, power: Watts(*milliwatts as f64 / 1e3) })
    }

    fn processes(&self, _: &str) -> Result<Vec<u32>, NvmlError> {
        let script = self.0.lock().unwrap();
        script.list_failure.map_or_else(|| Ok(script.processes.clone()), |failure| Err(failure()))
    }

    fn uses(&self, _: &str, after_us: u64) -> Result<Vec<Use>, NvmlError> {
        let mut script = self.0.lock().unwrap();
        script.asked_from.push(after_us);
        script.use_failure.map_or_else(|| Ok(script.uses.clone()), |failure| Err(failure()))
    }

    fn reload(&mut self) -> Result<(), NvmlError> {
        let mut script = self.0.lock().unwrap();
        script.reloads += 1;
        if script.reloads < 2 { Err(NvmlError::DriverNotLoaded) } else { Ok(()) }
    }

    fn wait(&self, _: Duration) {
        let mut script = self.0.lock().unwrap();
        let refresh_mj = script.refresh_mj;
        script.millijoules.values_mut().for_each(|counter| *counter += refresh_mj);
    }
}

fn joules(reading: &Reading) -> Vec<f64> {
    reading.cumulative.iter().map(|energy| energy.joules().0).collect()
}

fn names(meter: &NvmlMeter) -> Vec<&str> {
    meter.domains().iter().map(|domain| domain.name.as_ref()).collect()
}

#[test]
fn the_visible_boards_are_counted_each_by_its_counter() {
    let driver = ScriptedDriver::with(&[board("GPU-a"), board("GPU-b"), board("GPU-c")]);
    let mut meter = driver.open(Some("2,0")).unwrap();
    assert_eq!(names(&meter), ["gpu-2", "gpu-0"]);
    assert_eq!(meter.domains()[0].provenance, Provenance::MeasuredCounter);
    assert_eq!(joules(&meter.read(Duration::ZERO).unwrap()), [0.0, 0.0]);
    driver.rise("GPU-a", 300);
    driver.rise("GPU-b", 500);
    driver.rise("GPU-c", 700);
    assert_eq!(joules(&meter.read(SECOND).unwrap()), [700.0, 300.0]);
}

#[test]
fn a_counter_is_read_fast_only_where_it_was_seen_to_refresh_fast() {
    let fast = ScriptedDriver::with(&[board("GPU-a"), board("GPU-b")]);
    assert_eq!(fast.open(None).unwrap().update_period(), Duration::from_millis(100));

    let stale = ScriptedDriver::with(&[board("GPU-a")]);
    stale.change(|script| script.refresh_mj = 0);
    assert_eq!(stale.open(None).unwrap().update_period(), SECOND);

    let consumer = ScriptedDriver::with(&[board("GPU-a"), Board { is_consumer: true, ..board("GPU-b") }]);
    assert_eq!(consumer.open(None).unwrap().update_period(), SECOND);
}

#[test]
fn every_fall_of_the_counter_is_a_reset_and_never_energy() {
    let driver = ScriptedDriver::with(&[board("GPU-a")]);
    let mut meter = driver.open(None).unwrap();
    meter.read(Duration::ZERO).unwrap();
    driver.change(|script| script.millijoules.insert("GPU-a".into(), 20).map_or((), drop));
    let reading = meter.read(SECOND).unwrap();
    assert_eq!((joules(&reading), reading.notes[0].event), (vec![0.0], CounterEvent::Reset));
    driver.rise("GPU-a", 100);
    assert!(joules(&meter.read(SECOND * 2).unwrap())[0] <= 100.0);
    driver.rise("GPU-a", 100);
    let total = joules(&meter.read(SECOND * 3).unwrap())[0];
    assert!((100.0..=200.0).contains(&total), "{total}");
}

#[test]
fn power_is_integrated_on_the_devices_own_time_where_there_is_no_counter() {
    let driver = ScriptedDriver::with(&[board("GPU-a")]);
    let since_1970 = SECOND * 1_700_000_000;
    driver.change(|script| {
        script.millijoules.clear();
        script.power.insert("average", 200_000);
        script.power.insert("usage", 999_000);
        script.device_time = Some(since_1970);
    });
    let mut meter = driver.open(None).unwrap();
    let domain = &meter.domains()[0];
    assert_eq!((domain.sensor, domain.provenance), ("nvml_power_average", Provenance::IntegratedPower));
    assert_eq!(meter.update_period(), Duration::from_millis(50));
    meter.read(Duration::ZERO).unwrap();
    driver.change(|script| {
        script.power.insert("average", 400_000);
        script.device_time = Some(since_1970 + Duration::from_millis(100));
    });
    // The caller was late by 30 ms; the device was not.
    let reading = meter.read(Duration::from_millis(130)).unwrap();
    assert_eq!(joules(&reading), [30.0]);
    driver.change(|script| script.device_time = Some(since_1970 + SECOND * 9));
    let reading = meter.read(SECOND * 9).unwrap();
    assert_eq!((joules(&reading), reading.notes[0].event), (vec![30.0], CounterEvent::Gap));
}

#[test]
fn the_plain_power_call_is_named_by_what_it_means_on_the_board() {
    let driver = ScriptedDriver::with(&[Board { usage_meaning: PowerMeaning::Instant, ..board("GPU-a") }]);
    driver.change(|script| {
        script.millijoules.clear();
        script.power.insert("usage", 100_000);
    });
    let mut meter = driver.open(None).unwrap();
    assert_eq!(meter.domains()[0].sensor, "nvml_power_instant");
    meter.read(Duration::ZERO).unwrap();
    assert_eq!(joules(&meter.read(Duration::from_millis(50)).unwrap()), [5.0]);

    let meaning = |architecture, name| usage_meaning(Some(architecture), name);
    assert_eq!(meaning(DeviceArchitecture::Volta, "Tesla V100-SXM2-16GB"), PowerMeaning::Instant);
    assert_eq!(meaning(DeviceArchitecture::Ampere, "NVIDIA A100-SXM4-40GB"), PowerMeaning::Instant);
    assert_eq!(meaning(DeviceArchitecture::Ampere, "NVIDIA GeForce RTX 3090"), PowerMeaning::Average);
    assert_eq!(meaning(DeviceArchitecture::Hopper, "NVIDIA H100 80GB HBM3"), PowerMeaning::Average);
}

#[test]
fn a_board_with_neither_counter_nor_power_is_refused_with_what_to_do() {
    let driver = ScriptedDriver::with(&[board("GPU-a")]);
    driver.change(|script| script.millijoules.clear());
    let Err(error) = driver.open(None) else { panic!("there is nothing to read") };
    assert_eq!(error.kind, MeterErrorKind::Fatal);
    assert!(error.to_string().contains("gpu-0") && error.to_string().contains("energy.meter"), "{error}");
}

#[test]
fn no_visible_board_is_gone_and_an_unknown_slice_is_refused() {
    let driver = ScriptedDriver::with(&[board("GPU-a")]);
    let kind = |list| driver.open(Some(list)).err().map(|error| (error.kind, error.to_string()));
    assert_eq!(kind("").unwrap().0, MeterErrorKind::Gone);
    let (refused, message) = kind("MIG-77dd").unwrap();
    assert!(refused == MeterErrorKind::Fatal && message.contains("MIG-77dd"), "{message}");
}

fn partitioned() -> Board {
    Board { mig_slices: Some(7), slices: vec![slice("MIG-1", 3), slice("MIG-2", 2)], ..board("GPU-a") }
}

#[test]
fn a_slice_has_its_share_of_the_board_and_not_the_board() {
    let driver = ScriptedDriver::with(&[partitioned(), board("GPU-b")]);
    let mut meter = driver.open(Some("MIG-2,1")).unwrap();
    assert_eq!(names(&meter), ["gpu-0-mig-1", "gpu-1"]);
    assert_eq!(meter.domains()[0].provenance, Provenance::Apportioned);
    meter.read(Duration::ZERO).unwrap();
    driver.rise("GPU-a", 700);
    driver.rise("GPU-b", 50);
    assert_eq!(joules(&meter.read(SECOND).unwrap()), [200.0, 50.0]);
}

#[test]
fn all_slices_and_their_residual_are_the_board_to_the_microjoule() {
    let driver = ScriptedDriver::with(&[partitioned()]);
    let mut meter = driver.open(Some("MIG-1,MIG-2")).unwrap();
    assert_eq!(names(&meter), ["gpu-0-mig-0", "gpu-0-mig-1", "gpu-0-residual"]);
    meter.read(Duration::ZERO).unwrap();
    for second in 1..=20u32 {
        driver.change(|script| *script.millijoules.get_mut("GPU-a").unwrap() += 100_001);
        let reading = meter.read(SECOND * second).unwrap();
        let sum: MicroJoules = reading.cumulative.iter().copied().sum();
        assert_eq!(sum, MicroJoules(u64::from(second) * 100_001_000));
    }
}

#[test]
fn a_lost_board_is_unreadable_while_the_others_count_and_gone_when_it_is_the_last() {
    let driver = ScriptedDriver::with(&[board("GPU-a"), board("GPU-b")]);
    let mut meter = driver.open(None).unwrap();
    meter.read(Duration::ZERO).unwrap();
    driver.change(|script| script.failures.insert("GPU-a".into(), || NvmlError::GpuLost).map_or((), drop));
    driver.rise("GPU-b", 9);
    let reading = meter.read(SECOND).unwrap();
    assert_eq!(joules(&reading), [0.0, 9.0]);
    let unreadable = Note { domain: 0, event: CounterEvent::Unreadable, span: Duration::ZERO };
    assert_eq!(reading.notes, [unreadable]);
    driver.change(|script| script.failures.insert("GPU-b".into(), || NvmlError::Timeout).map_or((), drop));
    assert_eq!(meter.read(SECOND * 2).unwrap_err().kind, MeterErrorKind::Retry);
    driver.change(|script| script.failures.insert("GPU-b".into(), || NvmlError::GpuLost).map_or((), drop));
    let error = meter.read(SECOND * 3).unwrap_err();
    assert!(error.kind == MeterErrorKind::Gone && error.message.starts_with("gpu-0"), "{error}");
}

#[test]
fn a_driver_that_was_loaded_anew_is_found_again_and_its_counter_counts_on() {
    let driver = ScriptedDriver::with(&[board("GPU-a")]);
    let mut meter = driver.open(None).unwrap();
    meter.read(Duration::ZERO).unwrap();
    driver.change(|script| {
        script.failures.insert("GPU-a".into(), || NvmlError::Uninitialized).map_or((), drop)
    });
    assert_eq!(meter.read(SECOND).unwrap_err().kind, MeterErrorKind::Retry);
    driver.change(|script| {
        script.failures.clear();
        script.millijoules.insert("GPU-a".into(), 0);
    });
    assert_eq!(meter.read(SECOND * 2).unwrap_err().kind, MeterErrorKind::Retry, "not loaded yet");
    let reading = meter.read(SECOND * 3).unwrap();
    assert_eq!((joules(&reading), reading.notes[0].event), (vec![0.0], CounterEvent::Reset));
    driver.rise("GPU-a", 3);
    assert_eq!(joules(&meter.read(SECOND * 4).unwrap()), [3.0]);
}

#[test]
fn a_missing_driver_is_gone_and_a_hiccup_is_worth_a_retry() {
    assert_eq!(at_opening("NVML", &NvmlError::LibraryNotFound).kind, MeterErrorKind::Gone);
    assert_eq!(at_opening("NVML", &NvmlError::NotSupported).kind, MeterErrorKind::Fatal);
    assert_eq!(at_opening("NVML", &NvmlError::Timeout).kind, MeterErrorKind::Retry);
    assert_eq!(at_reading("gpu-0", &NvmlError::DriverNotLoaded).kind, MeterErrorKind::Retry);
}
