//! Every metric that the exporter can give: the one list that code, rules, dashboards and documentation agree on.

use Kind::{Counter, Gauge, Histogram, Info};

/// A metric's name, type and meaning.
#[derive(Debug, PartialEq)]
pub(super) struct Metric {
    /// Without the suffixes `_total`, `_info`, `_bucket`.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// The last part of the name when that is a unit: OpenMetrics names it beside.
    pub(super) unit: Option<&'static str>,
    /// One line without quotes and backslashes, so that both formats can have it as it is.
    pub(super) help: &'static str,
}

/// What may be done with a metric's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Starts at 0 with the process and never falls.
    Counter,
    Gauge,
    Histogram,
    /// Says something in its labels; its value is 1.
    Info,
}

impl Metric {
    const fn new(name: &'static str, kind: Kind, unit: Option<&'static str>, help: &'static str) -> Self {
        Metric { name, kind, unit, help }
    }

    /// The suffix of the single sample name, for all kinds but histograms.
    pub(super) fn suffix(&self) -> &'static str {
        match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        }
    }
}

pub(super) const TOKENS: Metric =
    Metric::new("wattle_tokens", Counter, None, "Tokens trained on by this process.");
pub(super) const STEPS: Metric = Metric::new(
    "wattle_steps",
    Counter,
    None,
    "Optimizer steps by this process, those skipped for a loss that was not finite included.",
);
pub(super) const ENERGY: Metric = Metric::new(
    "wattle_energy_joules",
    Counter,
    Some("joules"),
    "Energy by what drew it and how it is known, set-up, evaluation and checkpoints included.",
);
pub(super) const CARBON: Metric = Metric::new(
    "wattle_carbon_grams",
    Counter,
    Some("grams"),
    "CO2-equivalent of that energy with the power usage effectiveness of the building.",
);
pub(super) const PHASE_ENERGY: Metric = Metric::new(
    "wattle_phase_energy_joules",
    Counter,
    Some("joules"),
    "Energy by phase of the step, and by kind of work between steps.",
);
pub(super) const UNATTRIBUTED_ENERGY: Metric = Metric::new(
    "wattle_unattributed_energy_joules",
    Counter,
    Some("joules"),
    "Energy that belongs to no phase; with all phases it adds up to the energy.",
);
pub(super) const SENSOR_RESETS: Metric =
    Metric::new("wattle_sensor_resets", Counter, None, "Energy counters that started anew during the run.");
pub(super) const DROPPED_TOKENS: Metric = Metric::new(
    "wattle_dropped_tokens",
    Counter,
    None,
    "Assignments of a token to an expert that found no place for lack of capacity.",
);
pub(super) const STEP_DURATION: Metric =
    Metric::new("wattle_step_duration_seconds", Histogram, Some("seconds"), "Time of a step.");
pub(super) const STEP_ENERGY: Metric =
    Metric::new("wattle_step_energy_joules", Histogram, Some("joules"), "Energy of a step, all domains.");
pub(super) const LOSS: Metric = Metric::new(
    "wattle_loss",
    Gauge,
    None,
    "Training loss of the last step in nats per token, balance and z-loss included.",
);
pub(super) const VALIDATION_LOSS: Metric = Metric::new(
    "wattle_validation_loss",
    Gauge,
    None,
    "Held-out cross-entropy of the last evaluation in nats per token.",
);
pub(super) const LEARNING_RATE: Metric =
    Metric::new("wattle_learning_rate", Gauge, None, "Learning rate of the last step.");
pub(super) const BATCH_TOKENS: Metric =
    Metric::new("wattle_batch_tokens", Gauge, Some("tokens"), "Tokens in the last step.");
pub(super) const ACTIVE_EXPERTS: Metric = Metric::new(
    "wattle_active_experts_mean",
    Gauge,
    None,
    "Routed experts that a token went through, mean over the last step.",
);
pub(super) const POWER: Metric = Metric::new(
    "wattle_power_watts",
    Gauge,
    Some("watts"),
    "Mean power over the last step by what drew it and how it is known.",
);
pub(super) const GRID_INTENSITY: Metric = Metric::new(
    "wattle_grid_intensity_grams_per_kilowatt_hour",
    Gauge,
    Some("grams_per_kilowatt_hour"),
    "CO2-equivalent of a kilowatt-hour that the energy is priced with.",
);
pub(super) const UTILIZATION: Metric = Metric::new(
    "wattle_model_flops_utilization_ratio",
    Gauge,
    Some("ratio"),
    "FLOPs per second of the model over the measured peak of the processor, last step.",
);
pub(super) const BUILD: Metric = Metric::new("wattle_build", Info, None, "The program that trains.");
pub(super) const EXPERT_LOAD_CV: Metric = Metric::new(
    "wattle_expert_load_cv",
    Gauge,
    None,
    "Standard deviation over mean of the load of the experts of a layer, last step; 0 is even.",
);
pub(super) const ROUTING_ENTROPY: Metric = Metric::new(
    "wattle_routing_entropy",
    Gauge,
    None,
    "Entropy of the choice of experts of a layer in nats, mean over tokens of the last step; 0 is certain.",
);

/// All of them, in the order of a scrape.
#[cfg(test)]
pub(super) const ALL: [&Metric; 21] = [
    &STEP_DURATION,
    &STEP_ENERGY,
    &BUILD,
    &TOKENS,
    &STEPS,
    &ENERGY,
    &CARBON,
    &PHASE_ENERGY,
    &UNATTRIBUTED_ENERGY,
    &SENSOR_RESETS,
    &DROPPED_TOKENS,
    &LOSS,
    &VALIDATION_LOSS,
    &LEARNING_RATE,
    &BATCH_TOKENS,
    &ACTIVE_EXPERTS,
    &POWER,
    &GRID_INTENSITY,
    &UTILIZATION,
    &EXPERT_LOAD_CV,
    &ROUTING_ENTROPY,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_in_their_units_and_help_needs_no_escapes() {
        for metric in ALL {
            let is_unit = |unit| metric.name.ends_with(&format!("_{unit}"));
            assert!(metric.unit.is_none_or(is_unit), "{}", metric.name);
            assert!(!metric.name.ends_with("_total"), "{}", metric.name);
            assert!(
                !metric.help.contains(['"', '\\', '\n']) && metric.help.ends_with('.'),
                "{}",
                metric.name
            );
        }
    }
}
