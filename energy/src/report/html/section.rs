//! The section of one run: its plots, each with a title that says what one sees, and its tables.

use std::fmt::Write;

use super::intensities;
use super::marks::Mark;
use super::markup::{Figure, Table, decimals, escape, write_series_table};
use super::plots::{parts, price_per_bin};
use super::series::RunSeries;
use crate::report::figures::{duration, grouped, to_second};
use crate::report::{Account, RunReport};
use crate::units::{MicroJoules, Seconds, Watts};

/// Where a run stands on the page.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// In the page's data.
    pub(super) index: usize,
    /// Without other runs, the page's title is its own.
    pub(super) is_alone: bool,
}

/// A run's section in the making.
struct Section<'a> {
    out: &'a mut String,
    index: usize,
    run: &'a RunReport,
    account: &'a Account,
    series: &'a RunSeries,
}

pub(super) fn write(
    out: &mut String,
    place: Place,
    run: &RunReport,
    series: &RunSeries,
    marks: &[Mark],
    num_more_marks: usize,
) {
    let _ = write!(out, "<section aria-label=\"{}\">", escape(&run.run_id));
    if !place.is_alone {
        let _ = write!(out, "<h2>{}</h2>", escape(&run.run_id));
    }
    out.push_str("<div class=\"grid\">");
    let mut section = Section { out, index: place.index, run, account: &run.account, series };
    if section.account.joules().is_some() {
        section.power(marks, num_more_marks);
        section.energy_and_emissions();
        section.loss_and_token_cost();
        section.parts();
        section.drawn_by();
        section.experts();
        section.intensity();
    } else {
        section.out.push_str("<p class=\"card wide note\">No sensor was read: there is nothing to plot.</p>");
    }
    section.segments();
    out.push_str("</div></section>");
}

