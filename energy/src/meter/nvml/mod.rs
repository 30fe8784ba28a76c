//! NVML: the energy of NVIDIA GPUs.
//!
//! First choice is the energy counter (millijoules since the driver was loaded; Volta and later). It never wraps: if
//! it falls, the driver was loaded anew. Read too often, the counter of consumer boards falls short (95 % at 0.5 ms,
//! 13 % at 100 ms, 1.6 % at 1 s on an RTX 4090: Dauner), so it is read once a second, and ten times a second only
//! where a data-centre board has shown that it refreshes that fast.
//!
//! A board without the counter has its power integrated: the mean of the last second where the driver gives it,
//! since that leaves no time unseen, otherwise the short window that `nvmlDeviceGetPowerUsage` shows.
//!
//! Only what this process may use (`CUDA_VISIBLE_DEVICES`) is counted. A process that holds MIG slices gets its
//! share of the board (see [`apportion`](super::apportion)); one that holds all of them also gets the residual.
//! A board that is not named by slice counts whole, until other processes use it too: then this process gets its
//! share by time used (see `sharing`).

mod driver;
mod family;
mod partition;
mod sharing;
mod visible;

use std::time::Duration;

use nvml_wrapper::error::NvmlError;

use super::counter::CounterTracker;
use super::integrate::PowerIntegrator;
use super::{CounterEvent, Domain, Meter, MeterError, MeterErrorKind, Note, Plausible, Provenance, Reading};
use crate::units::{MicroJoules, Watts};
use driver::{Board, Driver, LoadedDriver, PowerField, PowerMeaning};
use family::Family;
use partition::Partition;
use sharing::Sharing;
use visible::{Unclear, Visible, visible};

const COUNTER_PERIOD: Duration = Duration::from_secs(1);
const FAST_COUNTER_PERIOD: Duration = Duration::from_millis(100);
const POWER_PERIOD: Duration = Duration::from_millis(50);

/// Readings in which a counter has to show news each time to be called fast.
const FRESH_READINGS: u32 = 5;

/// Twice the draw of the largest boards sold in 2026, and a counter that may be a second late.
const BOARD: Plausible = Plausible { max_watts: Watts(3000.0), update_slack: Duration::from_secs(1) };

/// Power samples further apart are not joined: far beyond the second that the driver averages over, what lies
/// between them was never seen.
const LONGEST_JOIN: Duration = Duration::from_secs(2);

/// Energy of the visible GPUs.
pub struct NvmlMeter {
    driver: Box<dyn Driver>,
    domains: Vec<Domain>,
    gpus: Vec<Gpu>,
    update_period: Duration,
    /// The library has lost the driver and must be loaded anew.
    lost_driver: bool,
}

/// One board with the domains that its energy goes to.
#[derive(Debug)]
struct Gpu {
    uuid: String,
    name: String,
    sensor: Sensor,
    division: Division,
}

#[derive(Debug)]
enum Sensor {
    Counter(CounterTracker),
    Power(PowerField, PowerIntegrator),
}

/// Whose the energy of a board is.
#[derive(Debug)]
enum Division {
    /// This process's, as far as no other uses the board.
    Whole(Sharing),
    /// Those slices' that are held.
    Slices(Partition),
}

impl NvmlMeter {
    /// Loads the driver's library and opens the sensors of what `CUDA_VISIBLE_DEVICES` names. On data-centre boards
    /// it takes half a second to see how fast their counters refresh.
    ///
    /// # Errors
    /// `Gone` when there is no driver or no visible GPU; `Fatal` when a GPU has neither counter nor power, or when
    /// it is not clear which GPU is meant.
    pub fn open() -> Result<Self, MeterError> {
        let driver = LoadedDriver::load().map_err(|error| at_opening("NVML", &error))?;
        let list = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let by_bus = std::env::var("CUDA_DEVICE_ORDER").is_ok_and(|order| order == "PCI_BUS_ID");
        Self::with_driver(Box::new(driver), list.as_deref(), by_bus, &Family::this())
    }

    fn with_driver(
        driver: Box<dyn Driver>,
        list: Option<&str>,
        by_bus: bool,
        family: &Family,
    ) -> Result<Self, MeterError> {
        let boards = driver.boards().map_err(|error| at_opening("device list", &error))?;
        let found = visible(list, by_bus, &boards, |name| driver.slice(name).ok()).map_err(unclear)?;
        if found.is_empty() {
            return Err(absent("no visible GPU".into()));
        }
        let mut meter = NvmlMeter {
            driver,
            domains: Vec::new(),
            gpus: Vec::new(),
            update_period: Duration::ZERO,
            lost_driver: false,
        };
        let all_fast = found.iter().all(|visible| !boards[visible.board].is_consumer);
        let fast = all_fast && meter.counters_are_fast(found.iter().map(|visible| &boards[visible.board]));
        for visible in found {
            meter.add(
                &boards[visible.board],
                visible,
                if fast { FAST_COUNTER_PERIOD } else { COUNTER_PERIOD },
                family,
            )?;
        }
        Ok(meter)
    }

