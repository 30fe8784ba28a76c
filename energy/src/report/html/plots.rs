//! What the plots are drawn from, as one JSON value inside the page.

use serde_json::{Value, json};

use super::marks::Mark;
use super::series::{DomainSeries, LossPoint, RunSeries};
use crate::ledger::Role;
use crate::report::{Account, RunReport};
use crate::units::{MicroJoules, Seconds};
use crate::window::WindowKind;

/// More domains than colours that can be told apart: the smallest share one of each kind.
const MAX_DOMAINS: usize = 6;

/// The data of a run that is only compared with others: its energy-to-loss curve.
pub(super) fn curve(run: &RunReport, series: &RunSeries) -> Value {
    let cumulative = series.cumulative_joules();
    let joules = |points: &[LossPoint]| -> Vec<f64> {
        points.iter().map(|point| rounded(series.joules_at(&cumulative, point.seconds))).collect()
    };
    let losses = |points: &[LossPoint], of: fn(&LossPoint) -> f64| -> Vec<f64> {
        points.iter().map(|point| rounded(of(point))).collect()
    };
    let (training, evaluation) = (&series.training_loss, &series.evaluation_loss);
    json!({
        "name": run.run_id,
        "training": {
            "joules": joules(training),
            "mean": losses(training, LossPoint::mean),
            "min": losses(training, |point| point.min),
            "max": losses(training, |point| point.max),
        },
        "evaluation": {
            "joules": joules(evaluation),
            "loss": losses(evaluation, |point| point.last),
        },
    })
}

/// The data of all plots of a run.
pub(super) fn run(run: &RunReport, series: &RunSeries, marks: &[Mark]) -> Value {
    let mut data = curve(run, series);
    data["seconds"] = json!(series.timeline.seconds);
    data["wall_ms"] = json!(
        (0..series.num_bins)
            .map(|bin| series.timeline.wall_ms((bin + 1) as f64 * series.bin_seconds()))
            .collect::<Vec<_>>()
    );
    data["domains"] = domains(series).into();
    data["read_share"] = series
        .covered_seconds
        .iter()
        .zip(&series.read_seconds)
        .map(|(covered, read)| if *covered > 0.0 { rounded(read / covered) } else { 0.0 })
        .collect();
    data["grams"] = series.grams.iter().map(|grams| rounded(*grams)).collect();
    data["tokens"] = series.tokens.iter().copied().collect();
    data["parts"] = parts(&run.account)
        .into_iter()
        .map(|part| json!({"name": part.name, "of_step": part.of_step, "joules": part.energy.joules().0}))
        .collect();
    data["experts"] = experts(run);
    data["drawn_by"] = drawn_by(run).into();
    data["intensity"] = intensity(run, series);
    data["marks"] = marks
        .iter()
        .map(|mark| json!({"seconds": rounded(mark.seconds), "kind": mark.kind, "text": mark.text}))
        .collect();
    data
}

/// The joules of each bin by domain; where there are many, the smallest together.
fn domains(series: &RunSeries) -> Vec<Value> {
    let joules = |microjoules: &[u64]| -> Vec<f64> {
        microjoules.iter().map(|microjoules| MicroJoules(*microjoules).joules().0).collect()
    };
    let label = |name: &str, measured: bool| match measured {
        true => name.to_owned(),
        false => format!("{name} (modelled)"),
    };
    let num_shown = if series.domains.len() <= MAX_DOMAINS { MAX_DOMAINS } else { MAX_DOMAINS - 2 };
    let (shown, rest) = series.domains.split_at(num_shown.min(series.domains.len()));
    let mut found: Vec<Value> = shown
        .iter()
        .map(|domain| {
            let name = label(&domain.domain, domain.measured);
            json!({"name": name, "measured": domain.measured, "joules": joules(&domain.microjoules)})
        })
        .collect();
    for measured in [true, false] {
        let parts: Vec<&DomainSeries> = rest.iter().filter(|domain| domain.measured == measured).collect();
        if !parts.is_empty() {
            let sum_of = |bin: usize| parts.iter().map(|domain| domain.microjoules[bin]).sum();
            let sums: Vec<u64> = (0..series.num_bins).map(sum_of).collect();
            let name = label(&format!("{} others", parts.len()), measured);
            found.push(json!({"name": name, "measured": measured, "joules": joules(&sums)}));
        }
    }
    found
}