impl Section<'_> {
    fn figure(&mut self, plot: &str, width: &str, words: [&str; 3], below: impl FnOnce(&mut String)) {
        let [label, title, note] = words;
        Figure { plot, run: self.index, width, label, title, note }.write(self.out, below);
    }

    fn power(&mut self, marks: &[Mark], num_more: usize) {
        let mean =
            self.account.average_power().map_or(String::new(), |power| format!(", {power} on average"));
        let title = match self.highest_power() {
            Some(highest) => format!("It drew up to {highest}{mean}"),
            None => format!("Its power{mean}"),
        };
        let note = format!(
            "Energy of each bin of {} over its time, by domain: solid was measured, hatched modelled. Time is running \
             time, without the pauses between segments. {}{}",
            duration(Seconds(self.series.bin_seconds())),
            self.gaps(),
            self.went_on()
        );
        let index = self.index;
        self.figure("power", "wide", ["Power over time", &title, &note], |out| {
            write_marks(out, marks, num_more);
            write_series_table(out, "power", index, "Table of power");
        });
    }

    fn highest_power(&self) -> Option<Watts> {
        let bin_seconds = self.series.bin_seconds();
        let power_of = |bin: usize| {
            let microjoules = self.series.domains.iter().map(|domain| domain.microjoules[bin]).sum();
            let read = self.series.read_seconds[bin] / self.series.covered_seconds[bin];
            MicroJoules(microjoules).joules().0 / bin_seconds / read
        };
        let powers = (0..self.series.num_bins).map(power_of).filter(|power| power.is_finite());
        powers.max_by(f64::total_cmp).map(Watts)
    }

    fn gaps(&self) -> String {
        match self.account.incomplete_windows {
            0 => String::new(),
            count => format!("In {} windows a sensor could not be read. ", grouped(count)),
        }
    }

    /// A word on a run that was still going on while the page was made.
    fn went_on(&self) -> String {
        let plotted = self.series.energy();
        match plotted.0.abs_diff(self.account.energy.0) {
            0 => String::new(),
            more => format!(
                "The run went on meanwhile: plots hold {} more than the sums.",
                MicroJoules(more).joules()
            ),
        }
    }

    fn energy_and_emissions(&mut self) {
        let index = self.index;
        let energy = self.account.energy.joules();
        let title = format!("Its energy adds up to {energy}");
        let note = match self.account.superseded {
            MicroJoules(0) => "At the computer, summed from the ledger to the microjoule.".to_owned(),
            lost => format!(
                "At the computer, summed from the ledger to the microjoule. {} of it ({:.1} %) went into steps that \
                 were done again after a restart.",
                lost.joules(),
                share(lost, self.account.energy)
            ),
        };
        self.figure("energy", "half", ["Energy so far", &title, &note], |out| {
            write_series_table(out, "energy", index, "Table of energy and emissions");
        });
        let title = match self.account.emissions() {
            Some(grams) => format!("Its emissions add up to {grams} CO2e"),
            None => "Its emissions are of different kinds, which do not add up".to_owned(),
        };
        let building = match self.account.facility.0 / energy.0 {
            pue if (pue - 1.0).abs() < 1e-9 => "PUE 1: nothing is added for the building.".to_owned(),
            pue => format!("Times the building's PUE of {}.", decimals(pue, 3)),
        };
        let note =
            format!("Energy times the carbon intensity of its own time, grams of CO2-equivalent. {building}");
        self.figure("emissions", "half", ["Emissions so far", &title, &note], |_| {});
    }

    fn loss_and_token_cost(&mut self) {
        let index = self.index;
        let curve = &self.series.training_loss;
        if let (Some(first), Some(last)) = (curve.first(), curve.last()) {
            let final_loss = self.run.final_loss.unwrap_or(last.last);
            let energy = self.account.energy.joules();
            let title = format!("{energy} took the loss from {:.2} to {final_loss:.2} nats", first.max);
            let note = "Loss over all energy spent until then, on a logarithmic axis: an even slope pays the same \
                        factor of energy for each nat. Line: mean training loss; band: its lowest and highest step; \
                        rings: held-out loss.";
            self.figure("loss", "half", ["Energy to loss", &title, note], |out| {
                write_series_table(out, "loss", index, "Table of losses");
            });
        }
        if let Some(joules) = self.account.joules_per_token() {
            let title = format!("A token cost {joules:.4} J in the end");
            let note = "All energy so far over the tokens in the model so far. Set-up weighs on the first tokens; \
                        evaluation, checkpoints and steps done again are in it.";
            self.figure("token_cost", "half", ["Cost of a token so far", &title, note], |_| {});
        }
    }

    fn parts(&mut self) {
        let parts = parts(self.account);
        let Some(largest) = parts.first() else { return };
        let all = self.account.energy;
        let title = format!("{:.0} % of the energy went into {}", share(largest.energy, all), largest.name);
        let note = "Blue: phases of the training steps, each step's energy split by the time its phases took. \
                    Grey: everything beside the steps. Together they are all energy.";
        let table = Table {
            caption: "Table of energy by phase",
            headers: &["Spent on", "Part of", "#Time", "#Energy", "#Joules", "#Share"],
            rows: parts
                .iter()
                .map(|part| {
                    vec![
                        part.name.clone(),
                        if part.of_step { "step" } else { "beside the steps" }.into(),
                        duration(part.duration),
                        part.energy.joules().to_string(),
                        part.energy.joules().0.to_string(),
                        format!("{:.1} %", share(part.energy, all)),
                    ]
                })
                .collect(),
        };
        let waste = Table {
            caption: "Work in vain, a look across the phases",
            headers: &["Reason", "#Count", "#Energy", "#Joules", "#Share"],
            rows: self
                .account
                .waste
                .iter()
                .map(|waste| {
                    vec![
                        waste.reason.clone(),
                        grouped(waste.count),
                        waste.energy.joules().to_string(),
                        waste.energy.joules().0.to_string(),
                        format!("{:.1} %", share(waste.energy, all)),
                    ]
                })
                .collect(),
        };
        self.figure("parts", "half", ["Energy by phase", &title, note], |out| {
            table.write_folded(out);
            if !waste.rows.is_empty() {
                waste.write_folded(out);
            }
        });
    }

    fn drawn_by(&mut self) {
        let measured = self.account.measured_share() * 100.0;
        let title = match measured {
            share if share >= 99.95 => "All of its joules were measured".to_owned(),
            share if share < 0.05 => "None of its joules was measured: all are modelled".to_owned(),
            share => format!("{share:.1} % of its joules were measured"),
        };
        let note = "What drew the energy, and how that is known. Solid: read from a counter or a power sensor. \
                    Hatched: modelled, an estimate from use and rated power.";
        let all = self.account.energy;
        let table = Table {
            caption: "Table of energy by domain",
            headers: &["Domain", "Sensor", "How", "#Energy", "#Joules", "#Share"],
            rows: self
                .account
                .domains
                .iter()
                .map(|domain| {
                    vec![
                        domain.domain.clone(),
                        domain.sensor.clone(),
                        domain.source.as_str().replace('_', " "),
                        domain.energy.joules().to_string(),
                        domain.energy.joules().0.to_string(),
                        format!("{:.1} %", share(domain.energy, all)),
                    ]
                })
                .collect(),
        };
        self.figure("drawn_by", "half", ["Measured and modelled", &title, note], |out| {
            table.write_folded(out)
        });
    }

    fn experts(&mut self) {
        let experts = &self.run.experts;
        let Some(busiest) = experts.iter().max_by_key(|expert| expert.energy) else { return };
        let sum: MicroJoules = experts.iter().map(|expert| expert.energy).sum();
        let mean = sum.0 as f64 / experts.len() as f64;
        let title = match mean > 0.0 {
            true => format!(
                "The busiest expert, {} of layer {}, used {:.2} times the mean",
                busiest.expert,
                busiest.layer,
                busiest.energy.0 as f64 / mean
            ),
            false => "The experts used no energy".to_owned(),
        };
        let note = format!(
            "Each cell is an expert. The energy of the phase experts ({}), split by the tokens that \
             each computed. An even router makes an even field.",
            sum.joules()
        );
        let mut layers: Vec<u64> = experts.iter().map(|expert| expert.layer).collect();
        layers.dedup();
        let num_experts = experts.iter().map(|expert| expert.expert + 1).max().unwrap_or(0);
        let names: Vec<String> = std::iter::once("Layer".to_owned())
            .chain((0..num_experts).map(|expert| format!("#{expert}")))
            .collect();
        let headers: Vec<&str> = names.iter().map(String::as_str).collect();
        let table = Table {
            caption: "Table of energy by layer and expert, joules",
            headers: &headers,
            rows: layers
                .iter()
                .map(|layer| {
                    let mut row = vec![layer.to_string()];
                    row.resize(num_experts as usize + 1, String::new());
                    for expert in experts.iter().filter(|expert| expert.layer == *layer) {
                        row[expert.expert as usize + 1] = format!("{:.6}", expert.energy.joules().0);
                    }
                    row
                })
                .collect(),
        };
        self.figure("experts", "wide", ["Energy by expert", &title, &note], |out| table.write_folded(out));
    }

    fn intensity(&mut self) {
        let index = self.index;
        let prices: Vec<f64> = price_per_bin(self.run, self.series).into_iter().flatten().collect();
        let lowest = prices.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = prices.iter().copied().fold(0.0, f64::max);
        let title = match highest - lowest < 0.5 {
            true => format!("Each kilowatt-hour was priced at {highest:.0} g CO2e"),
            false => format!("Kilowatt-hours were priced at {lowest:.0} to {highest:.0} g CO2e"),
        };
        let note = "Carbon intensity of the electricity, as the energy was priced; dashed: figures recorded beside, \
                    which price nothing. Marginal and average figures are never mixed.";
        let table = intensities::table(self.run);
        self.figure("intensity", "wide", ["Carbon intensity", &title, note], |out| {
            table.write(out);
            write_series_table(out, "intensity", index, "Table of carbon intensity over time");
        });
    }

    fn segments(&mut self) {
        let count = |value: Option<u64>| value.map_or("-".into(), grouped);
        let table = Table {
            caption: "Segments: the process lifetimes of the run",
            headers: &[
                "Segment",
                "Host",
                "Began",
                "Status",
                "#From step",
                "#Time",
                "#Energy",
                "#CO2e",
                "#PUE",
                "#Resets",
                "#Spikes",
                "#Gaps",
                "#Counting, CPU time",
                "Version",
            ],
            rows: self
                .run
                .segments
                .iter()
                .map(|segment| {
                    let health = segment.sensor_health;
                    vec![
                        format!("{} of rank {}", segment.number, segment.rank),
                        segment.host.clone(),
                        to_second(segment.started_at),
                        segment.status.as_str().into(),
                        count(segment.resumed_from_step),
                        duration(segment.duration),
                        segment.energy.joules().to_string(),
                        segment.grams.to_string(),
                        decimals(segment.pue, 3),
                        count(health.map(|(resets, ..)| resets)),
                        count(health.map(|(_, spikes, _)| spikes)),
                        health.map_or("-".into(), |(.., gap)| duration(Seconds(gap))),
                        segment.overhead.map_or("-".into(), duration),
                        segment.version.clone(),
                    ]
                })
                .collect(),
        };
        self.out.push_str("<div class=\"card wide\">");
        table.write(self.out);
        self.out.push_str("</div>");
    }
}

