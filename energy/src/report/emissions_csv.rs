//! `emissions.csv` in the layout of CodeCarbon 3.3, one row a run, so that its readers read ours.
//!
//! Its meaning is kept, also where ours differs: energies are multiplied by the PUE and powers are not; water is WUE
//! times the multiplied energy, though WUE is defined for the computers' own. Every field is written in every row,
//! empty when unknown: a missing one would shift those after it. Times are in UTC, for a ledger knows no time zone.
//!
//! Source of the layouts: codecarbon/output_methods/emissions_data.py (mlco2/codecarbon, MIT).

use std::path::Path;

use csv::{ReaderBuilder, StringRecord, Terminator, WriterBuilder};

use super::{Account, Report, RunReport};
use crate::carbon;
use crate::error::{Error, Result};
use crate::meter::Provenance;
use crate::units::{JOULES_PER_KILOWATT_HOUR, MicroJoules};

/// The columns of CodeCarbon 3.3, in its order.
pub(super) const COLUMNS: [&str; 38] = [
    "timestamp",
    "project_name",
    "run_id",
    "experiment_id",
    "duration",
    "emissions",
    "emissions_rate",
    "cpu_power",
    "gpu_power",
    "ram_power",
    "cpu_energy",
    "gpu_energy",
    "ram_energy",
    "energy_consumed",
    "water_consumed",
    "country_name",
    "country_iso_code",
    "region",
    "cloud_provider",
    "cloud_region",
    "os",
    "python_version",
    "codecarbon_version",
    "cpu_count",
    "cpu_model",
    "gpu_count",
    "gpu_model",
    "longitude",
    "latitude",
    "ram_total_size",
    "tracking_mode",
    "cpu_utilization_percent",
    "gpu_utilization_percent",
    "ram_utilization_percent",
    "ram_used_gb",
    "on_cloud",
    "pue",
    "wue",
];

/// The columns of CodeCarbon in 2021 and 2022.
const COLUMNS_2021: [&str; 12] = [
    "timestamp",
    "experiment_id",
    "project_name",
    "duration",
    "emissions",
    "energy_consumed",
    "country_name",
    "country_iso_code",
    "region",
    "on_cloud",
    "cloud_provider",
    "cloud_region",
];

/// What CodeCarbon 2 had not yet.
const NEW_IN_3: [&str; 7] = [
    "experiment_id",
    "water_consumed",
    "cpu_utilization_percent",
    "gpu_utilization_percent",
    "ram_utilization_percent",
    "ram_used_gb",
    "wue",
];

/// What a file of tasks has not; it has `task_name` instead.
const NOT_OF_TASKS: [&str; 3] = ["experiment_id", "pue", "wue"];

/// Which of CodeCarbon's files a header belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Version 3.3: 38 columns.
    Version3,
    /// Version 2: 31 columns.
    Version2,
    /// 2021 and 2022: 12 columns.
    Of2021,
    /// The tasks of one run: 36 columns.
    Tasks,
}

impl Layout {
    /// That of a header, in whatever order its columns are.
    pub(super) fn of(header: &StringRecord) -> Option<Layout> {
        let mut names: Vec<&str> = header.iter().collect();
        names.sort_unstable();
        [Layout::Version3, Layout::Version2, Layout::Of2021, Layout::Tasks].into_iter().find(|layout| {
            let mut columns = layout.columns();
            columns.sort_unstable();
            columns == names
        })
    }

    fn columns(self) -> Vec<&'static str> {
        let without = |missing: &[&str]| COLUMNS.into_iter().filter(|name| !missing.contains(name)).collect();
        match self {
            Layout::Version3 => COLUMNS.into(),
            Layout::Version2 => without(&NEW_IN_3),
            Layout::Of2021 => COLUMNS_2021.into(),
            Layout::Tasks => [&["task_name"][..], &without(&NOT_OF_TASKS)].concat(),
        }
    }
}

impl Report {
    /// A file of its own in CodeCarbon's layout.
    ///
    /// # Errors
    /// When a row cannot be put into words.
    pub fn to_csv(&self) -> Result<String> {
        let header = StringRecord::from(&COLUMNS[..]);
        let mut text = lines(&[header.iter().map(str::to_owned).collect()], Terminator::Any(b'\n'))?;
        text += &self.rows_by(&header, Terminator::Any(b'\n'))?;
        Ok(text)
    }

