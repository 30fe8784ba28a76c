//! The modelled meter, for machines without counters: CPU time times a power curve, and memory by size.
//!
//! CPU: `W = TDP * f(u) * (CPUs of this process / hardware threads of the machine)`, where `u` is the CPU time of
//! this process over the time its CPUs offered. Memory: the smaller of 0.3725 W/GB (Green Algorithms) and the
//! DIMM count model of CodeCarbon 3, times the same share; the first prices small slices of a host in proportion,
//! the second keeps a large host from absurd sums.
//!
//! Nothing here is measured. Published comparisons find such models off by 20 % on average and up to 40 %.

use std::time::Duration;

use super::{Domain, Meter, MeterError, MeterErrorKind, Provenance, Reading, tdp};
use crate::clock::process_cpu_time;
use crate::units::{MicroJoules, Seconds, Watts};

/// Longest CPU time, of each CPU, by which the kernel's accounts may lag: other threads are charged at the tick.
const ACCOUNTING_LAG: Duration = Duration::from_millis(20);

/// Gives the CPU time, user and system, that this process has used.
pub type ProcessClock = Box<dyn FnMut() -> std::io::Result<Duration> + Send>;

/// Energy from CPU time and a power curve.
pub struct ModelMeter {
    domains: [Domain; 2],
    machine: Machine,
    clock: ProcessClock,
    last: Option<(Duration, Duration)>,
    /// CPU time seen beyond what the span could hold: it belongs to the next one.
    late: Duration,
    cpu_joules: f64,
    ram_joules: f64,
}

/// What the model needs to know of the machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// The processor's name, for the record.
    pub model_name: String,
    /// Hardware threads of the machine.
    pub hardware_threads: usize,
    /// CPUs this process may use.
    pub process_cpus: usize,
    /// Thermal design power of one hardware thread.
    pub watts_per_thread: Watts,
    /// Where that number comes from: `table`, `default`, `setting`.
    pub tdp_origin: &'static str,
    /// Memory of the machine or of the container, in bytes.
    pub memory_bytes: u64,
}

impl ModelMeter {
    /// The model of this machine; `tdp_watts` is the TDP of all its sockets, if the user knows it better.
    ///
    /// # Errors
    /// `Fatal` when the system does not tell the CPU time of the process.
    pub fn open(tdp_watts: Option<f64>) -> Result<Self, MeterError> {
        let mut clock: ProcessClock = Box::new(process_cpu_time);
        clock().map_err(|error| unreadable(&error, MeterErrorKind::Fatal))?;
        Ok(Self::with_clock(Machine::detect(tdp_watts), clock))
    }

    /// A model of any machine with any clock.
    pub fn with_clock(machine: Machine, clock: ProcessClock) -> Self {
        let domain =
            |name: &str| Domain { name: name.into(), sensor: "model", provenance: Provenance::Modelled };
        ModelMeter {
            domains: [domain("cpu"), domain("ram")],
            machine,
            clock,
            last: None,
            late: Duration::ZERO,
            cpu_joules: 0.0,
            ram_joules: 0.0,
        }
    }

    /// The machine that is modelled.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }
}

impl Meter for ModelMeter {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn update_period(&self) -> Duration {
        Duration::ZERO
    }

    fn read(&mut self, now: Duration) -> Result<Reading, MeterError> {
        let busy = (self.clock)().map_err(|error| unreadable(&error, MeterErrorKind::Retry))?;
        if let Some((then, busy_then)) = self.last {
            let span = now.saturating_sub(then);
            let offered = span.saturating_mul(self.machine.process_cpus as u32);
            let wanted = busy.saturating_sub(busy_then) + self.late;
            let used = wanted.min(offered);
            self.late = (wanted - used).min(ACCOUNTING_LAG.saturating_mul(self.machine.process_cpus as u32));
            if !offered.is_zero() {
                let utilisation = used.as_secs_f64() / offered.as_secs_f64();
                self.cpu_joules += (self.machine.cpu_watts(utilisation) * Seconds::from(span)).0;
                self.ram_joules += (self.machine.ram_watts() * Seconds::from(span)).0;
            }
        }
        self.last = Some((now, busy));
        let cumulative = [self.cpu_joules, self.ram_joules].map(|joules| MicroJoules((joules * 1e6) as u64));
        Ok(Reading { cumulative: cumulative.to_vec(), notes: Vec::new() })
    }
}

