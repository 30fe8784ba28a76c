//! `wattle report --complete`: asks a provider afterwards for the carbon intensities that ledgers lack.

use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use wattle_energy::carbon::Period;
use wattle_energy::{Error, LEDGER_FILE_NAME, ProviderConfig};

use super::counted;
use crate::config::Config;
use crate::telemetry::message;
use crate::train::RunDirectory;

/// Completes the ledger of each run, with the provider of `config` or else of the run's own configuration.
pub(super) fn complete(runs: &[impl AsRef<Path>], config: Option<&Path>) -> Result<()> {
    let provider = config.map(provider_of).transpose()?;
    for run in runs.iter().map(AsRef::as_ref) {
        let directory = directory_of(run);
        let provider = match &provider {
            Some(provider) => provider.clone(),
            None if directory.config().is_file() => provider_of(&directory.config())?,
            None => {
                let config = directory.config();
                let message = format!("is unknown: there is no {}; give --config FILE", config.display());
                return Err(missing(message).into());
            }
        };
        // A process that starts after this moment begins a segment after it, which is then left alone.
        let now = Timestamp::now();
        let unwritten_at = directory.is_idle().then_some(now);
        let completed = wattle_energy::complete(run, &provider, unwritten_at)
            .with_context(|| format!("cannot complete {}; what was learned before is kept", run.display()))?;
        if completed.num_entered > 0 {
            let (number, kind) = (completed.num_entered, provider.kind.as_str());
            message(format_args!("{}: carbon intensities learned from {kind}: {number}", run.display()));
        }
        let note = |what: String| message(format_args!("note: {}: {what}", run.display()));
        if completed.num_in_progress > 0 {
            let segments = counted(completed.num_in_progress, "segment");
            note(format!(
                "{segments} without an end may still be written: complete it when the run has ended"
            ));
        }
        if let Some(times) = describe(&completed.without) {
            note(format!(
                "the provider has no carbon intensity {times}: the figure known before holds there"
            ));
        }
        if let Some(times) = describe(&completed.estimated) {
            note(format!(
                "the provider has only estimates {times}: completing it later may bring better ones"
            ));
        }
    }
    Ok(())
}

/// The run directory of a run, or of its ledger file.
fn directory_of(run: &Path) -> RunDirectory {
    let is_ledger = run.file_name().is_some_and(|name| name == LEDGER_FILE_NAME) && !run.is_dir();
    RunDirectory::at(if is_ledger { run.parent().unwrap_or(run) } else { run })
}

/// The first provider of a configuration.
fn provider_of(config: &Path) -> Result<ProviderConfig> {
    let loaded = Config::load(config, &[])?;
    let first = loaded.config.carbon.providers.into_iter().next();
    Ok(first.ok_or_else(|| {
        missing(format!(
            "is empty in {}: there is nobody to ask; give --config FILE with a [[carbon.providers]]",
            config.display()
        ))
    })?)
}

fn missing(message: String) -> Error {
    Error::Setting { key: "carbon.providers".into(), message }
}

/// Some times in a few words; `None` without any.
fn describe(times: &[Period]) -> Option<String> {
    let (first, last) = (times.first()?, times.last()?);
    let shown = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let spans = if times.len() > 1 { format!(" ({} spans)", times.len()) } else { String::new() };
    Some(format!("from {} to {}{spans}", shown(first.from), shown(last.until)))
}
