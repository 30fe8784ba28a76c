//! The top of the page: what it is of, the headline numbers, and the comparison of several runs.

use std::fmt::Write;

use super::markup::{Figure, Table, escape};
use crate::report::figures::{duration, grouped, kilowatt_hours, to_second};
use crate::report::{Account, Report, RunReport};

/// For the browser's tab.
pub(super) fn title(report: &Report) -> String {
    match report.runs.as_slice() {
        [run] => format!("{} - energy and carbon", run.run_id),
        runs => format!("{} runs - energy and carbon", runs.len()),
    }
}

/// Name, times and headline numbers.
pub(super) fn write_head(out: &mut String, report: &Report) {
    let (heading, summary) = match report.runs.as_slice() {
        [run] => (run.run_id.clone(), of_one(run)),
        runs => (format!("{} runs", runs.len()), "Energy and carbon of all of them together".to_owned()),
    };
    let _ = write!(
        out,
        "<header><p class=\"brand\">Wattle <span>energy and carbon report</span></p><h1>{}</h1><p>{}</p></header>",
        escape(&heading),
        escape(&summary)
    );
    write_headline(out, &report.total(), &intensity_words(report));
}

fn of_one(run: &RunReport) -> String {
    let end = run.ended_at.map_or(String::new(), |at| format!(" to {}", to_second(at)));
    let restarts = match run.segments.len() {
        0 | 1 => String::new(),
        segments => format!(", {segments} segments"),
    };
    let name = if run.name == run.run_id { String::new() } else { format!("{}: ", run.name) };
    format!("{name}{}, {}{end}{restarts}", run.status.as_str(), to_second(run.started_at))
}

/// The figures that grams were counted with, in a few words.
fn intensity_words(report: &Report) -> String {
    let mut zones: Vec<String> = Vec::new();
    for segment in report.runs.iter().flat_map(|run| &run.segments) {
        let year = segment.intensity.year.map_or(String::new(), |year| format!(" {year}"));
        let zone = format!("{}{year}", segment.intensity.zone);
        if !zones.contains(&zone) {
            zones.push(zone);
        }
    }
    match zones.as_slice() {
        [zone] => format!("electricity of {zone}"),
        zones => format!("electricity of {} zones or years", zones.len()),
    }
}

/// The numbers that most people came for.
fn write_headline(out: &mut String, account: &Account, intensity: &str) {
    let energy = account.joules();
    let unknown = || ("unknown".to_owned(), String::new());
    out.push_str("<dl class=\"headline\">");
    let (value, note) = energy.map_or_else(unknown, |joules| (kilowatt_hours(joules), joules.to_string()));
    write_fact(
        out,
        "Energy",
        &value,
        "kWh",
        &if energy.is_some() { note } else { "no sensor was read".into() },
    );
    let (value, unit) = match account.emissions() {
        Some(grams) => split_unit(&grams.to_string()),
        None => unknown(),
    };
    write_fact(out, "Emissions", &value, &format!("{unit} CO2e"), intensity);
    let (value, unit) = match account.joules_per_token() {
        Some(joules) => (format!("{joules:.4}"), "J".to_owned()),
        None => unknown(),
    };
    write_fact(out, "Per token", &value, &unit, "all energy over tokens in the model");
    let (tokens, unit) = short(account.tokens);
    let whole = if unit.is_empty() { String::new() } else { format!("{} in ", grouped(account.tokens)) };
    let steps = format!("{whole}{} steps", grouped(account.steps));
    write_fact(out, "Tokens", &tokens, unit, &steps);
    let power = account.average_power().map_or("power unknown".into(), |power| format!("{power} on average"));
    write_fact(out, "Time", &duration(account.duration), "", &power);
    let measured = account.measured_share() * 100.0;
    let modelled = format!("modelled {:.1} %", 100.0 - measured);
    match energy {
        Some(_) => write_fact(out, "Measured", &format!("{measured:.1}"), "%", &modelled),
        None => write_fact(out, "Measured", "-", "", "no sensor was read"),
    }
    out.push_str("</dl>");
}

fn write_fact(out: &mut String, label: &str, value: &str, unit: &str, note: &str) {
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "<div><dt>{}</dt><dd><strong>{}</strong> <span class=\"unit\">{}</span><small>{}</small></dd></div>",
        escape(label),
        escape(value),
        escape(unit),
        escape(note)
    );
}

/// Three digits of a count and the word that fits; the whole count stands below it.
fn short(count: u64) -> (String, &'static str) {
    let words = [(1e12, "trillion"), (1e9, "billion"), (1e6, "million")];
    match words.iter().find(|(scale, _)| count as f64 >= *scale) {
        Some((scale, word)) => (format!("{:.1}", count as f64 / scale), word),
        None => (grouped(count), ""),
    }
}

/// `12.3 kJ` as `12.3` and `kJ`.
fn split_unit(shown: &str) -> (String, String) {
    let (value, unit) = shown.split_once(' ').unwrap_or((shown, ""));
    (value.into(), unit.into())
}

/// The energy-to-loss curves of all runs in one plot, and the table of the runs.
pub(super) fn write_comparison(out: &mut String, report: &Report, shown: bool) {
    out.push_str("<section><h2>The runs beside each other</h2><div class=\"grid\">");
    let curves = Figure {
        plot: "curves",
        run: 0,
        width: "wide",
        label: "Energy to loss, all runs",
        title: "What each run paid for its loss",
        note: "Training loss (mean of the steps in a bin) over all energy spent until then, evaluation, checkpoints \
               and work done again included. Rings: held-out loss. Further left is cheaper, further down is better.",
    };
    curves.write(out, |_| {});
    out.push_str("<div class=\"card wide\">");
    comparison(report).write(out);
    if !shown {
        out.push_str(
            "<p class=\"note\">So many runs are compared only: for the plots of one, make its report alone.</p>",
        );
    }
    out.push_str("</div></div></section>");
}

fn comparison(report: &Report) -> Table<'static> {
    let total = report.total();
    let runs =
        report.runs.iter().map(|run| (run.run_id.clone(), run.status.as_str(), &run.account, run.final_loss));
    let rows = runs.chain([("Total".into(), "", &total, None)]);
    Table {
        caption: "Runs compared",
        headers: &[
            "Run",
            "Status",
            "#Steps",
            "#Tokens",
            "#Time",
            "#Energy",
            "#J per token",
            "#Measured",
            "#CO2e",
            "#Loss",
        ],
        rows: rows
            .map(|(name, status, account, loss)| {
                let energy = account.joules();
                vec![
                    name,
                    status.into(),
                    grouped(account.steps),
                    grouped(account.tokens),
                    duration(account.duration),
                    energy.map_or("-".into(), |joules| joules.to_string()),
                    account.joules_per_token().map_or("-".into(), |joules| format!("{joules:.4}")),
                    format!("{:.1} %", account.measured_share() * 100.0),
                    account.emissions().map_or("-".into(), |grams| grams.to_string()),
                    loss.map_or("-".into(), |loss| format!("{loss:.4}")),
                ]
            })
            .collect(),
    }
}
