//! The report for a terminal: plain text, aligned, with small bars.

use std::fmt::Write;

use jiff::Timestamp;

use super::{Account, Report, RunReport};
use crate::ledger::RunStatus;
use crate::units::{Joules, MicroJoules, Seconds};

const BAR_CELLS: usize = 20;

pub(super) fn render(report: &Report) -> String {
    let mut out = String::new();
    for run in &report.runs {
        write_run(&mut out, run);
        out.push('\n');
    }
    if report.runs.len() > 1 {
        write_comparison(&mut out, report);
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn write_run(out: &mut String, run: &RunReport) {
    let crashed = run.segments.iter().filter(|segment| segment.status == RunStatus::Crashed).count();
    line(out, "Run", format!("{} ({})", run.run_id, run.name));
    let end = run.ended_at.map_or(String::new(), |at| format!(" to {}", to_second(at)));
    line(out, "Status", format!("{}, {}{end}", run.status.as_str(), to_second(run.started_at)));
    if run.segments.len() > 1 || crashed > 0 {
        line(out, "Segments", format!("{}, of which {crashed} crashed", run.segments.len()));
    }
    write_account(out, &run.account);
    if let Some(loss) = run.final_loss {
        line(out, "Final loss", format!("{loss:.4} nats"));
    }
    write_intensities(out, run);
    write_parts(out, &run.account);
}

fn write_account(out: &mut String, account: &Account) {
    line(out, "Duration", duration(account.duration));
    line(out, "Trained", format!("{} steps, {} tokens", grouped(account.steps), grouped(account.tokens)));
    let Some(energy) = account.joules() else {
        line(out, "Energy", "unknown: no sensor was read".into());
        return;
    };
    line(out, "Energy", format!("{energy} ({} kWh)", kilowatt_hours(energy)));
    if account.superseded > MicroJoules(0) {
        let part = share(account.superseded, account.energy);
        let lost = account.superseded.joules();
        line(out, "  superseded", format!("{lost} ({part:.1} %), steps done again after a resume"));
    }
    let measured = account.measured_share() * 100.0;
    line(out, "  measured", format!("{measured:.1} %, modelled {:.1} %", 100.0 - measured));
    if account.incomplete_windows > 0 {
        let count = account.incomplete_windows;
        line(out, "  gaps", format!("{count} windows in which a sensor could not be read"));
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
    line(out, "Emissions", format!("{} CO2e", account.grams));
}

fn write_intensities(out: &mut String, run: &RunReport) {
    let mut shown = Vec::new();
    for segment in &run.segments {
        let intensity = &segment.intensity;
        let year = intensity.year.map_or(String::new(), |year| format!(" {year}"));
        let text = format!(
            "{} in {}{year}, {}, PUE {}",
            intensity.grams_per_kwh,
            intensity.zone,
            intensity.basis.as_str().replace('_', " "),
            segment.pue
        );
        if !shown.contains(&text) {
            line(out, "Intensity", text.clone());
            line(out, "  source", intensity.source.to_string());
            shown.push(text);
        }
    }
}

fn write_parts(out: &mut String, account: &Account) {
    if account.energy == MicroJoules(0) {
        return;
    }
    out.push_str("\n  Spent on\n");
    for kind in &account.kinds {
        let part = share(kind.energy, account.energy);
        let windows = format!("{} x", grouped(kind.windows));
        let time = duration(kind.duration);
        let energy = kind.energy.joules();
        let bar = bar(part);
        let _ = writeln!(out, "    {:<14}{windows:>10}{time:>12}{energy:>11}{part:>7.1} %  {bar}", kind.kind);
    }
    out.push_str("\n  Drawn by\n");
    for domain in &account.domains {
        let part = share(domain.energy, account.energy);
        let how = format!("{} ({})", domain.source, domain.sensor);
        let energy = domain.energy.joules();
        let bar = bar(part);
        let _ = writeln!(out, "    {:<14}{how:>26}{energy:>11}{part:>7.1} %  {bar}", domain.domain);
    }
}

fn write_comparison(out: &mut String, report: &Report) {
    let total = report.total();
    let _ = writeln!(
        out,
        "{:<28}{:>12}{:>10}{:>11}{:>14}{:>10}{:>12}{:>10}",
        "Run", "status", "steps", "energy", "J per token", "measured", "CO2e", "loss"
    );
    let rows = report
        .runs
        .iter()
        .map(|run| (run.run_id.as_str(), run.status.as_str(), &run.account, run.final_loss));
    for (name, status, account, loss) in rows.chain([("Total", "", &total, None)]) {
        let per_token = account.joules_per_token().map_or("-".into(), |joules| format!("{joules:.4}"));
        let loss = loss.map_or("-".into(), |loss| format!("{loss:.4}"));
        let measured = format!("{:.1} %", account.measured_share() * 100.0);
        let steps = grouped(account.steps);
        let energy = account.joules().map_or("-".into(), |joules| joules.to_string());
        let grams = account.joules().map_or("-".into(), |_| account.grams.to_string());
        let _ = writeln!(
            out,
            "{name:<28}{status:>12}{steps:>10}{energy:>11}{per_token:>14}{measured:>10}{grams:>12}{loss:>10}"
        );
    }
}

fn line(out: &mut String, name: &str, value: String) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{name:<14}{value}");
}

fn share(part: MicroJoules, whole: MicroJoules) -> f64 {
    if whole.0 == 0 { 0.0 } else { 100.0 * part.0 as f64 / whole.0 as f64 }
}

fn bar(percent: f64) -> String {
    const EIGHTHS: [Option<char>; 8] =
        [None, Some('▏'), Some('▎'), Some('▍'), Some('▌'), Some('▋'), Some('▊'), Some('▉')];
    let eighths = (percent / 100.0 * (BAR_CELLS * 8) as f64).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    bar.extend(EIGHTHS[eighths % 8]);
    bar
}

pub(super) fn kilowatt_hours(energy: Joules) -> String {
    let kilowatt_hours = energy.kilowatt_hours();
    if kilowatt_hours < 0.001 { format!("{kilowatt_hours:.2e}") } else { format!("{kilowatt_hours:.3}") }
}

/// `1 d 02:03:04`, or `12.3 s` below a minute.
pub(super) fn duration(time: Seconds) -> String {
    if time.0 < 60.0 {
        return format!("{:.2} s", time.0);
    }
    let whole = time.0.round() as u64;
    let (days, hours, minutes, seconds) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    let clock = format!("{hours:02}:{minutes:02}:{seconds:02}");
    if days > 0 { format!("{days} d {clock}") } else { clock }
}

/// Thousands apart: `1 234 567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// A time in RFC 3339, to the second.
pub(super) fn to_second(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
