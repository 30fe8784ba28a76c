//! The report as markdown, for a README or a pull request.

use std::fmt::Write;

use super::figures::{duration, grouped, kilowatt_hours, liters, small_grams};
use super::tables::name;
use super::{Account, Report};
use crate::units::Grams;

impl Report {
    /// For a README or a pull request.
    pub fn to_markdown(&self) -> String {
        let mut out = String::from("### Energy and carbon\n\n");
        let total = self.total();
        row(
            &mut out,
            &["Run", "Status", "Steps", "Tokens", "Energy", "J per token", "Measured", "CO2e", "Loss"],
        );
        out.push_str("|---|---|---:|---:|---:|---:|---:|---:|---:|\n");
        for run in &self.runs {
            let loss = run.final_loss.map_or_else(unknown, |loss| format!("{loss:.4}"));
            account_row(&mut out, &name(run, self), run.status.as_str(), &run.account, loss);
        }
        if self.runs.len() > 1 {
            account_row(&mut out, "**Total**", "", &total, String::new());
        }
        out.push('\n');
        self.write_facts(&mut out, &total);
        for notice in &self.notices {
            bullet(&mut out, "Note", notice.clone());
        }
        out
    }

    /// What has to be known to judge the numbers.
    fn write_facts(&self, out: &mut String, total: &Account) {
        bullet(out, "Time", duration(total.duration));
        if let (Some(joules), Some(range)) = (total.joules(), total.range()) {
            let (low, high) = range.joules(joules);
            let text = format!("{} kWh, {low} to {high} with the sensors' errors", kilowatt_hours(joules));
            bullet(out, "Energy", text);
        }
        if total.joules().is_some() {
            bullet(out, "Building", format!("{} kWh with its PUE", kilowatt_hours(total.facility)));
        }
        let mut shown: Vec<String> = Vec::new();
        for segment in self.runs.iter().flat_map(|run| &run.segments) {
            let intensity = &segment.intensity;
            let year = intensity.year.map_or(String::new(), |year| format!(" {year}"));
            let text = format!(
                "{} in {}{year}, {}, {}-based ({})",
                intensity.grams_per_kwh,
                intensity.zone,
                intensity.basis.as_str().replace('_', " "),
                intensity.accounting.as_str(),
                intensity.source
            );
            if !shown.contains(&text) {
                bullet(out, "Carbon intensity", text.clone());
                shown.push(text);
            }
        }
        let not_declared = || "not declared".to_owned();
        bullet(out, "Embodied", total.embodied.map_or_else(not_declared, |grams| format!("{grams} CO2e")));
        bullet(out, "Water", total.water_liters.map_or_else(not_declared, liters));
        if let Some(sci) = total.sci(self.per) {
            let embodied = if sci.embodied.is_some() { "included" } else { "not declared" };
            let grams = small_grams(sci.grams.0);
            let per = sci.per.as_str();
            bullet(out, "SCI (ISO/IEC 21031)", format!("{grams} CO2e per {per}, embodied {embodied}"));
        }
    }
}

fn account_row(out: &mut String, name: &str, status: &str, account: &Account, loss: String) {
    let joules = account.joules();
    let cells = [
        name.to_owned(),
        status.to_owned(),
        grouped(account.steps),
        grouped(account.tokens),
        joules.map_or_else(unknown, |joules| joules.to_string()),
        account.joules_per_token().map_or_else(unknown, |joules| format!("{joules:.4}")),
        joules.map_or_else(unknown, |_| format!("{:.1} %", account.measured_share() * 100.0)),
        account.emissions().as_ref().map_or_else(unknown, Grams::to_string),
        loss,
    ];
    row(out, &cells);
}

fn row(out: &mut String, cells: &[impl AsRef<str>]) {
    // A bar inside a cell would end it.
    let cells: Vec<String> = cells.iter().map(|cell| cell.as_ref().replace('|', "\\|")).collect();
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

fn bullet(out: &mut String, name: &str, value: String) {
    let _ = writeln!(out, "- {name}: {value}");
}

fn unknown() -> String {
    "-".into()
}
