//! `wattle plan`: what a run will cost before it starts.

mod history;
mod place;
mod run;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Map, Value};
use wattle_energy::Error;
use wattle_energy::planner::{Case, Hardware, hardware};

use crate::cli::{exit, print, report};
use crate::config::Config;

/// Flags of `wattle plan`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: wattle plan configs/quickstart.toml --hardware H100 --chips 8 --location FRA"
)]
pub struct Arguments {
    /// A run's configuration
    #[arg(required_unless_present = "file")]
    config: Option<PathBuf>,
    /// A published run instead, described by its own figures
    #[arg(long, value_name = "CASE.toml", conflicts_with_all = ["config", "sets", "hardware", "chips", "chip_watts", "location", "pue"])]
    file: Option<PathBuf>,
    /// Override a key of the configuration; can be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// The chips it runs on, such as H100, A100, TPUv4 or "EPYC 9654"; this machine's processor when absent
    #[arg(long, value_name = "NAME", value_parser = known_hardware)]
    hardware: Option<&'static Hardware>,
    /// How many of them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    chips: u32,
    /// Mean power of one chip with its share of the computer, in watts, instead of what is known of it
    #[arg(long, value_name = "W", allow_negative_numbers = true, value_parser = watts)]
    chip_watts: Option<f64>,
    /// Where the electricity comes from: an ISO 3166 code such as FRA, or World
    #[arg(long, value_name = "ISO3", value_parser = report::location)]
    location: Option<String>,
    /// Power usage effectiveness of the building
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = report::pue)]
    pue: Option<f64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints the plan.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let (object, text) = match (&arguments.file, &arguments.config) {
        (Some(file), _) => {
            let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            case(Case::parse(file, &bytes)?)
        }
        (None, Some(config)) => {
            let resolved = Config::load(config, &arguments.sets)?;
            let plan = run::Plan::new(&resolved.config, arguments)?;
            (plan.to_json(), plan.to_text())
        }
        // clap asks for one of them.
        (None, None) => return Ok(exit::USAGE),
    };
    match arguments.json {
        true => print(&format!("{}\n", Value::Object(object)))?,
        false => print(&text)?,
    }
    Ok(exit::DONE)
}

/// A published run, for programs and for people.
fn case(case: Case) -> (Map<String, Value>, String) {
    let mut object = Map::new();
    object.insert("name".into(), case.name.clone().into());
    object.insert("active_params".into(), case.active_params.into());
    object.insert("total_params".into(), case.total_params.into());
    object.insert("tokens".into(), case.tokens.into());
    let estimate = case.inputs.estimate();
    object.extend(estimate.to_json());
    let title = case.name.map_or(String::new(), |name| format!("{name}\n"));
    (object, title + &estimate.to_text())
}

fn known_hardware(name: &str) -> Result<&'static Hardware, String> {
    hardware::find(name).map_err(|error| match error {
        Error::Hardware { nearest, .. } => {
            format!("no such hardware is known; nearest known: {}", nearest.join(", "))
        }
        error => error.to_string(),
    })
}

fn watts(text: &str) -> Result<f64, String> {
    let expected = || "expected watts above 0 and at most 100000, such as 700".to_owned();
    let watts: f64 = text.parse().map_err(|_| expected())?;
    if watts > 0.0 && watts <= 1e5 { Ok(watts) } else { Err(expected()) }
}
