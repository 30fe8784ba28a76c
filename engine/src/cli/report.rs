//! `wattle report`: energy and carbon of one or many runs, from their ledgers.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use wattle_energy::report::{Overrides, Report};
use wattle_energy::{CarbonConfig, Error, carbon};

use crate::cli::{exit, print};
use crate::files;

/// Flags of `wattle report`.
#[derive(Debug, Args)]
#[command(after_help = "Example: wattle report runs/quickstart-* --location FRA --format json")]
pub struct Arguments {
    /// Run directories
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// How to write the report
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Write to this file instead of stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Price the energy at another place: an ISO 3166 code such as FRA, or World
    #[arg(long, value_name = "ISO3", value_parser = location)]
    location: Option<String>,
    /// Power usage effectiveness of the building
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = pue)]
    pue: Option<f64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
    Html,
}

/// Writes the report.
pub fn run(arguments: &Arguments) -> Result<u8> {
    let overrides = Overrides { location: arguments.location.clone(), pue: arguments.pue };
    let ledgers: Vec<PathBuf> = arguments.runs.iter().map(|run| run.join("ledger.sqlite")).collect();
    let report = Report::from_ledgers(&ledgers, &overrides)?;
    let mut text = match arguments.format {
        Format::Text => report.to_text(),
        Format::Json => format!("{:#}", report.to_json()),
        Format::Html => report.to_html()?,
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    match &arguments.output {
        Some(path) => files::write_atomically(path, text.as_bytes())
            .with_context(|| format!("cannot write the report to {}", path.display()))?,
        None => print(&text)?,
    }
    Ok(exit::DONE)
}

/// A place whose carbon intensity is known.
fn location(text: &str) -> Result<String, String> {
    match carbon::lookup(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(Error::Location { nearest, .. }) => {
            Err(format!("no carbon intensity is known for it; nearest known: {}", nearest.join(", ")))
        }
        Err(error) => Err(error.to_string()),
    }
}

fn pue(text: &str) -> Result<f64, String> {
    let pue = text.parse().map_err(|_| "expected a number such as 1.2".to_owned())?;
    match (CarbonConfig { pue, ..CarbonConfig::default() }).validate().first() {
        Some(problem) => Err(problem.message.clone()),
        None => Ok(pue),
    }
}
