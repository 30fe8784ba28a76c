//! `wattle report`: energy and carbon of one or many runs, from their ledgers; and a linter for such reports.

mod complete;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use wattle_energy::report::{Details, FunctionalUnit, Overrides, Report, lint};
use wattle_energy::{CarbonConfig, Error, carbon};

use crate::cli::print;
use crate::telemetry::message;
use crate::{exit, files};

/// Flags of `wattle report`.
#[derive(Debug, Args)]
#[command(after_help = "Example: wattle report runs/quickstart-* --location FRA --format json")]
pub struct Arguments {
    /// Run directories or ledger files; with --lint, reports
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// How to write the report
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Sum all runs by ISO week (text, json, csv)
    #[arg(long, value_enum, value_name = "PERIOD")]
    by: Option<Period>,
    /// Write to this file instead of stdout; CSV is appended to a file that is there
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Price the energy at another place: an ISO 3166 code such as FRA, or World
    #[arg(long, value_name = "ISO3", value_parser = location)]
    location: Option<String>,
    /// Power usage effectiveness of the building
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = pue)]
    pue: Option<f64>,
    /// Before reporting, ask the first provider of [[carbon.providers]] for the carbon intensities that the ledgers
    /// lack, and enter them there
    #[arg(long)]
    complete: bool,
    /// With --complete: the configuration that names the provider, in place of each run's own
    #[arg(long, value_name = "FILE", requires = "complete")]
    config: Option<PathBuf>,
    /// Before reporting, copy all runs into this ledger, which is made when it is not there; none counts twice
    #[arg(long, value_name = "FILE")]
    merge: Option<PathBuf>,
    /// Functional unit of the software carbon intensity
    #[arg(long, value_enum, default_value_t = Unit::Token)]
    per: Unit,
    /// For model cards and BoAmps: what kind of training it was
    #[arg(long, value_enum)]
    training_type: Option<TrainingType>,
    /// For model cards and BoAmps: the hardware by name, such as "8 x NVIDIA H100"
    #[arg(long, value_name = "TEXT")]
    hardware: Option<String>,
    /// Look for what cannot be true in emissions.csv files of CodeCarbon and in JSON reports; exits 1 when it finds some
    #[arg(
        long,
        conflicts_with_all = ["by", "location", "pue", "complete", "merge", "per", "training_type", "hardware"]
    )]
    lint: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    /// CodeCarbon's emissions.csv, 38 columns
    Csv,
    /// For a README or a pull request
    Markdown,
    /// Boavizta's BoAmps JSON
    Boamps,
    /// One page with plots for a browser, which fetches nothing
    Html,
    /// `co2_eq_emissions` for a Hugging Face model card
    ModelCard,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Period {
    Week,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Unit {
    Token,
    Step,
    Run,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TrainingType {
    PreTraining,
    FineTuning,
}

/// Writes the report.
pub fn run(arguments: &Arguments) -> Result<u8> {
    if arguments.lint {
        return look_for_what_cannot_be(arguments);
    }
    if arguments.complete {
        complete::complete(&arguments.runs, arguments.config.as_deref())?;
    }
    if let Some(into) = &arguments.merge {
        wattle_energy::merge(into, &arguments.runs)?;
        message(format_args!("merged into {}: {}", into.display(), counted(arguments.runs.len(), "ledger")));
    }
    let overrides = Overrides { location: arguments.location.clone(), pue: arguments.pue };
    let mut report = Report::from_ledgers(&arguments.runs, &overrides)?;
    report.per = match arguments.per {
        Unit::Token => FunctionalUnit::Token,
        Unit::Step => FunctionalUnit::Step,
        Unit::Run => FunctionalUnit::Run,
    };
    for notice in &report.notices {
        message(format_args!("note: {notice}"));
    }
    let by_week = arguments.by.is_some();
    let text = match arguments.format {
        Format::Text if by_week => report.to_text_by_week(),
        Format::Text => report.to_text(),
        Format::Json if by_week => format!("{:#}", report.to_json_by_week()),
        Format::Json => format!("{:#}", report.to_json()),
        Format::Csv if by_week => report.to_csv_by_week()?,
        Format::Csv => csv(&report, arguments.output.as_deref())?,
        Format::Html => report.to_html()?,
        Format::Markdown => report.to_markdown(),
        Format::Boamps => format!("{:#}", report.to_boamps(&details(arguments))),
        Format::ModelCard => report.to_model_card(&details(arguments))?,
    };
    write(text, arguments.output.as_deref())?;
    Ok(exit::DONE)
}

fn details(arguments: &Arguments) -> Details {
    let training_type = arguments.training_type.map(|kind| match kind {
        TrainingType::PreTraining => "pre-training",
        TrainingType::FineTuning => "fine-tuning",
    });
    Details { training_type: training_type.map(str::to_owned), hardware: arguments.hardware.clone() }
}

/// A number of things.
fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// A file of its own, or the file that is there with the rows at its end.
fn csv(report: &Report, output: Option<&Path>) -> Result<String> {
    match output.filter(|path| path.is_file()) {
        Some(path) => Ok(report.appended_to_csv(path, &files::read_to_string(path)?)?),
        None => Ok(report.to_csv()?),
    }
}

fn look_for_what_cannot_be(arguments: &Arguments) -> Result<u8> {
    let mut findings = Vec::new();
    for file in &arguments.runs {
        findings.extend(lint::lint(file)?);
    }
    let text = match arguments.format {
        Format::Json => format!("{:#}", serde_json::to_value(&findings)?),
        _ => findings.iter().map(|finding| format!("{finding}\n")).collect(),
    };
    write(text, arguments.output.as_deref())?;
    if findings.is_empty() {
        message(format_args!("nothing was found that cannot be true"));
        return Ok(exit::DONE);
    }
    message(format_args!("{} found that cannot be true", findings.len()));
    Ok(exit::CHECK_FAILED)
}

fn write(mut text: String, output: Option<&Path>) -> Result<()> {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    match output {
        Some(path) => files::write_atomically(path, text.as_bytes())
            .with_context(|| format!("cannot write the report to {}", path.display())),
        None => print(&text),
    }
}

/// A place whose carbon intensity is known.
pub(super) fn location(text: &str) -> Result<String, String> {
    match carbon::lookup(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(Error::Location { nearest, .. }) => {
            Err(format!("no carbon intensity is known for it; nearest known: {}", nearest.join(", ")))
        }
        Err(error) => Err(error.to_string()),
    }
}

pub(super) fn pue(text: &str) -> Result<f64, String> {
    let pue = text.parse().map_err(|_| "expected a number such as 1.2".to_owned())?;
    match (CarbonConfig { pue, ..CarbonConfig::default() }).validate().first() {
        Some(problem) => Err(problem.message.clone()),
        None => Ok(pue),
    }
}
