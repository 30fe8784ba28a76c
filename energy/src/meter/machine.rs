//! What the modelled meter needs to know of the machine: its processor, its memory, and this process's share of both.

use super::cgroup;
use super::host::{Host, list};
use super::memory::Memory;
use super::tdp;
use crate::units::Watts;

/// A machine that is modelled.
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
    /// Memory, and the share of it that is charged.
    pub memory: Memory,
}

impl Machine {
    /// This machine, with `tdp_watts` for all its sockets in place of the table.
    pub fn detect(tdp_watts: Option<f64>) -> Self {
        Self::of(&Host::this(), tdp_watts)
    }

    /// The machine of `host`. The numbers of CPUs are always this process's own.
    pub(super) fn of(host: &Host, tdp_watts: Option<f64>) -> Self {
        let model_name = cpu_model_name(host);
        let process_cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let hardware_threads = online_cpus().unwrap_or(process_cpus).max(process_cpus);
        let (watts_per_thread, tdp_origin) = match (tdp_watts, tdp::watts_per_thread(&model_name)) {
            (Some(watts), _) => (Watts(watts / hardware_threads as f64), "setting"),
            (None, Some(watts)) => (watts, "table"),
            (None, None) => (tdp::DEFAULT_WATTS_PER_THREAD, "default"),
        };
        let bytes = memory_bytes(host);
        let share = match cgroup::memory_limit_bytes(host).filter(|&limit| limit < bytes) {
            Some(limit) => limit as f64 / bytes as f64,
            None => process_cpus as f64 / hardware_threads as f64,
        };
        let is_arm = cfg!(any(target_arch = "aarch64", target_arch = "arm"));
        let memory = Memory { bytes, share, is_arm, is_virtual: host.is_virtual() };
        Machine { model_name, hardware_threads, process_cpus, watts_per_thread, tdp_origin, memory }
    }

    /// Power of this process's CPUs when it keeps them busy for the share `utilisation` of the time.
    pub fn cpu_watts(&self, utilisation: f64) -> Watts {
        // TDP * CPUs / threads, with the TDP held for each thread.
        Watts(self.watts_per_thread.0 * self.process_cpus as f64 * tdp::power_fraction(utilisation))
    }

    /// One line for logs: where the model's numbers come from.
    pub fn describe(&self) -> String {
        format!(
            "{}: {} of {} threads at {:.1} W each (TDP from the {}), {:.0} % of {:.0} GB of memory at {:.1} W",
            if self.model_name.is_empty() { "unknown processor" } else { &self.model_name },
            self.process_cpus,
            self.hardware_threads,
            self.watts_per_thread.0,
            self.tdp_origin,
            self.memory.share * 100.0,
            self.memory.gigabytes(),
            self.memory.watts().0,
        )
    }
}

fn online_cpus() -> Option<usize> {
    // SAFETY: `sysconf` takes a plain number and returns one.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).ok()
}

/// Installed memory. The kernel counts what it keeps for itself only in its blocks; without them, what it shows.
fn memory_bytes(host: &Host) -> u64 {
    const BLOCKS: &str = "/sys/devices/system/memory";
    let block_bytes = host.text(&format!("{BLOCKS}/block_size_bytes")).ok();
    let block_bytes =
        block_bytes.and_then(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok());
    let is_block = |name: &str| name.strip_prefix("memory").is_some_and(|n| n.parse::<u32>().is_ok());
    let blocks = list(&host.path(BLOCKS), is_block).map_or(0, |blocks| blocks.len() as u64);
    let installed = block_bytes.map(|bytes| bytes.saturating_mul(blocks)).filter(|&bytes| bytes > 0);
    installed.or_else(|| shown_bytes(host)).unwrap_or(0)
}

fn shown_bytes(host: &Host) -> Option<u64> {
    let text = host.text("/proc/meminfo").ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024))
}

fn cpu_model_name(host: &Host) -> String {
    let cpuinfo = host.text("/proc/cpuinfo").unwrap_or_default();
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':')).map_or(String::new(), |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::host::write;

    const METAL: (&str, &str) =
        ("proc/cpuinfo", "model name\t: AMD EPYC 7763 64-Core Processor\nflags\t: fpu");
    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:       527956708 kB\nMemFree: 1 kB");

    fn machine(files: &[(&str, &str)]) -> Machine {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            write(root.path(), path, text);
        }
        Machine::of(&Host::fake(root.path(), || ()), None)
    }

    #[test]
    fn a_container_on_a_large_host_is_charged_the_memory_it_may_use() {
        let limit = (16u64 << 30).to_string();
        let machine =
            machine(&[METAL, MEMINFO, ("proc/self/cgroup", "0::/"), ("sys/fs/cgroup/memory.max", &limit)]);
        assert_eq!(machine.watts_per_thread, Watts(280.0 / 128.0));
        let expect = (16u64 << 30) as f64 / (527_956_708.0 * 1024.0);
        assert!((machine.memory.share - expect).abs() < 1e-12);
        // 503.5 GB are 16 modules of 32 GB: 70 W, of which 16 GB are 2.2 W. At 3 W for each 8 GB it would be 6 W.
        assert!(machine.memory.watts().0 < 2.3, "{}", machine.describe());
    }

    #[test]
    fn without_a_limit_memory_is_charged_by_the_cpus() {
        let machine = machine(&[METAL, MEMINFO]);
        assert_eq!(machine.memory.share, machine.process_cpus as f64 / machine.hardware_threads as f64);
        assert!(!machine.memory.is_virtual);
    }

    #[test]
    fn installed_memory_is_counted_in_blocks_where_the_kernel_shows_them() {
        let block = |n: u32| (format!("sys/devices/system/memory/memory{n}/state"), "online".to_owned());
        let mut files =
            vec![("sys/devices/system/memory/block_size_bytes".to_owned(), "80000000".to_owned())];
        files.extend((0..4).map(block));
        let mut files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        files.extend([METAL, MEMINFO]);
        assert_eq!(machine(&files).memory.bytes, 8 << 30);
        assert_eq!(machine(&[METAL, MEMINFO]).memory.bytes, 527_956_708 * 1024);
    }
}
