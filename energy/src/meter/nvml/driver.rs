//! What the meter asks of NVML, as a trait that tests play with a script, and the real library behind it.

use std::time::Duration;

use nvml_wrapper::enum_wrappers::device::Brand;
use nvml_wrapper::enums::device::{DeviceArchitecture, SampleValue};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::{NVML_FI_DEV_POWER_AVERAGE, NVML_FI_DEV_POWER_INSTANT};
use nvml_wrapper::{Device, Nvml};

use crate::units::Watts;

/// The calls of NVML that the meter needs. Boards are named by UUID, which outlives a driver reload.
pub(super) trait Driver: Send {
    /// Every board, in NVML's order.
    fn boards(&self) -> Result<Vec<Board>, NvmlError>;
    /// The UUID of the MIG slice that `name` stands for, where NVML knows it by another name than its own.
    fn slice(&self, name: &str) -> Result<String, NvmlError>;
    /// Energy since the driver was loaded, in millijoules.
    fn millijoules(&self, uuid: &str) -> Result<u64, NvmlError>;
    /// Power by one of its fields.
    fn power(&self, uuid: &str, field: PowerField) -> Result<PowerSample, NvmlError>;
    /// The processes that compute on a board.
    fn processes(&self, uuid: &str) -> Result<Vec<u32>, NvmlError>;
    /// How much of a board each process used, in the samples that the driver still has and took after `after_us`.
    fn uses(&self, uuid: &str, after_us: u64) -> Result<Vec<Use>, NvmlError>;
    /// Loads the library anew, after the driver was.
    fn reload(&mut self) -> Result<(), NvmlError>;
    /// Lets time pass.
    fn wait(&self, time: Duration);
}

/// A board as NVML lists it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Board {
    pub(super) uuid: String,
    pub(super) name: String,
    /// Its counter falls short when it is read faster than once a second.
    pub(super) is_consumer: bool,
    /// What the plain power call means on this board.
    pub(super) usage_meaning: PowerMeaning,
    /// Compute slices, where the board is partitioned.
    pub(super) mig_slices: Option<u32>,
    /// Its MIG slices.
    pub(super) slices: Vec<Slice>,
}

/// A MIG slice.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Slice {
    pub(super) uuid: String,
    pub(super) compute_slices: u32,
}

/// Where power is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PowerField {
    /// `NVML_FI_DEV_POWER_AVERAGE`: the mean of the last second.
    Average,
    /// `NVML_FI_DEV_POWER_INSTANT`: a short window; data-centre boards show 25 ms out of each 100.
    Instant,
    /// `nvmlDeviceGetPowerUsage`, whose meaning depends on the board.
    Usage,
}

/// What a power reading is the mean of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PowerMeaning {
    Average,
    Instant,
}

/// A power reading, with the device's time where it gives one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct PowerSample {
    pub(super) at: Option<Duration>,
    pub(super) power: Watts,
}

/// One sample of a process's use of a board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) pid: u32,
    /// When it was taken, on a clock of the driver's.
    pub(super) at_us: u64,
    /// Share of the time in which the process had work on the board.
    pub(super) percent: u32,
}

/// The library of the installed driver.
pub(super) struct LoadedDriver(Nvml);

impl LoadedDriver {
    pub(super) fn load() -> Result<Self, NvmlError> {
        Nvml::init().map(LoadedDriver)
    }

    fn device(&self, uuid: &str) -> Result<Device<'_>, NvmlError> {
        self.0.device_by_uuid(uuid)
    }
}

impl Driver for LoadedDriver {
    fn boards(&self) -> Result<Vec<Board>, NvmlError> {
        (0..self.0.device_count()?).map(|index| board(&self.0.device_by_index(index)?)).collect()
    }

    fn slice(&self, name: &str) -> Result<String, NvmlError> {
        self.device(name)?.uuid()
    }

    fn millijoules(&self, uuid: &str) -> Result<u64, NvmlError> {
        self.device(uuid)?.total_energy_consumption()
    }