/// Something that energy was spent on.
pub(super) struct Part {
    pub(super) name: String,
    /// A phase of the training steps; else a kind of window beside them.
    pub(super) of_step: bool,
    pub(super) duration: Seconds,
    pub(super) energy: MicroJoules,
}

/// The phases of the steps and the other kinds of windows, the largest first: together, all energy.
pub(super) fn parts(account: &Account) -> Vec<Part> {
    let has_phases = !account.phases.is_empty();
    let phases = account.phases.iter().map(|phase| Part {
        name: phase.phase.clone(),
        of_step: true,
        duration: phase.duration,
        energy: phase.energy,
    });
    let kinds = account.kinds.iter().map(|kind| Part {
        name: kind.kind.clone(),
        of_step: kind.kind == WindowKind::Step.as_str(),
        duration: kind.duration,
        energy: kind.energy,
    });
    let mut parts: Vec<Part> = phases.chain(kinds.filter(|kind| !(has_phases && kind.of_step))).collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.energy));
    parts
}

fn experts(run: &RunReport) -> Value {
    let mut layers: Vec<u64> = run.experts.iter().map(|expert| expert.layer).collect();
    layers.dedup();
    let cells: Vec<Value> = run
        .experts
        .iter()
        .map(|expert| {
            let row = layers.partition_point(|layer| *layer < expert.layer);
            json!([row, expert.expert, rounded(expert.energy.joules().0), expert.tokens])
        })
        .collect();
    json!({"layers": layers, "cells": cells})
}

fn drawn_by(run: &RunReport) -> Vec<Value> {
    run.account
        .domains
        .iter()
        .map(|domain| {
            let how = domain.source.as_str().replace('_', " ");
            json!({
                "name": domain.domain,
                "how": format!("{how} ({})", domain.sensor),
                "measured": domain.source.is_measured(),
                "joules": domain.energy.joules().0,
            })
        })
        .collect()
}

/// What a kilowatt-hour at the computer was priced with in each bin, and the figures recorded beside.
fn intensity(run: &RunReport, series: &RunSeries) -> Value {
    let priced: Vec<Option<f64>> =
        price_per_bin(run, series).into_iter().map(|grams| grams.map(rounded)).collect();
    let mut beside: Vec<(String, Vec<Option<f64>>)> = Vec::new();
    for segment in &run.segments {
        for record in segment.intensities.iter().filter(|record| record.role == Role::Beside) {
            let intensity = &record.intensity;
            let label = format!("{}, {}", intensity.zone, intensity.basis.as_str().replace('_', " "));
            let index = beside.iter().position(|(known, _)| *known == label).unwrap_or_else(|| {
                beside.push((label, vec![None; series.num_bins]));
                beside.len() - 1
            });
            let (from, until) = match intensity.period {
                Some(period) => {
                    (series.timeline.seconds_at(period.from), series.timeline.seconds_at(period.until))
                }
                None => (series.timeline.seconds_at(record.learned_at), series.timeline.seconds),
            };
            let bin_of = |seconds: f64| (seconds / series.bin_seconds()).max(0.0) as usize;
            let last = bin_of(until).min(series.num_bins - 1);
            for bin in bin_of(from).min(last)..=last {
                beside[index].1[bin] = Some(rounded(intensity.grams_per_kwh.0));
            }
        }
    }
    let beside: Vec<Value> =
        beside.into_iter().map(|(label, values)| json!({"name": label, "values": values})).collect();
    json!({"priced": priced, "beside": beside})
}

/// Grams per kilowatt-hour at the computer, without the building, of each bin that has energy.
pub(super) fn price_per_bin(run: &RunReport, series: &RunSeries) -> Vec<Option<f64>> {
    // Segments may differ in their building: what the bin was charged, less what the building adds on the whole.
    let pue = match run.account.energy.joules().0 {
        joules if joules > 0.0 => run.account.facility.0 / joules,
        _ => 1.0,
    };
    (0..series.num_bins)
        .map(|bin| {
            let microjoules = series.domains.iter().map(|domain| domain.microjoules[bin]).sum();
            let kilowatt_hours = MicroJoules(microjoules).joules().kilowatt_hours();
            (kilowatt_hours > 0.0).then(|| series.grams[bin] / kilowatt_hours / pue)
        })
        .collect()
}

/// Six digits are more than a plot can show, and keep the page small.
fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}
