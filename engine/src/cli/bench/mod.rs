//! `wattle bench`: the speed of full training steps on random tokens, where their time goes (`profile`), and what the
//! machine can do at most (`limits`).

mod limits;
mod profile;

use std::time::Instant;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::json;
use wattle_energy::{EnergyConfig, WindowKind};
use wattle_kernels::limits::Limits;
use wattle_kernels::rng::{Philox, Purpose};
use wattle_kernels::{DType, pool};

use crate::cli::{exit, print};
use crate::data::Batch;
use crate::model::presets::{self, Preset};
use crate::optim::config::OptimizerConfig;
use crate::telemetry::{format, message};
use crate::train::{Learner, flops_per_token, start_threads};
use profile::Profile;

/// Flags of `wattle bench`.
#[derive(Debug, Args)]
#[command(after_help = "Example: wattle bench --preset S --precision f32 --json")]
pub struct Arguments {
    /// The model's shape: S, M, F, G or OLMOE
    #[arg(long, default_value = "S", value_parser = known_preset)]
    preset: Preset,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = BenchDevice::Cpu)]
    device: BenchDevice,
    /// Number format of matrix products and activations
    #[arg(long, value_enum, default_value_t = BenchPrecision::Auto)]
    precision: BenchPrecision,
    /// Steps, of which the first three only warm up
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(4..))]
    steps: u64,
    /// Sequences per step, instead of the preset's
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    batch: Option<u16>,
    /// CPU threads; 0 for all
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Print the time of each phase to stderr
    #[arg(long)]
    phases: bool,
    /// Print the time of each operation and its share of the machine's measured limit
    #[arg(long)]
    profile: bool,
    /// Measure only what the machine can do: multiply-adds and memory bandwidth
    #[arg(long, conflicts_with_all = ["preset", "precision", "steps", "batch", "phases", "profile"])]
    limits: bool,
    /// Print one JSON line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BenchDevice {
    Cpu,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BenchPrecision {
    Auto,
    F32,
    Bf16,
}

const NUM_WARM_UP_STEPS: u64 = 3;