/// The legend of the vertical lines: number, time, kind and text.
fn write_marks(out: &mut String, marks: &[Mark], num_more: usize) {
    const OPEN: usize = 6;
    let write_list = |out: &mut String, marks: &[Mark], first: usize| {
        let _ = write!(out, "<ol class=\"marks\" start=\"{first}\">");
        for mark in marks {
            let _ = write!(
                out,
                "<li class=\"{kind}\"><b>{kind}</b> at {time}: {text}</li>",
                kind = escape(&mark.kind),
                time = duration(Seconds(mark.seconds)),
                text = escape(&mark.text)
            );
        }
        out.push_str("</ol>");
    };
    let (open, folded) = marks.split_at(marks.len().min(OPEN));
    if !open.is_empty() {
        write_list(out, open, 1);
    }
    if !folded.is_empty() {
        let more = match num_more {
            0 => String::new(),
            more => format!("; {} more are in the ledger", grouped(more as u64)),
        };
        let _ = write!(out, "<details><summary>{} further marks{more}</summary>", folded.len());
        write_list(out, folded, OPEN + 1);
        out.push_str("</details>");
    }
}

/// In percent.
fn share(part: MicroJoules, whole: MicroJoules) -> f64 {
    if whole.0 == 0 { 0.0 } else { 100.0 * part.0 as f64 / whole.0 as f64 }
}
