//! NVML: the total energy counter of NVIDIA GPUs, in millijoules since the driver was loaded (Volta and later).
//!
//! Only the GPUs this process may use (`CUDA_VISIBLE_DEVICES`) are counted. A counter that falls was reset by a
//! driver reload; it never wraps. Read too often, the counter of consumer boards falls short (95 % at 0.5 ms,
//! 13 % at 100 ms, 1.6 % at 1 s on an RTX 4090: Dauner), so those are read once a second; data-centre boards
//! refresh it every 20 to 100 ms (Alumet's documentation) and are read five times a second.

use std::time::Duration;

use nvml_wrapper::enum_wrappers::device::Brand;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::counter::CounterTracker;
use super::{Domain, Meter, MeterError, MeterErrorKind, Note, Plausible, Provenance, Reading};
use crate::units::Watts;

const DATA_CENTRE_PERIOD: Duration = Duration::from_millis(200);
const CONSUMER_PERIOD: Duration = Duration::from_secs(1);

/// Twice the draw of the largest boards sold in 2026, and a counter that may be a second late.
const BOARD: Plausible = Plausible { max_watts: Watts(3000.0), update_slack: Duration::from_secs(1) };

/// Energy counters of the visible GPUs.
#[derive(Debug)]
pub struct NvmlMeter {
    nvml: Nvml,
    domains: Vec<Domain>,
    gpus: Vec<Gpu>,
    update_period: Duration,
}

#[derive(Debug)]
struct Gpu {
    index: u32,
    tracker: CounterTracker,
}

impl NvmlMeter {
    /// Loads the driver's library and opens the counters of the GPUs named by `CUDA_VISIBLE_DEVICES`.
    ///
    /// # Errors
    /// `Gone` when there is no driver or no visible GPU; `Fatal` when a GPU has no counter.
    pub fn open() -> Result<Self, MeterError> {
        let nvml = Nvml::init().map_err(|error| classify("NVML", &error))?;
        let count = nvml.device_count().map_err(|error| classify("device count", &error))?;
        let uuids = (0..count)
            .map(|index| nvml.device_by_index(index)?.uuid())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| classify("device list", &error))?;
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let indices = visible_gpus(visible.as_deref(), &uuids)?;
        if indices.is_empty() {
            return Err(absent("no visible GPU".into()));
        }
        let mut meter =
            NvmlMeter { nvml, domains: Vec::new(), gpus: Vec::new(), update_period: DATA_CENTRE_PERIOD };
        for index in indices {
            let period = {
                let device = meter.device(index)?;
                microjoules(&device, index)?;
                period_of(&device)
            };
            meter.update_period = meter.update_period.max(period);
            meter.gpus.push(Gpu { index, tracker: CounterTracker::new(None, BOARD) });
            meter.domains.push(Domain {
                name: format!("gpu-{index}").into(),
                sensor: "nvml",
                provenance: Provenance::MeasuredCounter,
            });
        }
        Ok(meter)
    }

    fn device(&self, index: u32) -> Result<Device<'_>, MeterError> {
        self.nvml.device_by_index(index).map_err(|error| classify(&format!("gpu-{index}"), &error))
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
        let raw = self
            .gpus
            .iter()
            .map(|gpu| microjoules(&self.device(gpu.index)?, gpu.index))
            .collect::<Result<Vec<u64>, _>>()?;
        let mut reading = Reading::default();
        for (domain, (gpu, raw)) in self.gpus.iter_mut().zip(raw).enumerate() {
            if let Some((event, span)) = gpu.tracker.advance(now, raw) {
                reading.notes.push(Note { domain, event, span });
            }
            reading.cumulative.push(gpu.tracker.cumulative());
        }
        Ok(reading)
    }
}

fn microjoules(device: &Device<'_>, index: u32) -> Result<u64, MeterError> {
    let millijoules = device
        .total_energy_consumption()
        .map_err(|error| classify(&format!("energy counter of gpu-{index}"), &error))?;
    Ok(millijoules.saturating_mul(1000))
}

/// A board of unknown brand is read slowly: late is better than short.
fn period_of(device: &Device<'_>) -> Duration {
    match device.brand() {
        Ok(Brand::Tesla | Brand::Nvidia | Brand::GRID) => DATA_CENTRE_PERIOD,
        _ => CONSUMER_PERIOD,
    }
}

