//! The command line: flags are read here, the work is done in the rooms below.
//!
//! Data goes to stdout, messages and progress to stderr.

mod bench;
mod config;
mod doctor;
mod eval;
pub(crate) mod exit;
mod export;
mod generate;
mod import;
mod inspect;
mod logits;
mod manual;
mod plan;
mod report;
mod train;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::telemetry::message;

/// Trains sparse mixture-of-experts transformers and counts every joule.
#[derive(Debug, Parser)]
#[command(name = "wattle", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model; prints the run directory last
    Train(train::Arguments),
    /// Measure a model's loss on held-out text
    Eval(eval::Arguments),
    /// Continue a prompt
    Generate(generate::Arguments),
    /// Write the logits of given token ids, for parity checks
    Logits(logits::Arguments),
    /// Report the energy and carbon of one or many runs
    Report(report::Arguments),
    /// Write a model for Hugging Face transformers
    Export(export::Arguments),
    /// Read a model of Hugging Face transformers into a run directory, to go on training it
    Import(import::Arguments),
    /// Say what a run will cost before it starts: time, memory, energy, carbon
    Plan(Box<plan::Arguments>),
    /// Measure training speed on random tokens
    Bench(Box<bench::Arguments>),
    /// Show routing, expert use, phases and loss of a run
    Inspect(inspect::Arguments),
    /// Say what works on this machine, what does not, and what to do
    Doctor(doctor::Arguments),
    /// Show a configuration with the origin of each value, or the schema
    Config(config::Arguments),
    /// Print a shell completion script
    Completions(manual::CompletionArguments),
    /// Print the manual page
    Man(manual::PageArguments),
}

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are not errors; clap prints each where it belongs.
            let code = if error.use_stderr() { exit::USAGE } else { exit::DONE };
            return match error.print() {
                Ok(()) => ExitCode::from(code),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(code),
                Err(_) => ExitCode::from(exit::INPUT_OUTPUT),
            };
        }
    };
    let result = match cli.command {
        Command::Train(arguments) => train::run(&arguments),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Logits(arguments) => logits::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Import(arguments) => import::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Config(arguments) => config::run(&arguments),
        Command::Completions(arguments) => manual::completions(&arguments),
        Command::Man(arguments) => manual::page(&arguments),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if exit::is_closed_pipe(&error) {
                return ExitCode::from(exit::DONE);
            }
            message(format_args!("error: {}", exit::describe(&error)));
            ExitCode::from(exit::code_of(&error))
        }
    }
}

/// Writes to stdout. `print!` would panic where the reader has gone away or the disk is full; here the first is no
/// error in [`main`], and the second is one.
fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
}