impl Machine {
    /// This machine, with `tdp_watts` for all its sockets in place of the table.
    pub fn detect(tdp_watts: Option<f64>) -> Self {
        let model_name = cpu_model_name();
        let process_cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let hardware_threads =
            system_value(libc::_SC_NPROCESSORS_ONLN).map_or(process_cpus, |n| n as usize).max(process_cpus);
        let (watts_per_thread, tdp_origin) = match (tdp_watts, tdp::watts_per_thread(&model_name)) {
            (Some(watts), _) => (Watts(watts / hardware_threads as f64), "setting"),
            (None, Some(watts)) => (watts, "table"),
            (None, None) => (tdp::DEFAULT_WATTS_PER_THREAD, "default"),
        };
        Machine {
            model_name,
            hardware_threads,
            process_cpus,
            watts_per_thread,
            tdp_origin,
            memory_bytes: memory_bytes(),
        }
    }

    /// Power of this process's CPUs when it keeps them busy for the share `utilisation` of the time.
    pub fn cpu_watts(&self, utilisation: f64) -> Watts {
        // TDP * CPUs / threads, with the TDP held for each thread.
        Watts(self.watts_per_thread.0 * self.process_cpus as f64 * tdp::power_fraction(utilisation))
    }

    /// Power of this process's share of the memory.
    pub fn ram_watts(&self) -> Watts {
        const GREEN_ALGORITHMS_WATTS_PER_GB: f64 = 0.3725;
        let gigabytes = self.memory_bytes as f64 / f64::from(1u32 << 30);
        let share = self.process_cpus as f64 / self.hardware_threads as f64;
        Watts((gigabytes * GREEN_ALGORITHMS_WATTS_PER_GB).min(dimm_watts(gigabytes).0) * share)
    }

    /// One line for logs: where the model's numbers come from.
    pub fn describe(&self) -> String {
        format!(
            "{}: {} of {} threads at {:.1} W each (TDP from the {}), memory {:.0} GB",
            if self.model_name.is_empty() { "unknown processor" } else { &self.model_name },
            self.process_cpus,
            self.hardware_threads,
            self.watts_per_thread.0,
            self.tdp_origin,
            self.memory_bytes as f64 / f64::from(1u32 << 30),
        )
    }
}

/// The memory model of CodeCarbon 3 on x86: a guess at the number of modules, 5 W for each of the first four and
/// less for each further one, at least 10 W.
fn dimm_watts(gigabytes: f64) -> Watts {
    let modules = match gigabytes {
        gb if gb <= 2.0 => 1,
        gb if gb <= 16.0 => 2,
        gb if gb <= 64.0 => 4,
        gb if gb <= 128.0 => 8,
        gb => {
            let largest = [4.0, 8.0, 16.0, 32.0, 64.0, 128.0].into_iter().rfind(|size| *size <= gb / 8.0);
            ((gb / largest.unwrap_or(4.0)).ceil() as u32).min(32)
        }
    };
    let watts: f64 = (0..modules)
        .map(|module| match module {
            0..4 => 5.0,
            4..8 => 4.5,
            8..16 => 4.0,
            _ => 3.5,
        })
        .sum();
    Watts(watts.max(10.0))
}

fn system_value(name: libc::c_int) -> Option<u64> {
    // SAFETY: `sysconf` takes a plain number and returns one.
    u64::try_from(unsafe { libc::sysconf(name) }).ok()
}

fn memory_bytes() -> u64 {
    let pages = system_value(libc::_SC_PHYS_PAGES).unwrap_or(0);
    let machine = pages * system_value(libc::_SC_PAGESIZE).unwrap_or(0);
    let container = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    container.and_then(|text| text.trim().parse().ok()).map_or(machine, |limit: u64| machine.min(limit))
}

