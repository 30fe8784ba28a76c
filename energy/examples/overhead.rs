//! What measuring costs: `cargo run --release -p wattle-energy --example overhead`.
//!
//! All CPUs are kept busy while windows of 50 ms are closed and entered into a ledger, as a training loop does.
//! Where other threads want the CPUs the mean is many times the median: calls are stretched by preemption, which a
//! timed section without them meets less often. Both are shown; a budget is kept only when the mean keeps it.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wattle_energy::{
    CarbonConfig, EnergyConfig, EnergyMonitor, Ledger, RunInfo, RunStatus, WindowKind, WindowTags,
};

const WINDOW: Duration = Duration::from_millis(50);
const WINDOWS: u64 = 200;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let carbon = CarbonConfig::default();
    let mut ledger = Ledger::open(
        &directory.path().join(wattle_energy::LEDGER_FILE_NAME),
        &RunInfo::new("overhead", carbon.intensity()?),
    )?;
    let monitor = EnergyMonitor::from_config(&EnergyConfig::default())?;
    let busy = AtomicBool::new(true);
    let mut costs = Vec::new();
    std::thread::scope(|scope| -> wattle_energy::Result<()> {
        for _ in 1..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while busy.load(Ordering::Relaxed) {
                    spin(Duration::from_millis(1));
                }
            });
        }
        for step in 1..=WINDOWS {
            spin(WINDOW);
            let start = Instant::now();
            let window = monitor.close_window(WindowKind::Step);
            let closed = start.elapsed();
            ledger.record(&window, WindowTags { step: Some(step), tokens: 1, loss: None })?;
            costs.push((start.elapsed(), closed));
        }
        busy.store(false, Ordering::Relaxed);
        Ok(())
    })?;
    let source = monitor.source_label().to_owned();
    let mut totals = monitor.finish();
    ledger.record(&totals.remainder(), WindowTags::default())?;
    totals.overhead.ledger_cpu = ledger.finish(RunStatus::Completed, Some(&totals))?;

    costs.sort();
    let (median, closing) = costs[costs.len() / 2];
    let mean = costs.iter().map(|(cost, _)| *cost).sum::<Duration>() / WINDOWS as u32;
    let share = |cost: Duration| 100.0 * cost.as_secs_f64() / WINDOW.as_secs_f64();
    println!("source              {source}");
    println!("close and record    median {median:.1?} (close {closing:.1?}), mean {mean:.1?}");
    println!("CPU time of close   {:.1?} a window", totals.overhead.closing_cpu / WINDOWS as u32);
    let interval_ms = EnergyConfig::default().interval_ms;
    println!(
        "CPU time of sampler {:.1?} a window, {:.3} % of one core at one sample in {interval_ms} ms",
        totals.overhead.sampler_cpu / WINDOWS as u32,
        100.0 * totals.overhead.sampler_cpu.as_secs_f64() / totals.duration.0
    );
    println!(
        "CPU time of ledger  {:.1?} a window, its writer thread included",
        totals.overhead.ledger_cpu / WINDOWS as u32
    );
    println!("on the caller       median {:.3} %, mean {:.3} % of {WINDOW:?}", share(median), share(mean));
    println!("all CPU time        {:.3} % of the run", 100.0 * totals.overhead_share());
    Ok(())
}

fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        black_box((0..1000u64).sum::<u64>());
    }
}