    /// True when every counter had news at each of some readings, a tenth of a second apart. A board without a
    /// counter does not stand in the way.
    fn counters_are_fast<'a>(&self, boards: impl Iterator<Item = &'a Board> + Clone) -> bool {
        let read = || -> Vec<Option<u64>> {
            boards.clone().map(|board| self.driver.millijoules(&board.uuid).ok()).collect()
        };
        let mut before = read();
        before.iter().any(Option::is_some)
            && (0..FRESH_READINGS).all(|_| {
                self.driver.wait(FAST_COUNTER_PERIOD);
                let after = read();
                let fresh =
                    before.iter().zip(&after).all(|(before, after)| before.is_none() || after > before);
                before = after;
                fresh
            })
    }

    fn add(
        &mut self,
        board: &Board,
        visible: Visible,
        counter_period: Duration,
        family: &Family,
    ) -> Result<(), MeterError> {
        let name = format!("gpu-{}", visible.board);
        let (sensor, label, provenance) = self.sensor_of(board, &name)?;
        let period = match sensor {
            Sensor::Counter(_) => counter_period,
            Sensor::Power(..) => POWER_PERIOD,
        };
        // Power beside a slow counter is read as slowly, which the mean of a second bears.
        self.update_period = self.update_period.max(period);
        let mut domain = |name: String, provenance| {
            self.domains.push(Domain { name: name.into(), sensor: label, provenance });
        };
        let division = match visible.slices {
            None => {
                domain(name.clone(), provenance);
                Division::Whole(Sharing::new(family.clone()))
            }
            Some(held) => {
                for slice in &held {
                    domain(format!("{name}-mig-{slice}"), Provenance::Apportioned);
                }
                let partition = Partition::new(board, &held);
                if partition.with_residual {
                    domain(format!("{name}-residual"), Provenance::Apportioned);
                }
                Division::Slices(partition)
            }
        };
        self.gpus.push(Gpu { uuid: board.uuid.clone(), name, sensor, division });
        Ok(())
    }

    /// The best sensor of a board, with its label and the provenance of what it gives.
    fn sensor_of(&self, board: &Board, name: &str) -> Result<(Sensor, &'static str, Provenance), MeterError> {
        let refused = match self.driver.millijoules(&board.uuid) {
            Ok(_) => {
                let tracker = CounterTracker::new(None, BOARD);
                return Ok((Sensor::Counter(tracker), "nvml", Provenance::MeasuredCounter));
            }
            Err(error) if is_unsupported(&error) => error,
            Err(error) => return Err(at_opening(&format!("energy counter of {name}"), &error)),
        };
        for field in [PowerField::Average, PowerField::Instant, PowerField::Usage] {
            if self.driver.power(&board.uuid, field).is_ok() {
                let meaning = match field {
                    PowerField::Average => PowerMeaning::Average,
                    PowerField::Instant => PowerMeaning::Instant,
                    PowerField::Usage => board.usage_meaning,
                };
                let label = match meaning {
                    PowerMeaning::Average => "nvml_power_average",
                    PowerMeaning::Instant => "nvml_power_instant",
                };
                let integrator = PowerIntegrator::new(LONGEST_JOIN, BOARD.max_watts);
                return Ok((Sensor::Power(field, integrator), label, Provenance::IntegratedPower));
            }
        }
        Err(at_opening(&format!("energy counter and power of {name}"), &refused))
    }
}

impl Meter for NvmlMeter {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn update_period(&self) -> Duration {
        self.update_period
    }

    fn read(&mut self, now: Duration) -> Result<Reading, MeterError> {
        if self.lost_driver {
            self.driver.reload().map_err(|error| at_reading("NVML", &error))?;
            self.lost_driver = false;
        }
        let mut reading = Reading::default();
        let mut failures = Vec::new();
        for gpu in &mut self.gpus {
            let first_domain = reading.cumulative.len();
            let notes = gpu.advance(self.driver.as_ref(), now).unwrap_or_else(|error| {
                self.lost_driver |= has_lost_driver(&error);
                failures.push(at_reading(&gpu.name, &error));
                vec![(CounterEvent::Unreadable, Duration::ZERO)]
            });
            gpu.enter(&mut reading.cumulative);
            for domain in first_domain..reading.cumulative.len() {
                let noted = notes.iter().map(|(event, span)| Note { domain, event: *event, span: *span });
                reading.notes.extend(noted);
            }
        }
        let all_gone = failures.iter().all(|failure| failure.kind == MeterErrorKind::Gone);
        if failures.len() < self.gpus.len() {
            return Ok(reading);
        }
        let told = failures.into_iter().find(|failure| all_gone || failure.kind != MeterErrorKind::Gone);
        Err(told.unwrap_or_else(|| absent("no visible GPU".into())))
    }
}