    /// What `existing`, the text of the file at `path`, becomes with this report's rows at its end. Its columns may be
    /// those of any version, in any order.
    ///
    /// # Errors
    /// When its header is none of CodeCarbon's, is that of a file of tasks, or a row of it is broken.
    pub fn appended_to_csv(&self, path: &Path, existing: &str) -> Result<String> {
        let text = existing.strip_prefix('\u{feff}').unwrap_or(existing);
        if text.trim().is_empty() {
            return self.to_csv();
        }
        let refuse = |reason: String, remedy| Error::ReportFile { path: path.into(), reason, remedy };
        let mut reader = ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
        let header = reader.headers().map_err(|error| refuse(error.to_string(), GIVE_ANOTHER))?.clone();
        match Layout::of(&header) {
            Some(Layout::Tasks) => {
                return Err(refuse("it holds the tasks of one run, not runs".into(), GIVE_ANOTHER));
            }
            Some(_) => {}
            None => {
                let reason = format!(
                    "its {} columns are not those of CodeCarbon's emissions.csv (12, 31 or 38 columns)",
                    header.len()
                );
                return Err(refuse(reason, GIVE_ANOTHER));
            }
        }
        for (row, record) in reader.records().enumerate() {
            let record = record.map_err(|error| refuse(error.to_string(), MEND))?;
            if record.len() != header.len() {
                let reason = format!("row {} has {} fields of {}", row + 2, record.len(), header.len());
                return Err(refuse(reason, MEND));
            }
        }
        let terminator = if text.contains("\r\n") { Terminator::CRLF } else { Terminator::Any(b'\n') };
        let mut appended = existing.to_owned();
        if !existing.ends_with('\n') {
            appended.push_str(if terminator_is_crlf(terminator) { "\r\n" } else { "\n" });
        }
        appended += &self.rows_by(&header, terminator)?;
        Ok(appended)
    }

    fn rows_by(&self, header: &StringRecord, terminator: Terminator) -> Result<String> {
        let rows = self.runs.iter().map(|run| header.iter().map(|name| value(run, name)).collect());
        lines(&rows.collect::<Vec<_>>(), terminator)
    }

