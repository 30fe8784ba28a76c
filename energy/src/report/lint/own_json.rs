//! Our own JSON report: the CSV's rules in our units, and the sums that it must keep.

use std::path::Path;

use serde_json::Value;

use super::Finding;
use super::rules::{Row, differs};
use crate::error::{Error, Result};
use crate::units::JOULES_PER_KILOWATT_HOUR;

/// Part by which a sum may differ from its parts: they are printed with all their digits.
const ROUNDING: f64 = 1e-6;

pub(super) fn lint(path: &Path, text: &str) -> Result<Vec<Finding>> {
    let refuse = |reason: String| Error::ReportFile {
        path: path.into(),
        reason,
        remedy: "give the output of `wattle report --format json`, or an emissions.csv",
    };
    let report: Value =
        serde_json::from_str(text).map_err(|error| refuse(format!("it is no JSON: {error}")))?;
    if report["schema"] != "wattle-report/1" {
        return Err(refuse("its key \"schema\" is not \"wattle-report/1\"".into()));
    }
    let Some(runs) = report["runs"].as_array() else {
        return Err(refuse("it has no list \"runs\"".into()));
    };
    let mut findings = Vec::new();
    for (at, run) in runs.iter().enumerate() {
        look_at(&mut findings, path, &format!("runs[{at}]"), run);
    }
    Ok(findings)
}

fn look_at(findings: &mut Vec<Finding>, path: &Path, place: &str, run: &Value) {
    let mut find = |keys: &[&str], reason: String| {
        let values = keys.iter().map(|key| ((*key).to_owned(), run[*key].to_string())).collect();
        findings.push(Finding { file: path.to_owned(), place: place.to_owned(), values, reason });
    };
    let number = |key: &str| run[key].as_f64();
    for (column, reason) in as_row(run) {
        find(&[column], reason);
    }
    let (energy, seconds) = (number("energy_joules"), number("duration_seconds"));
    if let (Some(watts), Some(seconds), Some(joules)) = (number("average_watts"), seconds, energy)
        && differs(watts * seconds, joules, ROUNDING)
    {
        let reason = format!("power times time is {:.6e} J", watts * seconds);
        find(&["average_watts", "duration_seconds", "energy_joules"], reason);
    }
    for part in ["superseded_energy_joules", "failed_energy_joules", "aborted_energy_joules"] {
        if let (Some(part_joules), Some(joules)) = (number(part), energy)
            && part_joules > joules * (1.0 + ROUNDING)
        {
            find(&[part, "energy_joules"], "the part is more than the whole".into());
        }
    }
    for parts in ["domains", "windows"] {
        let parts_joules = run[parts].as_array().map(|parts| sum(parts, "energy_joules"));
        if let (Some(sum), Some(joules)) = (parts_joules, energy)
            && differs(sum, joules, ROUNDING)
        {
            find(&["energy_joules"], format!("its {parts} add up to {sum:.6e} J"));
        }
    }
    building(run, &mut find);
    if let (Some(began), Some(ended), Some(seconds)) =
        (time(run, "started_at"), time(run, "ended_at"), seconds)
        && seconds > ended.duration_since(began).as_secs_f64() + 5.0
    {
        let keys = ["started_at", "ended_at", "duration_seconds"];
        find(&keys, "the windows last longer than the run".into());
    }
}

/// The building's energy is that of the segments times their PUE, once; its grams lie between the segments' prices.
fn building(run: &Value, find: &mut impl FnMut(&[&str], String)) {
    let Some(segments) = run["segments"].as_array() else { return };
    let with_pue = |power: i32| -> f64 {
        let of_segment =
            |segment: &Value| Some(segment["energy_joules"].as_f64()? * segment["pue"].as_f64()?.powi(power));
        segments.iter().filter_map(of_segment).sum()
    };
    if let Some(facility) = run["facility_energy_joules"].as_f64()
        && differs(facility, with_pue(1), ROUNDING)
    {
        let reason = match differs(facility, with_pue(2), ROUNDING) {
            true => format!("the segments' energy times their PUE is {:.6e} J", with_pue(1)),
            false => "the PUE is in it twice".into(),
        };
        find(&["facility_energy_joules", "energy_joules"], reason);
    }
}

/// The rules of a CSV row, over our keys. Its powers are left out: ours are exact, and looked at by themselves.
fn as_row(run: &Value) -> Vec<(&'static str, String)> {
    let kwh = |key: &str| run[key].as_f64().map(|joules| joules / JOULES_PER_KILOWATT_HOUR);
    let of_domains = |starts: &[&str]| {
        let domains = run["domains"].as_array()?;
        let of_it = domains.iter().filter(|domain| {
            domain["domain"].as_str().is_some_and(|name| starts.iter().any(|start| name.starts_with(start)))
        });
        let joules: Vec<f64> = of_it.filter_map(|domain| domain["energy_joules"].as_f64()).collect();
        (!joules.is_empty()).then(|| joules.iter().sum::<f64>() / JOULES_PER_KILOWATT_HOUR)
    };
    let get = |name: &str| match name {
        "duration" => run["duration_seconds"].as_f64(),
        "energy_consumed" => kwh("facility_energy_joules"),
        "emissions" => run["emissions_grams_co2e"].as_f64().map(|grams| grams / 1000.0),
        "water_consumed" => run["water_liters"].as_f64(),
        "gpu_energy" => of_domains(&["gpu"]),
        "ram_energy" => of_domains(&["ram"]),
        _ => None,
    };
    let country = run["segments"][0]["carbon_intensity"]["zone"].as_str().unwrap_or_default();
    let key = |column: &str| match column {
        "duration" => "duration_seconds",
        "emissions" => "emissions_grams_co2e",
        "water_consumed" => "water_liters",
        "gpu_energy" | "ram_energy" => "domains",
        _ => "facility_energy_joules",
    };
    let found = Row { get: &get, country }.contradictions();
    found.into_iter().filter_map(|(columns, reason)| Some((key(columns.first()?), reason))).collect()
}

fn sum(parts: &[Value], key: &str) -> f64 {
    parts.iter().filter_map(|part| part[key].as_f64()).sum()
}

fn time(run: &Value, key: &str) -> Option<jiff::Timestamp> {
    run[key].as_str()?.parse().ok()
}
