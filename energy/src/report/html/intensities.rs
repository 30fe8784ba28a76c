//! The carbon intensities of a run, folded: a live figure every five minutes is one row with its range.

use super::markup::{Table, decimals};
use crate::ledger::Role;
use crate::report::RunReport;
use crate::report::figures::to_second;

/// Figures that differ in nothing but time and value.
struct Group {
    /// Use, zone, what it counts, whose, vintage, source.
    words: [String; 5],
    count: u64,
    min: f64,
    max: f64,
    first: Option<jiff::Timestamp>,
    last: Option<jiff::Timestamp>,
}

/// All figures of a run, those it was priced with first.
pub(super) fn table(run: &RunReport) -> Table<'static> {
    let mut groups: Vec<Group> = Vec::new();
    let mut add = |use_of_it: &str, intensity: &crate::carbon::GridIntensity| {
        let vintage = match (intensity.year, intensity.estimated) {
            (Some(year), _) => year.to_string(),
            (None, true) => "estimated".into(),
            (None, false) => "-".into(),
        };
        let basis = intensity.basis.as_str().replace('_', " ");
        let words = [
            use_of_it.to_owned(),
            intensity.zone.clone(),
            format!("{basis}, {}-based", intensity.accounting.as_str()),
            vintage,
            intensity.source.to_string(),
        ];
        let grams = intensity.grams_per_kwh.0;
        let (from, until) =
            (intensity.period.map(|period| period.from), intensity.period.map(|period| period.until));
        match groups.iter_mut().find(|group| group.words == words) {
            Some(group) => {
                group.count += 1;
                group.min = group.min.min(grams);
                group.max = group.max.max(grams);
                group.first = group.first.into_iter().chain(from).min();
                group.last = group.last.into_iter().chain(until).max();
            }
            None => groups.push(Group { words, count: 1, min: grams, max: grams, first: from, last: until }),
        }
    };
    for segment in &run.segments {
        let begins_with = segment.intensities.first().map(|record| &record.intensity);
        if begins_with != Some(&segment.intensity) {
            add("asked for in this report", &segment.intensity);
        }
        for record in &segment.intensities {
            add(if record.role == Role::Priced { "priced" } else { "beside" }, &record.intensity);
        }
    }
    groups.sort_by_key(|group| group.words[0] == "beside");
    Table {
        caption: "Carbon intensities",
        headers: &[
            "Use",
            "Zone",
            "#g CO2e per kWh",
            "Counts",
            "Vintage",
            "Period",
            "#Figures",
            "Source and credit",
        ],
        rows: groups
            .into_iter()
            .map(|group| {
                let [use_of_it, zone, counts, vintage, source] = group.words;
                let value = match group.min == group.max {
                    true => decimals(group.min, 2),
                    false => format!("{} to {}", decimals(group.min, 1), decimals(group.max, 1)),
                };
                let period = match (group.first, group.last) {
                    (Some(first), Some(last)) => format!("{} to {}", to_second(first), to_second(last)),
                    _ => "all times".into(),
                };
                vec![use_of_it, zone, value, counts, vintage, period, group.count.to_string(), source]
            })
            .collect(),
    }
}
