//! The report for a terminal: plain text, aligned, with small bars.

use std::fmt::Write;

use super::figures::{count_of, duration, grouped, kilowatt_hours, liters, small_grams, to_second};
use super::tables;
use super::{Account, FunctionalUnit, Report, RunReport, SegmentReport};
use crate::ledger::{Role, RunStatus};
use crate::units::{Joules, MicroJoules};

pub(super) fn render(report: &Report) -> String {
    let mut out = String::new();
    for run in &report.runs {
        write_run(&mut out, run, report.per);
        out.push('\n');
    }
    if report.runs.len() > 1 {
        tables::write_comparison(&mut out, report);
    }
    if report.runs.is_empty() {
        out.push_str("No run is in the given ledgers.\n");
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn write_run(out: &mut String, run: &RunReport, per: FunctionalUnit) {
    let crashed = run.segments.iter().filter(|segment| segment.status == RunStatus::Crashed).count();
    line(out, "Run", format!("{} ({})", run.run_id, run.name));
    let end = match (run.ended_at, run.alive_at) {
        (Some(at), _) => format!(" to {}", to_second(at)),
        (None, Some(at)) => format!(", last heard of at {}", to_second(at)),
        (None, None) => String::new(),
    };
    line(out, "Status", format!("{}, {}{end}", run.status.as_str(), to_second(run.started_at)));
    let mut ranks: Vec<u32> = run.segments.iter().map(|segment| segment.rank).collect();
    ranks.dedup();
    if run.segments.len() > 1 || crashed > 0 {
        let of_ranks = if ranks.len() > 1 { format!(" of {} ranks", ranks.len()) } else { String::new() };
        line(out, "Segments", format!("{}{of_ranks}, of which {crashed} crashed", run.segments.len()));
    }
    write_account(out, &run.account, per);
    if let Some(loss) = run.final_loss {
        line(out, "Final loss", format!("{loss:.4} nats"));
    }
    write_intensities(out, run);
    tables::write_parts(out, &run.account, &run.experts);
}

fn write_account(out: &mut String, account: &Account, per: FunctionalUnit) {
    line(out, "Duration", duration(account.duration));
    line(out, "Trained", format!("{} steps, {} tokens", grouped(account.steps), grouped(account.tokens)));
    let Some(energy) = account.joules() else {
        line(out, "Energy", "unknown: no sensor was read".into());
        return;
    };
    line(out, "Energy", format!("{energy} ({} kWh)", kilowatt_hours(energy)));
    write_range(out, account, energy);
    let lost = [
        ("  superseded", account.superseded, "steps done again after a resume"),
        ("  failed", account.failed, "the run ended with an error"),
        ("  aborted", account.aborted, "the run was killed and not taken up again"),
    ];
    for (name, part, reason) in lost.into_iter().filter(|(_, part, _)| *part > MicroJoules(0)) {
        let share = account.share_percent(part);
        line(out, name, format!("{} ({share:.1} %), {reason}", part.joules()));
    }
    let measured = account.measured_share() * 100.0;
    line(out, "  measured", format!("{measured:.1} %, modelled {:.1} %", 100.0 - measured));
    if account.incomplete_windows > 0 {
        let count = account.incomplete_windows;
        line(out, "  gaps", format!("{count} windows in which a sensor could not be read"));
    }
    if let Some(bound) = account.window_error_bound {
        line(out, "  a window", format!("±{bound} at most, by interpolation; cancels in sums"));
    }
    if let Some(power) = account.average_power() {
        line(out, "Mean power", power.to_string());
    }
    if let Some(joules) = account.joules_per_token() {
        line(out, "Per token", format!("{joules:.4} J"));
    }
    if (account.facility.0 - energy.0).abs() > energy.0 * 1e-9 {
        line(out, "Building", format!("{} with its PUE", account.facility));
    }
    write_emissions(out, account, per);
    write_sensors(out, account);
}

fn write_range(out: &mut String, account: &Account, energy: Joules) {
    let mut errors: Vec<String> = Vec::new();
    for domain in &account.domains {
        let error = domain.gain_error().map_or("error unknown".into(), |e| format!("±{} %", e.percent));
        let text = format!("{} {error}", domain.sensor);
        if !errors.contains(&text) {
            errors.push(text);
        }
    }
    let errors = errors.join(", ");
    match account.range() {
        Some(range) => {
            let (low, high) = range.joules(energy);
            line(out, "  range", format!("{low} to {high}: {errors}"));
        }
        None => line(out, "  range", format!("unknown: {errors}")),
    }
}

fn write_emissions(out: &mut String, account: &Account, per: FunctionalUnit) {
    match account.emissions() {
        Some(grams) => {
            line(out, "Emissions", format!("{grams} CO2e"));
            if let Some((low, high)) = account.range().map(|range| range.grams(grams)) {
                line(out, "  range", format!("{low} to {high}, the error of the grid's figure left out"));
            }
        }
        None => line(out, "Emissions", "not summed: figures of different kinds priced them".into()),
    }
    match account.embodied {
        Some(grams) => line(out, "Embodied", format!("{grams} CO2e for the time reserved")),
        None => line(out, "Embodied", "not declared".into()),
    }
    match account.sci(per) {
        Some(sci) => {
            let embodied = if sci.embodied.is_some() { "embodied included" } else { "embodied not declared" };
            let grams = small_grams(sci.grams.0);
            line(out, "SCI", format!("{grams} CO2e per {} (ISO/IEC 21031), {embodied}", per.as_str()));
        }
        None => line(out, "SCI", format!("none per {}", per.as_str())),
    }
    match account.water_liters {
        Some(water) => line(out, "Water", liters(water)),
        None => line(out, "Water", "not declared".into()),
    }
}

fn write_sensors(out: &mut String, account: &Account) {
    let sensors = &account.sensors;
    let untold = match sensors.untold {
        0 => String::new(),
        count => format!("; {} told nothing", count_of(count, "segment")),
    };
    let (resets, spikes) = (count_of(sensors.resets, "reset"), count_of(sensors.spikes, "spike"));
    line(out, "Sensors", format!("{resets}, {spikes}, {} without a reading{untold}", duration(sensors.gap)));
    if sensors.overhead.0 > 0.0 && account.duration.0 > 0.0 {
        let share = 100.0 * sensors.overhead.0 / account.duration.0;
        line(
            out,
            "Counting",
            format!("{} of CPU time, {share:.3} % of one core", duration(sensors.overhead)),
        );
    }
}

fn write_intensities(out: &mut String, run: &RunReport) {
    let mut shown = Vec::new();
    for segment in &run.segments {
        let intensity = &segment.intensity;
        let year = intensity.year.map_or(String::new(), |year| format!(" {year}"));
        let text = format!(
            "{} in {}{year}, {}{}, PUE {}",
            intensity.grams_per_kwh,
            intensity.zone,
            intensity.basis.as_str().replace('_', " "),
            if intensity.accounting.as_str() == "market" { ", market-based" } else { "" },
            segment.pue
        );
        if !shown.contains(&text) {
            line(out, "Intensity", text.clone());
            line(out, "  source", intensity.source.to_string());
            shown.push(text);
        }
    }
    // Where another place is asked for, what the run learned of its own priced nothing.
    let as_learned = |segment: &&SegmentReport| {
        segment.intensities.first().is_some_and(|first| first.intensity == segment.intensity)
    };
    let segments = run.segments.iter().filter(as_learned);
    let later = segments.flat_map(|segment| segment.intensities.iter().skip(1));
    let (priced, beside): (Vec<_>, Vec<_>) = later.partition(|record| record.role == Role::Priced);
    let figures = || priced.iter().map(|record| record.intensity.grams_per_kwh.0);
    if let Some(mean) = run.account.mean_intensity().filter(|_| !priced.is_empty()) {
        let low = figures().fold(f64::INFINITY, f64::min);
        let high = figures().fold(f64::NEG_INFINITY, f64::max);
        let estimated = run.account.share_percent(run.account.priced_by_estimates);
        line(
            out,
            "  over time",
            format!(
                "{mean:.1} g/kWh in the mean; {} from {low} to {high}, {estimated:.1} % of the energy by estimates",
                count_of(priced.len() as u64, "later figure")
            ),
        );
    }
    let mut shown = Vec::new();
    for record in beside {
        let key = (&record.intensity.zone, record.intensity.basis, &record.intensity.source);
        if !shown.contains(&key) {
            let (zone, basis, source) = key;
            let basis = basis.as_str().replace('_', " ");
            let grams = record.intensity.grams_per_kwh;
            line(out, "  beside", format!("{grams} in {zone}, {basis}, {source}: shown, never summed"));
            shown.push(key);
        }
    }
}

fn line(out: &mut String, name: &str, value: String) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{name:<14}{value}");
}
