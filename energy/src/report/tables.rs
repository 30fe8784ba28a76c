//! The tables of the terminal report.

use std::fmt::Write;

use super::figures::{duration, grouped, kilowatt_hours};
use super::group::short;
use super::{Account, ExpertAccount, Report, RunReport, WeekAccount};
use crate::units::MicroJoules;
use crate::window::WindowKind;

const BAR_CELLS: usize = 20;

/// So many experts are shown at either end; all of them are in the JSON.
const NUM_EXPERTS: usize = 3;

/// What the energy was spent on and what drew it, each with a bar for its share of the whole that is named.
pub(super) fn write_parts(out: &mut String, account: &Account, experts: &[ExpertAccount]) {
    if account.energy == MicroJoules(0) {
        return;
    }
    let all = account.energy;
    heading(out, "Spent on");
    for kind in &account.kinds {
        let middle = format!("{:>10} {:>11}", times(kind.windows), duration(kind.duration));
        row(out, &kind.kind, &middle, kind.energy, all);
    }
    let steps = account.kinds.iter().find(|kind| kind.kind == WindowKind::Step.as_str());
    let steps = steps.map_or(MicroJoules(0), |kind| kind.energy);
    if !account.phases.is_empty() {
        heading(out, "Steps by phase");
    }
    for phase in &account.phases {
        row(out, &phase.phase, &format!("{:>22}", duration(phase.duration)), phase.energy, steps);
    }
    write_experts(out, experts);
    if !account.waste.is_empty() {
        heading(out, "In vain, of the steps");
    }
    for waste in &account.waste {
        row(out, &waste.reason, &format!("{:>22}", times(waste.count)), waste.energy, steps);
    }
    heading(out, "Drawn by");
    for domain in &account.domains {
        let how = format!("{} ({})", domain.source, domain.sensor);
        row(out, &domain.domain, &format!("{how:>26}"), domain.energy, all);
    }
}

/// The experts that cost most and least.
fn write_experts(out: &mut String, experts: &[ExpertAccount]) {
    if experts.is_empty() {
        return;
    }
    let mut by_energy: Vec<&ExpertAccount> = experts.iter().collect();
    by_energy.sort_by_key(|expert| (std::cmp::Reverse(expert.energy), expert.layer, expert.expert));
    let whole = experts.iter().map(|expert| expert.energy).sum();
    heading(out, &format!("Experts, {} in all", grouped(experts.len() as u64)));
    let bottom = by_energy.len().saturating_sub(NUM_EXPERTS).max(NUM_EXPERTS.min(by_energy.len()));
    let (top, rest) = by_energy.split_at(NUM_EXPERTS.min(by_energy.len()));
    for expert in top {
        expert_row(out, expert, whole);
    }
    if bottom > top.len() {
        let _ = writeln!(out, "    ...");
    }
    for expert in &rest[bottom - top.len()..] {
        expert_row(out, expert, whole);
    }
}

fn expert_row(out: &mut String, expert: &ExpertAccount, whole: MicroJoules) {
    let name = format!("{}/{}", expert.layer, expert.expert);
    let tokens = format!("{} tokens", grouped(expert.tokens));
    row(out, &name, &format!("{tokens:>22}"), expert.energy, whole);
}