/// NVML indices of the GPUs in `CUDA_VISIBLE_DEVICES`: indices, UUIDs or their beginnings. CUDA stops at the first
/// entry it does not know, and so does this.
fn visible_gpus(variable: Option<&str>, uuids: &[String]) -> Result<Vec<u32>, MeterError> {
    let all = 0..uuids.len() as u32;
    let Some(list) = variable else { return Ok(all.collect()) };
    let mut visible = Vec::new();
    for entry in list.split(',').map(str::trim) {
        if entry.starts_with("MIG-") {
            return Err(MeterError {
                sensor: "nvml",
                kind: MeterErrorKind::Fatal,
                message: format!(
                    "CUDA_VISIBLE_DEVICES names the slice {entry}, and NVML counts whole boards only"
                ),
                remedy: "use energy.meter = \"rapl\" or \"model\"".into(),
            });
        }
        let index = match entry.parse::<u32>() {
            Ok(index) => Some(index).filter(|index| all.contains(index)),
            Err(_) if entry.starts_with("GPU-") => {
                uuids.iter().position(|uuid| uuid.starts_with(entry)).map(|index| index as u32)
            }
            Err(_) => None,
        };
        match index {
            Some(index) if !visible.contains(&index) => visible.push(index),
            _ => break,
        }
    }
    Ok(visible)
}

fn classify(what: &str, error: &NvmlError) -> MeterError {
    let message = format!("{what}: {error}");
    match error {
        NvmlError::LibloadingError(_)
        | NvmlError::LibraryNotFound
        | NvmlError::DriverNotLoaded
        | NvmlError::NotFound => absent(message),
        NvmlError::GpuLost | NvmlError::ResetRequired => MeterError {
            sensor: "nvml",
            kind: MeterErrorKind::Gone,
            message,
            remedy: "the GPU needs a reset or the machine a reboot (see `dmesg`)".into(),
        },
        NvmlError::NotSupported | NvmlError::NoPermission | NvmlError::LibRmVersionMismatch => MeterError {
            sensor: "nvml",
            kind: MeterErrorKind::Fatal,
            message,
            remedy: "the counter needs Volta or later, a matching driver and access to the device; \
                     otherwise use energy.meter = \"rapl\" or \"model\""
                .into(),
        },
        _ => MeterError {
            sensor: "nvml",
            kind: MeterErrorKind::Retry,
            message,
            remedy: "the span is recorded as a gap until the counter can be read again".into(),
        },
    }
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
mod tests {
    use super::*;

    fn uuids() -> Vec<String> {
        ["GPU-11aa", "GPU-22bb", "GPU-33cc"].map(String::from).to_vec()
    }

    #[test]
    fn only_the_gpus_cuda_may_use_are_counted() {
        for (variable, expect) in [
            (None, vec![0, 1, 2]),
            (Some(""), vec![]),
            (Some("1"), vec![1]),
            (Some("2, 0"), vec![2, 0]),
            (Some("GPU-22"), vec![1]),
            (Some("0,9,1"), vec![0]),
            (Some("-1"), vec![]),
            (Some("NoDevFiles"), vec![]),
        ] {
            assert_eq!(visible_gpus(variable, &uuids()).unwrap(), expect, "{variable:?}");
        }
    }

    #[test]
    fn a_slice_of_a_gpu_is_refused_rather_than_charged_with_the_whole_board() {
        let error = visible_gpus(Some("MIG-77dd"), &uuids()).unwrap_err();
        assert_eq!(error.kind, MeterErrorKind::Fatal);
        assert!(error.to_string().contains("MIG-77dd"));
    }

    #[test]
    fn a_missing_driver_is_gone_and_a_hiccup_is_worth_a_retry() {
        assert_eq!(classify("NVML", &NvmlError::LibraryNotFound).kind, MeterErrorKind::Gone);
        assert_eq!(classify("NVML", &NvmlError::NotSupported).kind, MeterErrorKind::Fatal);
        assert_eq!(classify("NVML", &NvmlError::Timeout).kind, MeterErrorKind::Retry);
    }
}