impl Gpu {
    /// Reads the sensor and divides what it shows. Gives what is to be noted of each domain.
    fn advance(
        &mut self,
        driver: &dyn Driver,
        now: Duration,
    ) -> Result<Vec<(CounterEvent, Duration)>, NvmlError> {
        let noted = self.sensor.advance(driver, &self.uuid, now)?;
        let total = self.sensor.cumulative();
        let shared = match &mut self.division {
            Division::Whole(sharing) => sharing.advance(driver, &self.uuid, now, total),
            Division::Slices(partition) => {
                partition.advance(total);
                None
            }
        };
        Ok(noted.into_iter().chain(shared.map(|event| (event, Duration::ZERO))).collect())
    }

    /// Adds the energy of its domains.
    fn enter(&self, cumulative: &mut Vec<MicroJoules>) {
        match &self.division {
            Division::Whole(sharing) => cumulative.push(sharing.shares.ours),
            Division::Slices(partition) => cumulative.extend(partition.shares()),
        }
    }
}

impl Sensor {
    fn advance(
        &mut self,
        driver: &dyn Driver,
        uuid: &str,
        now: Duration,
    ) -> Result<Option<(CounterEvent, Duration)>, NvmlError> {
        match self {
            Sensor::Counter(tracker) => {
                let microjoules = driver.millijoules(uuid)?.saturating_mul(1000);
                Ok(tracker.advance(now, microjoules))
            }
            Sensor::Power(field, integrator) => {
                let sample = driver.power(uuid, *field)?;
                Ok(integrator.push(sample.at.unwrap_or(now), sample.power))
            }
        }
    }

    fn cumulative(&self) -> MicroJoules {
        match self {
            Sensor::Counter(tracker) => tracker.cumulative(),
            Sensor::Power(_, integrator) => integrator.cumulative(),
        }
    }
}

fn is_unsupported(error: &NvmlError) -> bool {
    matches!(error, NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_))
}

fn has_lost_driver(error: &NvmlError) -> bool {
    matches!(error, NvmlError::Uninitialized | NvmlError::DriverNotLoaded | NvmlError::LibRmVersionMismatch)
}

fn at_opening(what: &str, error: &NvmlError) -> MeterError {
    let message = format!("{what}: {error}");
    match error {
        NvmlError::LibloadingError(_)
        | NvmlError::LibraryNotFound
        | NvmlError::DriverNotLoaded
        | NvmlError::NotFound => absent(message),
        NvmlError::NoPermission | NvmlError::LibRmVersionMismatch => no_sensor(message),
        error if is_unsupported(error) => no_sensor(message),
        error => at_reading(what, error),
    }
}

fn at_reading(what: &str, error: &NvmlError) -> MeterError {
    let (kind, remedy) = match error {
        NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::NotFound => {
            (MeterErrorKind::Gone, "the GPU needs a reset or the machine a reboot (see `dmesg`)")
        }
        _ => (MeterErrorKind::Retry, "the span is recorded as a gap until the sensor can be read again"),
    };
    MeterError { sensor: "nvml", kind, message: format!("{what}: {error}"), remedy: remedy.into() }
}

fn no_sensor(message: String) -> MeterError {
    MeterError {
        sensor: "nvml",
        kind: MeterErrorKind::Fatal,
        message,
        remedy: "the sensors need a supported board, a matching driver and access to the device; \
                 otherwise use energy.meter = \"rapl\" or \"model\""
            .into(),
    }
}

fn unclear(unclear: Unclear) -> MeterError {
    let (message, remedy) = match unclear {
        Unclear::Slice(name) => (
            format!("CUDA_VISIBLE_DEVICES names the slice {name}, which no board has"),
            "name one of the slices that `nvidia-smi -L` lists, or use energy.meter = \"rapl\" or \"model\"",
        ),
        Unclear::Order => (
            "CUDA_VISIBLE_DEVICES picks among different boards by index, and CUDA counts the fastest first"
                .into(),
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the boards by UUID",
        ),
    };
    MeterError { sensor: "nvml", kind: MeterErrorKind::Fatal, message, remedy: remedy.into() }
}

fn absent(message: String) -> MeterError {
    MeterError {
        sensor: "nvml",
        kind: MeterErrorKind::Gone,
        message,
        remedy: "install the NVIDIA driver (libnvidia-ml.so.1) and make a GPU visible, \
                 or use energy.meter = \"rapl\" or \"model\""
            .into(),
    }
}

#[cfg(test)]
mod tests;