/// All runs beside each other, and their total.
pub(super) fn write_comparison(out: &mut String, report: &Report) {
    let total = report.total();
    let names: Vec<String> = report.runs.iter().map(|run| name(run, report)).collect();
    let width = names.iter().map(|name| name.chars().count() + 1).max().unwrap_or(0).max(28);
    let _ = writeln!(
        out,
        "{:<width$}{:>12}{:>12}{:>11}{:>14}{:>10}{:>12}{:>10}",
        "Run", "status", "steps", "energy", "J per token", "measured", "CO2e", "loss"
    );
    let rows = report
        .runs
        .iter()
        .zip(&names)
        .map(|(run, name)| (name.as_str(), run.status.as_str(), &run.account, run.final_loss));
    for (name, status, account, loss) in rows.chain([("Total", "", &total, None)]) {
        let unknown = || "-".to_owned();
        let per_token = account.joules_per_token().map_or_else(unknown, |joules| format!("{joules:.4}"));
        let loss = loss.map_or_else(unknown, |loss| format!("{loss:.4}"));
        let joules = account.joules();
        let measured = joules.map_or_else(unknown, |_| format!("{:.1} %", account.measured_share() * 100.0));
        let steps = grouped(account.steps);
        let energy = joules.map_or_else(unknown, |joules| joules.to_string());
        let grams = account.emissions().map_or_else(unknown, |grams| grams.to_string());
        let _ = writeln!(
            out,
            "{name:<width$}{status:>12}{steps:>12}{energy:>11}{per_token:>14}{measured:>10}{grams:>12}{loss:>10}"
        );
    }
    let in_vain = [
        ("steps done again after a resume", total.superseded),
        ("runs that ended with an error", total.failed),
        ("runs that were killed and not taken up again", total.aborted),
    ];
    for (what, energy) in in_vain.into_iter().filter(|(_, energy)| *energy > MicroJoules(0)) {
        let share = total.share_percent(energy);
        let _ = writeln!(out, "  of it       {} ({share:.1} %) for {what}", energy.joules());
    }
}

/// The run's id, and the start of its uid where another run has the same id.
pub(super) fn name(run: &RunReport, report: &Report) -> String {
    let shared = report.runs.iter().filter(|other| other.run_id == run.run_id).count() > 1;
    if shared { format!("{} {}", run.run_id, short(&run.uid)) } else { run.run_id.clone() }
}

/// The report by week.
pub(super) fn weeks(report: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<10}{:>12}{:>6}{:>14}{:>18}{:>11}{:>12}{:>12}",
        "Week", "from", "runs", "steps", "tokens", "energy", "kWh", "CO2e"
    );
    let weeks = report.weeks();
    let mut row = |name: &str, from: &str, week: &WeekAccount| {
        let energy = week.energy.map(MicroJoules::joules);
        let [joules, kilowatt_hours, grams] = match energy {
            Some(energy) => [energy.to_string(), kilowatt_hours(energy), week.grams.to_string()],
            None => ["-", "-", "-"].map(str::to_owned),
        };
        let (steps, tokens) = (grouped(week.steps), grouped(week.tokens));
        let _ = writeln!(
            out,
            "{name:<10}{from:>12}{:>6}{steps:>14}{tokens:>18}{joules:>11}{kilowatt_hours:>12}{grams:>12}",
            week.runs
        );
    };
    for week in &weeks {
        row(&week.name(), &week.monday.to_string(), week);
    }
    let total = report.total();
    if let Some(first) = weeks.first() {
        let all = WeekAccount {
            monday: first.monday,
            runs: total.runs,
            steps: total.steps,
            tokens: total.tokens,
            energy: total.joules().map(|_| total.energy),
            grams: total.grams,
        };
        row("Total", "", &all);
    }
    out
}

fn heading(out: &mut String, text: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "\n  {text}");
}

fn row(out: &mut String, name: &str, middle: &str, energy: MicroJoules, whole: MicroJoules) {
    let part = if whole.0 == 0 { 0.0 } else { 100.0 * energy.0 as f64 / whole.0 as f64 };
    let (energy, bar) = (energy.joules(), bar(part));
    let text = format!("    {name:<14}{middle:<22}{energy:>11}{part:>7.1} %  {bar}");
    let _ = writeln!(out, "{}", text.trim_end());
}

fn times(count: u64) -> String {
    format!("{} x", grouped(count))
}

fn bar(percent: f64) -> String {
    const EIGHTHS: [Option<char>; 8] =
        [None, Some('▏'), Some('▎'), Some('▍'), Some('▌'), Some('▋'), Some('▊'), Some('▉')];
    let eighths = (percent.clamp(0.0, 100.0) / 100.0 * (BAR_CELLS * 8) as f64).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    bar.extend(EIGHTHS[eighths % 8]);
    bar
}