    /// The report by week as a table of its own: ISO weeks, their first days, and sums with the unit in the name.
    ///
    /// # Errors
    /// When a row cannot be put into words.
    pub fn to_csv_by_week(&self) -> Result<String> {
        let header = ["week", "monday", "runs", "steps", "tokens", "energy_kwh", "emissions_grams_co2e"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        for week in self.weeks() {
            let energy = week.energy.map(|energy| energy.joules().kilowatt_hours().to_string());
            let grams = week.energy.map(|_| week.grams.0.to_string());
            rows.push(vec![
                week.name(),
                week.monday.to_string(),
                week.runs.to_string(),
                week.steps.to_string(),
                week.tokens.to_string(),
                energy.unwrap_or_default(),
                grams.unwrap_or_default(),
            ]);
        }
        lines(&rows, Terminator::Any(b'\n'))
    }
}

const GIVE_ANOTHER: &str = "give another file, or one that does not exist yet";
const MEND: &str = "mend or remove that row first; nothing was written";

fn terminator_is_crlf(terminator: Terminator) -> bool {
    matches!(terminator, Terminator::CRLF)
}

fn lines(rows: &[Vec<String>], terminator: Terminator) -> Result<String> {
    let mut writer = WriterBuilder::new().terminator(terminator).from_writer(Vec::new());
    let failure = |reason: String| Error::ReportFile {
        path: "emissions.csv".into(),
        reason,
        remedy: "report this bug",
    };
    for row in rows {
        writer.write_record(row).map_err(|error| failure(error.to_string()))?;
    }
    let bytes = writer.into_inner().map_err(|error| failure(error.to_string()))?;
    String::from_utf8(bytes).map_err(|error| failure(error.to_string()))
}

/// The field of a run in a column; empty when the ledger does not know.
fn value(run: &RunReport, column: &str) -> String {
    let account = &run.account;
    let seconds = account.duration.0;
    let pue = pue(account);
    let number = |number: Option<f64>| number.map(|number| number.to_string()).unwrap_or_default();
    let watts = |hardware| number(of(account, hardware).filter(|_| seconds > 0.0).map(|j| j / seconds));
    let kwh = |hardware| number(of(account, hardware).map(|j| j / JOULES_PER_KILOWATT_HOUR * pue));
    let kilograms = account.emissions().map(|grams| grams.0 / 1000.0);
    let zone = run.segments.first().map(|segment| segment.intensity.zone.as_str()).unwrap_or_default();
    let country = carbon::country_name(zone);
    match column {
        "timestamp" => {
            let at = run.ended_at.or(run.alive_at).unwrap_or(run.started_at);
            at.strftime("%Y-%m-%dT%H:%M:%S").to_string()
        }
        "project_name" => run.name.clone(),
        "run_id" => run.run_id.clone(),
        "experiment_id" => run.uid.clone(),
        "duration" => seconds.to_string(),
        "emissions" => number(kilograms),
        "emissions_rate" => number(kilograms.filter(|_| seconds > 0.0).map(|kg| kg / seconds)),
        "cpu_power" => watts(Hardware::Cpu),
        "gpu_power" => watts(Hardware::Gpu),
        "ram_power" => watts(Hardware::Ram),
        "cpu_energy" => kwh(Hardware::Cpu),
        "gpu_energy" => kwh(Hardware::Gpu),
        "ram_energy" => kwh(Hardware::Ram),
        "energy_consumed" => number(account.joules().map(|_| account.facility.kilowatt_hours())),
        "water_consumed" => number(account.joules().and(account.water_liters).map(|liters| liters * pue)),
        "country_name" => country.unwrap_or_default().to_owned(),
        "country_iso_code" => country.map(|_| zone).unwrap_or_default().to_owned(),
        "os" => std::env::consts::OS.to_owned(),
        "codecarbon_version" => format!("wattle-{}", env!("CARGO_PKG_VERSION")),
        "gpu_count" => match num_gpus(run) {
            0 => String::new(),
            count => count.to_string(),
        },
        "tracking_mode" => tracking_mode(account).to_owned(),
        "pue" => pue.to_string(),
        "wue" => {
            let kilowatt_hours = account.energy.joules().kilowatt_hours();
            number(
                account.water_liters.filter(|_| kilowatt_hours > 0.0).map(|liters| liters / kilowatt_hours),
            )
        }
        _ => String::new(),
    }
}

/// The PUE over all of a run's energy.
fn pue(account: &Account) -> f64 {
    let at_the_computer = account.energy.joules().0;
    if at_the_computer > 0.0 { account.facility.0 / at_the_computer } else { 1.0 }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Hardware {
    Cpu,
    Gpu,
    Ram,
}

impl Hardware {
    /// What draws the energy of a domain; `None` for a whole node.
    pub(super) fn of_domain(domain: &str) -> Option<Hardware> {
        let starts = |names: &[&str]| names.iter().any(|name| domain.starts_with(name));
        match domain {
            _ if starts(&["gpu"]) => Some(Hardware::Gpu),
            _ if starts(&["dram", "ram"]) => Some(Hardware::Ram),
            _ if starts(&["package", "cpu", "core", "uncore"]) => Some(Hardware::Cpu),
            _ => None,
        }
    }
}

/// Joules at the computer; `None` when no such domain was read.
fn of(account: &Account, hardware: Hardware) -> Option<f64> {
    let of_it = || account.domains.iter().filter(|part| Hardware::of_domain(&part.domain) == Some(hardware));
    of_it().next()?;
    Some(of_it().map(|part| part.energy).sum::<MicroJoules>().joules().0)
}

/// GPUs that were read, over all hosts.
pub(super) fn num_gpus(run: &RunReport) -> usize {
    num_domains(run, Hardware::Gpu)
}

/// Domains of a kind of hardware, each domain of each host once.
pub(super) fn num_domains(run: &RunReport, hardware: Hardware) -> usize {
    let mut names: Vec<&str> = run
        .account
        .domains
        .iter()
        .map(|part| part.domain.as_str())
        .filter(|domain| Hardware::of_domain(domain) == Some(hardware))
        .collect();
    names.sort_unstable();
    names.dedup();
    let mut hosts: Vec<&str> = run.segments.iter().map(|segment| segment.host.as_str()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    // Domains are summed over hosts by name: the same name on two hosts may be two devices or none, so more hosts
    // than one leave the number unknown.
    if hosts.len() > 1 { 0 } else { names.len() }
}

/// The modelled meter counts the process, all others the machine.
fn tracking_mode(account: &Account) -> &'static str {
    match account.domains.iter().all(|part| part.source == Provenance::Modelled) {
        true if account.domains.is_empty() => "",
        true => "process",
        false => "machine",
    }
}
