//! The modelled meter, for machines without counters: CPU time times a power curve, and memory by size.
//!
//! CPU: `W = TDP * f(u) * (CPUs of this process / hardware threads of the machine)`, where `u` is the CPU time of
//! this process, or of its control group, over the time its CPUs offered. Memory: see `memory`.
//!
//! Nothing here is measured. Published comparisons find such models off by 20 % on average and up to 40 %.

use std::io;
use std::time::Duration;

use super::cgroup::Cgroup;
use super::host::Host;
use super::machine::Machine;
use super::{Domain, Meter, MeterError, MeterErrorKind, Provenance, Reading};
use crate::clock::process_cpu_time;
use crate::config::{EnergyConfig, ModelScope};
use crate::units::{MicroJoules, Seconds};

/// Longest CPU time, of each CPU, by which the kernel's accounts may lag: other threads are charged at the tick.
const ACCOUNTING_LAG: Duration = Duration::from_millis(20);

/// Gives the CPU time, user and system, that has been used.
pub type CpuClock = Box<dyn FnMut() -> io::Result<Duration> + Send>;

/// Energy from CPU time and a power curve.
pub struct ModelMeter {
    domains: [Domain; 2],
    machine: Machine,
    clock: CpuClock,
    last: Option<(Duration, Duration)>,
    /// CPU time seen beyond what the span could hold: it belongs to the next one.
    late: Duration,
    cpu_joules: f64,
    ram_joules: f64,
}

impl ModelMeter {
    /// The model of `host`, with the processor's TDP and the scope that `config` asks for.
    ///
    /// # Errors
    /// `Fatal` when the system does not tell the CPU time that was asked for.
    pub fn open(host: &Host, config: &EnergyConfig) -> Result<Self, MeterError> {
        let mut clock: CpuClock = match config.model_scope {
            ModelScope::Process => Box::new(process_cpu_time),
            ModelScope::Cgroup => {
                let fatal = |error| unreadable(&error, MeterErrorKind::Fatal);
                let group = Cgroup::of_this_process(host).map_err(fatal)?;
                Box::new(move || group.cpu_time())
            }
        };
        clock().map_err(|error| unreadable(&error, MeterErrorKind::Fatal))?;
        Ok(Self::with_clock(Machine::of(host, config.tdp_watts), clock))
    }

    /// A model of any machine with any clock.
    pub fn with_clock(machine: Machine, clock: CpuClock) -> Self {
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
        // A clock that goes back would count a span twice.
        let now = self.last.map_or(now, |(then, _)| then.max(now));
        if let Some((then, busy_then)) = self.last {
            let span = now.saturating_sub(then);
            let offered = span.saturating_mul(self.machine.process_cpus as u32);
            let wanted = busy.saturating_sub(busy_then) + self.late;
            let used = wanted.min(offered);
            self.late = (wanted - used).min(ACCOUNTING_LAG.saturating_mul(self.machine.process_cpus as u32));
            if !offered.is_zero() {
                let utilisation = used.as_secs_f64() / offered.as_secs_f64();
                self.cpu_joules += (self.machine.cpu_watts(utilisation) * Seconds::from(span)).0;
                self.ram_joules += (self.machine.memory.watts() * Seconds::from(span)).0;
            }
        }
        self.last = Some((now, busy));
        let cumulative = [self.cpu_joules, self.ram_joules].map(|joules| MicroJoules((joules * 1e6) as u64));
        Ok(Reading { cumulative: cumulative.to_vec(), notes: Vec::new() })
    }
}

fn unreadable(error: &io::Error, kind: MeterErrorKind) -> MeterError {
    MeterError {
        sensor: "model",
        kind,
        message: format!("the CPU time cannot be read: {error}"),
        remedy: "use energy.model_scope = \"process\" or energy.meter = \"none\"".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::host::write;
    use crate::meter::memory::Memory;
    use crate::units::Watts;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn machine() -> Machine {
        Machine {
            model_name: "Test".into(),
            hardware_threads: 16,
            process_cpus: 4,
            watts_per_thread: Watts(10.0),
            tdp_origin: "setting",
            memory: Memory { bytes: 32 << 30, share: 0.25, is_arm: false, is_virtual: false },
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
        // 4 modules of 5 W * 4/16 * 2 s.
        assert_eq!(reading.cumulative[1], MicroJoules(10_000_000));
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
    fn a_clock_that_goes_back_counts_no_span_twice() {
        let (mut meter, _) = meter_with_cpu_time();
        let mut ram = |s| meter.read(Duration::from_secs(s)).unwrap().cumulative[1].0;
        assert_eq!(
            [ram(0), ram(4), ram(2), ram(4), ram(5)],
            [0, 20, 20, 20, 25].map(|joules| joules * 1_000_000)
        );
    }

    #[test]
    fn a_container_is_charged_the_cpu_time_of_all_its_processes() {
        let root = tempfile::tempdir().unwrap();
        let stat = |usec: u64| write(root.path(), "sys/fs/cgroup/cpu.stat", &format!("usage_usec {usec}"));
        write(root.path(), "proc/self/cgroup", "0::/");
        write(root.path(), "sys/fs/cgroup/cgroup.controllers", "cpu");
        stat(5_000_000);
        let host = Host::fake(root.path(), || ());
        let config = EnergyConfig {
            model_scope: ModelScope::Cgroup,
            tdp_watts: Some(100.0),
            ..EnergyConfig::default()
        };
        let mut meter = ModelMeter::open(&host, &config).unwrap();
        meter.read(Duration::ZERO).unwrap();
        // Of every CPU half the second: u = 0.5.
        stat(5_000_000 + 500_000 * meter.machine().process_cpus as u64);
        let counted = meter.read(Duration::from_secs(1)).unwrap().cumulative[0].joules().0;
        let expect = meter.machine().cpu_watts(0.5).0;
        assert!((counted - expect).abs() < 1e-5, "{counted} J, expected {expect} J");

        let bare = tempfile::tempdir().unwrap();
        let error = ModelMeter::open(&Host::fake(bare.path(), || ()), &config).err().unwrap();
        assert_eq!(error.kind, MeterErrorKind::Fatal);
        assert!(error.to_string().contains("model_scope"), "{error}");
    }

    #[test]
    fn this_machine_can_be_modelled() {
        let config = EnergyConfig { tdp_watts: Some(100.0), ..EnergyConfig::default() };
        let mut meter = ModelMeter::open(&Host::this(), &config).unwrap();
        let machine = meter.machine();
        assert!(machine.process_cpus >= 1 && machine.hardware_threads >= machine.process_cpus);
        assert!(machine.memory.bytes > 0 && machine.memory.share > 0.0);
        assert!((machine.watts_per_thread.0 * machine.hardware_threads as f64 - 100.0).abs() < 1e-9);
        let first = meter.read(Duration::ZERO).unwrap().cumulative;
        let second = meter.read(Duration::from_secs(1)).unwrap().cumulative;
        assert!(second[0] > first[0] && second[1] > first[1]);
    }
}
