//! `wattle doctor`: what works on this machine, what does not, and what to do.

use anyhow::Result;
use clap::Args;
use serde_json::json;
use wattle_energy::{EnergyConfig, probe};
use wattle_kernels::{DType, peak, simd_level};

use crate::cli::exit;
use crate::train::start_threads;

/// Flags of `wattle doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Example: wattle doctor --json")]
pub struct Arguments {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Looks around.
pub fn run(arguments: &Arguments) -> Result<u8> {
    start_threads(0)?;
    let threads = rayon::current_num_threads();
    let simd = format!("{:?}", simd_level());
    let precision = if wattle_kernels::bf16_is_fast() { DType::Bf16 } else { DType::F32 };
    let peak_gflops = peak::measure_flops(DType::F32) / 1e9;
    let meters = probe(&EnergyConfig::default());
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
        println!(
            "{}",
            json!({
                "version": env!("CARGO_PKG_VERSION"),
                "devices": [{
                    "kind": "cpu",
                    "threads": threads,
                    "simd": simd,
                    "peak_gflops_f32": peak_gflops.round(),
                    "auto_precision": precision.name(),
                }],
                "meters": meters,
            })
        );
        return Ok(exit::DONE);
    }
    println!("wattle {}", env!("CARGO_PKG_VERSION"));
    println!("  cpu       {threads} threads, {simd}, {peak_gflops:.0} GFLOP/s in f32 (measured)");
    println!("  precision auto means {precision} here");
    for finding in meters {
        let mark = if finding.available { "works" } else { "not here" };
        println!("  {:<9} {mark}: {}", finding.meter, finding.detail);
        if let Some(remedy) = finding.remedy {
            println!("            to do: {remedy}");
        }
    }
    Ok(exit::DONE)
}
