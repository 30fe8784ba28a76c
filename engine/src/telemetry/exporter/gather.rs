//! From what the run has come to, to the series of a scrape. What is unknown gives none.

use wattle_energy::GridIntensity;
use wattle_router::RoutingStats;

use super::catalogue::{self, Metric};
use super::exposition::{Exposition, Family, Number, Sample, Samples};
use super::state::{LastStep, Source, State};

impl State {
    /// All that is known. Metrics with a series per layer come last: were there too many series, those would go.
    pub(super) fn gather(&self) -> Exposition {
        let build: Values = (&catalogue::BUILD, vec![build()]);
        let values = [build].into_iter().chain(self.counters()).chain(self.gauges()).chain(self.layers());
        let known = values.filter(|(_, samples)| !samples.is_empty());
        let known = known.map(|(metric, samples)| Family { metric, samples: Samples::Values(samples) });
        let families = self.histograms().into_iter().chain(known);
        let run_id = self.run.as_ref().map_or_else(String::new, |run| run.run_id.clone());
        Exposition { run_id, families: families.collect() }
    }

    fn histograms(&self) -> Vec<Family> {
        let histograms =
            [(&catalogue::STEP_DURATION, &self.durations), (&catalogue::STEP_ENERGY, &self.energies)];
        let seen = histograms.into_iter().filter(|(_, histogram)| histogram.count() > 0);
        let families =
            seen.map(|(metric, histogram)| Family { metric, samples: Samples::Histogram(histogram.clone()) });
        families.collect()
    }

    fn counters(&self) -> [Values; 8] {
        let of_run = |value| single(self.run.as_ref().map(|_| Number::Count(value)));
        // Once a sensor was read there is energy to speak of, even where it is 0.
        let with_energy = |value| single((!self.energy.is_empty()).then_some(value));
        let energy =
            self.energy.iter().map(|(source, &energy)| sample(labels(source), Number::Millionths(energy)));
        let phases = self
            .phases
            .iter()
            .map(|(phase, &energy)| sample([("phase", (*phase).to_owned())], Number::Millionths(energy)));
        let carbon =
            self.grams.map(|grams| sample([("scope", "operational".to_owned())], Number::Real(grams)));
        [
            (&catalogue::TOKENS, of_run(self.num_tokens)),
            (&catalogue::STEPS, of_run(self.num_steps)),
            (&catalogue::ENERGY, energy.collect()),
            (&catalogue::CARBON, carbon.into_iter().collect()),
            (&catalogue::PHASE_ENERGY, phases.collect()),
            (&catalogue::UNATTRIBUTED_ENERGY, with_energy(Number::Millionths(self.unattributed))),
            (&catalogue::SENSOR_RESETS, with_energy(Number::Count(self.num_sensor_resets))),
            (&catalogue::DROPPED_TOKENS, single(self.last_sparse().map(|_| Number::Count(self.num_dropped)))),
        ]
    }

    fn gauges(&self) -> [Values; 8] {
        let of_last = |value: fn(&LastStep) -> Number| single(self.last.as_ref().map(value));
        let watts = self.last.iter().flat_map(|last| &last.watts);
        let watts = watts.map(|(source, watts)| sample(labels(source), Number::Real(*watts)));
        let intensity = self.run.iter().map(|run| {
            let GridIntensity { zone, basis, grams_per_kwh, .. } = &run.intensity;
            let labels = [("zone", zone.clone()), ("basis", basis.as_str().to_owned())];
            sample(labels, Number::Real(grams_per_kwh.0))
        });
        let active_experts = self.last_sparse().map(|last| Number::Real(last.active_experts));
        [
            (&catalogue::LOSS, of_last(|last| Number::Real(last.loss))),
            (&catalogue::VALIDATION_LOSS, single(self.validation_loss.map(Number::Real))),
            (&catalogue::LEARNING_RATE, of_last(|last| Number::Real(last.learning_rate))),
            (&catalogue::BATCH_TOKENS, of_last(|last| Number::Count(last.num_tokens))),
            (&catalogue::ACTIVE_EXPERTS, single(active_experts)),
            (&catalogue::POWER, watts.collect()),
            (&catalogue::GRID_INTENSITY, intensity.collect()),
            (&catalogue::UTILIZATION, of_last(|last| Number::Real(last.utilization))),
        ]
    }

    fn layers(&self) -> [Values; 2] {
        let first = self.run.as_ref().map_or(0, |run| run.first_sparse_layer);
        let layers = |value: fn(&RoutingStats) -> f64| {
            let stats = self.last.iter().flat_map(|last| &last.routing);
            let samples = (first..)
                .zip(stats)
                .map(|(layer, stats)| sample([("layer", layer.to_string())], Number::Real(value(stats))));
            samples.collect()
        };
        [
            (&catalogue::EXPERT_LOAD_CV, layers(|stats| stats.load_cv)),
            (&catalogue::ROUTING_ENTROPY, layers(|stats| stats.routing_entropy_nats)),
        ]
    }

    /// The last step of a model with experts.
    fn last_sparse(&self) -> Option<&LastStep> {
        self.last.as_ref().filter(|last| !last.routing.is_empty())
    }
}

/// A metric that is no histogram, with its series.
type Values = (&'static Metric, Vec<Sample>);

fn labels((domain, source): &Source) -> [(&'static str, String); 2] {
    [("domain", domain.to_string()), ("source", (*source).to_owned())]
}

fn sample<const N: usize>(labels: [(&'static str, String); N], value: Number) -> Sample {
    Sample { labels: labels.into(), value }
}

fn single(value: Option<Number>) -> Vec<Sample> {
    value.map(|value| sample([], value)).into_iter().collect()
}

/// The program. Builds for distribution set `WATTLE_COMMIT`; asking git in a build script would build the crate anew
/// with each commit.
fn build() -> Sample {
    let commit = option_env!("WATTLE_COMMIT").unwrap_or("unknown");
    let labels = [("version", env!("CARGO_PKG_VERSION").to_owned()), ("commit", commit.to_owned())];
    sample(labels, Number::Count(1))
}
