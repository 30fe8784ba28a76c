//! `wattle doctor`: what works on this machine, what does not, and what to do.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use wattle_energy::{carbon, probe};
use wattle_kernels::{DType, cuda, peak, simd_level};

use crate::cli::{exit, print};
use crate::config::Config;
use crate::train::start_threads;

/// Flags of `wattle doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Example: wattle doctor --json")]
pub struct Arguments {
    /// Look at the meters and carbon intensity providers of this configuration, not at those of the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Looks around. Nothing leaves the machine.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let config = match &arguments.config {
        Some(path) => Config::load(path, &[])?.config,
        None => Config::default(),
    };
    start_threads(0)?;
    let threads = rayon::current_num_threads();
    let simd = format!("{:?}", simd_level());
    let precision = if wattle_kernels::bf16_is_fast() { DType::Bf16 } else { DType::F32 };
    let peak_gflops = peak::measure_flops(DType::F32) / 1e9;
    let gpus = cuda::status();
    let meters = probe(&config.energy);
    let intensity = config.carbon.intensity()?;
    let providers = carbon::check(&config.carbon);
    if arguments.json {
        let meters: Vec<_> = meters
            .iter()
            .map(|finding| {
                json!({
                    "meter": finding.meter,
                    "available": finding.available,
                    "detail": finding.detail,
                    "remedy": finding.remedy,
                })
            })
            .collect();
        let findings = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "devices": [{
                "kind": "cpu",
                "threads": threads,
                "simd": simd,
                "peak_gflops_f32": peak_gflops.round(),
                "auto_precision": precision.name(),
            }],
            "cuda": cuda_json(&gpus),
            "meters": meters,
            "carbon": {
                "zone": intensity.zone,
                "grams_per_kwh": intensity.grams_per_kwh,
                "year": intensity.year,
                "source": intensity.source,
                "providers": providers,
            },
        });
        print(&format!("{findings}\n"))?;
        return Ok(exit::DONE);
    }
    let mut text = format!("wattle {}\n", env!("CARGO_PKG_VERSION"));
    let mut line = |label: &str, what: String| text.push_str(&format!("  {label:<9} {what}\n"));
    line("cpu", format!("{threads} threads, {simd}, {peak_gflops:.0} GFLOP/s in f32 (measured)"));
    line("precision", format!("auto means {precision} here"));
    cuda_lines(&gpus, &mut line);
    for finding in meters {
        let mark = if finding.available { "works" } else { "not here" };
        line(finding.meter, format!("{mark}: {}", finding.detail));
        if let Some(remedy) = finding.remedy {
            line("", format!("to do: {remedy}"));
        }
    }
    let year = intensity.year.map_or_else(|| "as configured".to_owned(), |year| format!("in {year}"));
    let (zone, figure) = (&intensity.zone, intensity.grams_per_kwh);
    let role =
        if providers.is_empty() { "; no provider is configured" } else { ", while no provider answers" };
    line("carbon", format!("{zone}: {figure} {year}{role}"));
    for finding in providers {
        let mark = if finding.available { "can be asked" } else { "cannot be asked" };
        line("", format!("{} {mark}: {}", finding.provider, finding.detail));
    }
    print(&text)?;
    Ok(exit::DONE)
}

/// The CUDA libraries and GPUs, as one object.
fn cuda_json(status: &cuda::Status) -> serde_json::Value {
    let libraries: Vec<_> = status
        .libraries
        .iter()
        .map(|library| json!({"name": library.name, "version": library.version, "remedy": library.remedy}))
        .collect();
    let devices: Vec<_> = status
        .devices
        .iter()
        .map(|device| {
            json!({
                "ordinal": device.ordinal,
                "name": device.name,
                "compute_capability": format!("{}.{}", device.compute_capability.0, device.compute_capability.1),
                "memory_bytes": device.memory_bytes,
            })
        })
        .collect();
    json!({
        "libraries": libraries,
        "devices": devices,
        "problem": status.problem,
        "kernel_cache": cuda::module::cache_folder(),
    })
}

/// The same as lines: a label, and what is there.
fn cuda_lines(status: &cuda::Status, line: &mut impl FnMut(&str, String)) {
    for (at, library) in status.libraries.iter().enumerate() {
        let label = if at == 0 { "cuda" } else { "" };
        match (&library.version, library.remedy) {
            (Some(version), _) => line(label, format!("lib{} works: {version}", library.name)),
            (None, remedy) => {
                line(label, format!("lib{} not here", library.name));
                if let Some(remedy) = remedy {
                    line("", format!("to do: {remedy}"));
                }
            }
        }
    }
    for device in &status.devices {
        let (major, minor) = device.compute_capability;
        let gibibytes = device.memory_bytes as f64 / f64::from(1 << 30);
        let what = format!("{}, compute capability {major}.{minor}, {gibibytes:.0} GiB", device.name);
        line(&format!("cuda:{}", device.ordinal), what);
    }
    if let Some(problem) = &status.problem {
        line("", format!("no device: {problem}"));
    }
}