fn cpu_model_name() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':')).map_or(String::new(), |(_, name)| name.trim().to_owned())
}

fn unreadable(error: &std::io::Error, kind: MeterErrorKind) -> MeterError {
    MeterError {
        sensor: "model",
        kind,
        message: format!("the CPU time of this process cannot be read: {error}"),
        remedy: "use energy.meter = \"none\"".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn machine() -> Machine {
        Machine {
            model_name: "Test".into(),
            hardware_threads: 16,
            process_cpus: 4,
            watts_per_thread: Watts(10.0),
            tdp_origin: "setting",
            memory_bytes: 32 << 30,
        }
    }

    fn meter_with_cpu_time() -> (ModelMeter, Arc<AtomicU64>) {
        let busy_ms = Arc::new(AtomicU64::new(0));
        let shown = Arc::clone(&busy_ms);
        let clock = move || Ok(Duration::from_millis(shown.load(Ordering::Relaxed)));
        (ModelMeter::with_clock(machine(), Box::new(clock)), busy_ms)
    }

    #[test]
    fn half_busy_cpus_draw_what_the_curve_says() {
        let (mut meter, busy_ms) = meter_with_cpu_time();
        meter.read(Duration::ZERO).unwrap();
        // 4 CPUs for 2 s offer 8 s; 4 s are used: u = 0.5, f = 0.75, W = 160 * 0.75 * 4/16 = 30, so 60 J.
        busy_ms.store(4000, Ordering::Relaxed);
        let reading = meter.read(Duration::from_secs(2)).unwrap();
        assert_eq!(reading.cumulative[0], MicroJoules(60_000_000));
        // 32 GB * 0.3725 W * 4/16 * 2 s.
        assert_eq!(reading.cumulative[1], MicroJoules(5_960_000));
        // Idle for 1 s: 160 * 0.12 * 4/16 = 4.8 J more.
        let reading = meter.read(Duration::from_secs(3)).unwrap();
        assert_eq!(reading.cumulative[0], MicroJoules(64_800_000));
    }

    #[test]
    fn cpu_time_charged_late_moves_to_the_next_span_and_is_not_lost() {
        let (mut meter, busy_ms) = meter_with_cpu_time();
        meter.read(Duration::ZERO).unwrap();
        // 10 ms of 4 CPUs can hold 40 ms; 44 ms are seen, so 4 ms belong to the next 10 ms: u = 0.1, f = 0.32.
        busy_ms.store(44, Ordering::Relaxed);
        meter.read(Duration::from_millis(10)).unwrap();
        let reading = meter.read(Duration::from_millis(20)).unwrap();
        let expect = 40.0 * 1.02 * 0.01 + 40.0 * 0.32 * 0.01;
        assert!((reading.cumulative[0].joules().0 - expect).abs() < 2e-6, "{reading:?}");
    }

    #[test]
    fn memory_modules_draw_the_published_watts() {
        // Origin: the checks published with the CodeCarbon 3 memory model.
        for (gigabytes, watts) in [(8.0, 10.0), (32.0, 20.0), (64.0, 20.0), (128.0, 38.0), (1024.0, 38.0)] {
            assert_eq!(dimm_watts(gigabytes), Watts(watts), "{gigabytes} GB");
        }
    }

    #[test]
    fn this_machine_can_be_modelled() {
        let mut meter = ModelMeter::open(Some(100.0)).unwrap();
        let machine = meter.machine();
        assert!(machine.process_cpus >= 1 && machine.hardware_threads >= machine.process_cpus);
        assert!(machine.memory_bytes > 0);
        assert!((machine.watts_per_thread.0 * machine.hardware_threads as f64 - 100.0).abs() < 1e-9);
        let first = meter.read(Duration::ZERO).unwrap().cumulative;
        let second = meter.read(Duration::from_secs(1)).unwrap().cumulative;
        assert!(second[0] > first[0] && second[1] > first[1]);
    }
}