/// Runs the benchmark.
pub fn run(arguments: &Arguments) -> Result<u8> {
    start_threads(arguments.threads)?;
    if arguments.limits {
        let limits = Limits::measure();
        print(&if arguments.json { format!("{}\n", limits::json(&limits)) } else { limits::text(&limits) })?;
        return Ok(exit::DONE);
    }
    let preset = &arguments.preset;
    let compute = match arguments.precision {
        BenchPrecision::F32 => DType::F32,
        BenchPrecision::Bf16 => DType::Bf16,
        BenchPrecision::Auto if wattle_kernels::bf16_is_fast() => DType::Bf16,
        BenchPrecision::Auto => DType::F32,
    };
    let (batch, sequence) = (arguments.batch.map_or(preset.batch, usize::from), preset.sequence_length);
    let optimizer = OptimizerConfig { batch_sequences: batch, ..OptimizerConfig::default() };
    let moe = Some(&preset.moe);
    let mut learner =
        Learner::new(&preset.model, moe, preset.vocab_size, sequence, compute, optimizer, Some(0))?;
    let step_tokens = (batch * sequence) as u64;
    let monitor = wattle_energy::EnergyMonitor::from_config(&EnergyConfig::default())?;

    let mut seconds = Vec::new();
    let mut joules = Some(0.0);
    let mut phases = Vec::new();
    for step in 0..arguments.steps {
        if arguments.profile && step == NUM_WARM_UP_STEPS {
            wattle_kernels::profile::start();
        }
        monitor.close_window(WindowKind::Idle);
        let begin = Instant::now();
        let random = Philox::new(0, Purpose::Synthetic, step);
        let report = learner
            .step(1, step_tokens, 1e-3, |_| random_batch(&random, batch, sequence, preset.vocab_size))?;
        let spent = begin.elapsed().as_secs_f64();
        let energy = monitor.close_window(WindowKind::Step);
        if step >= NUM_WARM_UP_STEPS {
            seconds.push(spent);
            joules = joules.zip(energy.joules).map(|(sum, step)| sum + step.0);
            phases.push(report.phases);
        }
    }
    let profiled = arguments.profile.then(|| {
        let entries = wattle_kernels::profile::stop();
        let limits = Limits::measure();
        (Profile::new(entries, &seconds, &limits), limits)
    });
    if arguments.phases {
        let num_steps = phases.len() as f64;
        for phase in crate::autograd::Phase::ALL {
            let total: f64 = phases.iter().map(|split| split[phase as usize].1.as_secs_f64()).sum();
            message(format_args!("{:>14} {:>9.1} ms", phase.name(), total / num_steps * 1e3));
        }
    }
    let measured_tokens = step_tokens as f64 * seconds.len() as f64;
    let step_seconds = median(&mut seconds);
    let flops = flops_per_token(&preset.model, moe, preset.vocab_size, sequence);
    let tokens_per_second = step_tokens as f64 / step_seconds;
    let peak = wattle_kernels::peak::measure_flops(compute);
    let params = learner.store.num_weights();
    let inactive = preset.model.num_layers
        * (preset.moe.num_experts - preset.moe.top_k)
        * 3
        * preset.model.d_model
        * preset.moe.expert_ffn_size;
    let mut result = json!({
        "engine": "wattle",
        "version": env!("CARGO_PKG_VERSION"),
        "preset": preset.name,
        "device": "cpu",
        "precision": compute.name(),
        "params": params,
        "active_params": params - inactive,
        "tokens_per_s": tokens_per_second.round(),
        "step_ms": (step_seconds * 1e4).round() / 10.0,
        "gflops": (flops * tokens_per_second / 1e8).round() / 10.0,
        "mfu": (flops * tokens_per_second / peak * 1e3).round() / 1e3,
        "peak_memory_bytes": pool::stats().peak_bytes,
        "joules_per_token": joules.map(|joules| joules / measured_tokens),
        "energy_source": monitor.source_label(),
    });
    if let Some((profile, limits)) = &profiled {
        result["limits"] = limits::json(limits);
        result["profile"] = profile.json();
        result["unattributed_ms_per_step"] = json!(profile.unattributed_seconds() * 1e3);
    }
    let mut text = format!("{result}\n");
    if !arguments.json {
        text = format!("preset {} on cpu in {}\n", preset.name, compute.name());
        let mut line = |what: String| text.push_str(&format!("  {what}\n"));
        let speed = format::count(tokens_per_second as u64);
        line(format!("{speed} tokens/s, {:.1} ms a step", step_seconds * 1e3));
        let flops_per_second = flops * tokens_per_second;
        let share = 100.0 * flops_per_second / peak;
        line(format!(
            "{:.1} GFLOP/s, {share:.1} % of the measured {:.0}",
            flops_per_second / 1e9,
            peak / 1e9
        ));
        line(format!("{} at the peak", format::bytes(pool::stats().peak_bytes)));
        if let Some(joules) = joules {
            line(format!("{:.4} J/token ({})", joules / measured_tokens, monitor.source_label()));
        }
        if let Some((profile, limits)) = &profiled {
            text.push_str(&limits::text(limits));
            text.push_str(&profile.text());
        }
    }
    print(&text)?;
    Ok(exit::DONE)
}

fn known_preset(name: &str) -> Result<Preset, String> {
    let known = || format!("expected one of {}", presets::preset_names().collect::<Vec<_>>().join(", "));
    presets::preset(name).ok_or_else(known)
}

fn random_batch(random: &Philox, batch: usize, sequence: usize, vocab_size: usize) -> Batch {
    let token = |position: usize| random.below(position as u64, vocab_size as u64) as i32;
    let rows = |shift: usize| {
        (0..batch * sequence).map(|i| token(i / sequence * (sequence + 1) + i % sequence + shift)).collect()
    };
    Batch { ids: rows(0), targets: rows(1), batch, sequence_length: sequence }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