    fn power(&self, uuid: &str, field: PowerField) -> Result<PowerSample, NvmlError> {
        let device = self.device(uuid)?;
        let id = match field {
            PowerField::Average => NVML_FI_DEV_POWER_AVERAGE,
            PowerField::Instant => NVML_FI_DEV_POWER_INSTANT,
            PowerField::Usage => {
                return device.power_usage().map(|milliwatts| sample(None, u64::from(milliwatts)));
            }
        };
        let mut values = device.field_values_for(&[FieldId(id)])?;
        let value = values.pop().ok_or(NvmlError::NotSupported)??;
        // The time is given in microseconds since 1970.
        let at = u64::try_from(value.timestamp).ok().filter(|at| *at > 0).map(Duration::from_micros);
        match value.value? {
            SampleValue::U32(milliwatts) => Ok(sample(at, u64::from(milliwatts))),
            SampleValue::U64(milliwatts) => Ok(sample(at, milliwatts)),
            _ => Err(NvmlError::NotSupported),
        }
    }

    fn processes(&self, uuid: &str) -> Result<Vec<u32>, NvmlError> {
        let device = self.device(uuid)?;
        let mut listed = device.running_compute_processes()?;
        // Clients of an MPS server stand in a list of their own, which older boards do not have.
        listed.extend(device.mps_running_compute_processes().unwrap_or_default());
        let mut pids: Vec<u32> = listed.iter().map(|process| process.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    fn uses(&self, uuid: &str, after_us: u64) -> Result<Vec<Use>, NvmlError> {
        match self.device(uuid)?.process_utilization_stats(after_us) {
            Ok(samples) => Ok(samples
                .into_iter()
                .map(|sample| Use { pid: sample.pid, at_us: sample.timestamp, percent: sample.sm_util })
                .collect()),
            // No sample is that new.
            Err(NvmlError::NotFound) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn reload(&mut self) -> Result<(), NvmlError> {
        self.0 = Nvml::init()?;
        Ok(())
    }

    fn wait(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

fn board(device: &Device<'_>) -> Result<Board, NvmlError> {
    let name = device.name()?;
    let usage_meaning = usage_meaning(device.architecture().ok(), &name);
    let mig_slices = match device.mig_mode() {
        Ok(mode) if mode.current == 1 => Some(device.mig_device_count()?),
        _ => None,
    };
    // Numbers of slices that do not exist are answered by an error.
    let slices = (0..mig_slices.unwrap_or(0)).filter_map(|index| device.mig_device_by_index(index).ok());
    Ok(Board {
        uuid: device.uuid()?,
        name,
        // A board of unknown brand is read slowly: late is better than short.
        is_consumer: !matches!(device.brand(), Ok(Brand::Tesla | Brand::Nvidia | Brand::GRID)),
        usage_meaning,
        mig_slices,
        slices: slices.map(|slice| self::slice(&slice)).collect::<Result<_, _>>()?,
    })
}

fn slice(device: &Device<'_>) -> Result<Slice, NvmlError> {
    let attributes = device.attributes()?;
    let compute_slices = match attributes.compute_instance_slice_count {
        0 => attributes.gpu_instance_slice_count,
        count => count,
    };
    Ok(Slice { uuid: device.uuid()?, compute_slices })
}

/// From Ampere on the power call gives the mean of a second, before and on GA100 a short window (Yang, Adamek and
/// Armour, arXiv 2312.02741): the same call changes its meaning between boards.
pub(super) fn usage_meaning(architecture: Option<DeviceArchitecture>, name: &str) -> PowerMeaning {
    use DeviceArchitecture::{Ampere, Kepler, Maxwell, Pascal, Turing, Volta};
    let is_ga100 =
        ["A100", "A800", "A30"].iter().any(|ga100| name.split([' ', '-']).any(|word| word == *ga100));
    match architecture {
        Some(Kepler | Maxwell | Pascal | Volta | Turing) => PowerMeaning::Instant,
        Some(Ampere) if is_ga100 => PowerMeaning::Instant,
        _ => PowerMeaning::Average,
    }
}

fn sample(at: Option<Duration>, milliwatts: u64) -> PowerSample {
    PowerSample { at, power: Watts(milliwatts as f64 / 1e3) }
}
