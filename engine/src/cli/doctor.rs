//! `wattle doctor`: what works on this machine, what does not, and what to do.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use wattle_energy::{carbon, probe};
use wattle_kernels::{DType, peak, simd_level};

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
