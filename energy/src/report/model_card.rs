//! A block for the front matter of a Hugging Face model card: `co2_eq_emissions`, in grams.
//!
//! Source of the fields: <https://huggingface.co/docs/hub/model-cards-co2>. The Hub takes grams; cards that told
//! kilograms had to be corrected a thousandfold. `training_type` and the hardware's names are not in a ledger: whoever
//! makes the report tells them, and what is not told is left out.

use std::fmt::Write;

use super::emissions_csv::{Hardware, num_domains};
use super::{Report, RunReport};
use crate::carbon;
use crate::error::{Error, Result};

/// What a ledger does not know and a reader wants to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// `pre-training` or `fine-tuning`.
    pub training_type: Option<String>,
    /// Such as `8 x NVIDIA H100`.
    pub hardware: Option<String>,
}

impl Report {
    /// The block, of all runs together: development and failed runs were emissions of the model too.
    ///
    /// # Errors
    /// When the emissions are unknown: a card that said 0 would not be true.
    pub fn to_model_card(&self, details: &Details) -> Result<String> {
        let total = self.total();
        let grams = total.emissions().ok_or_else(|| {
            let reason = match total.joules() {
                None => "no sensor was read, so the emissions are unknown",
                Some(_) => "its runs were priced with figures of different kinds, which have no sum",
            };
            let path = self.runs.first().map(|run| run.ledger.clone()).unwrap_or_default();
            Error::ReportFile { path, reason: reason.into(), remedy: "give runs whose emissions are known" }
        })?;
        let measured = total.measured_share() * 100.0;
        let source = format!(
            "wattle {}, from the run's energy ledger: {measured:.0} % measured, {:.0} % modelled",
            env!("CARGO_PKG_VERSION"),
            100.0 - measured
        );
        let mut out = String::from("---\nco2_eq_emissions:\n");
        // Writing to a string cannot fail.
        let _ = writeln!(out, "  emissions: {}", grams.0);
        let mut field = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                let _ = writeln!(out, "  {name}: {}", quoted(&value));
            }
        };
        field("source", Some(source));
        field("training_type", details.training_type.clone());
        field("geographical_location", self.places());
        field("hardware_used", details.hardware.clone().or_else(|| self.hardware()));
        out.push_str("---\n");
        Ok(out)
    }

    /// Where the energy was drawn.
    pub(super) fn places(&self) -> Option<String> {
        let zones = self.runs.iter().flat_map(|run| &run.segments).map(|segment| {
            let zone = segment.intensity.zone.as_str();
            carbon::country_name(zone).unwrap_or(zone)
        });
        let mut places: Vec<&str> = Vec::new();
        for place in zones {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        (!places.is_empty()).then(|| places.join(", "))
    }

    /// What was read, as far as the ledgers know.
    fn hardware(&self) -> Option<String> {
        let mut texts: Vec<String> = Vec::new();
        for text in self.runs.iter().filter_map(hardware_of) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

fn hardware_of(run: &RunReport) -> Option<String> {
    let parts = [(Hardware::Gpu, "GPU"), (Hardware::Cpu, "CPU")];
    let parts: Vec<String> = parts
        .into_iter()
        .map(|(hardware, name)| (num_domains(run, hardware), name))
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// A YAML string: JSON's are among them.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
