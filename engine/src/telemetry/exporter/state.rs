//! What the run has come to so far: written once a step, copied once a scrape.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use wattle_energy::attribution::OTHER_PHASE;
use wattle_energy::{DomainEnergy, WindowKind};
use wattle_router::RoutingStats;

use super::RunFacts;
use super::catalogue;
use super::exposition::{Exposition, Family, Number, Sample, Samples};
use super::histogram::{Exemplar, Histogram};
use crate::telemetry::{Priced, StepMetrics};

/// All values. What is not known yet has no value, which is not 0.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// None until the run's first step is near.
    run: Option<RunFacts>,
    num_steps: u64,
    num_tokens: u64,
    num_dropped: u64,
    /// By domain and source, in microjoules. Empty until a sensor was read.
    pub(super) energy: BTreeMap<Source, u64>,
    grams: Option<f64>,
    /// In microjoules.
    pub(super) phases: BTreeMap<&'static str, u64>,
    /// In microjoules.
    pub(super) unattributed: u64,
    num_sensor_resets: u64,
    durations: Histogram,
    energies: Histogram,
    validation_loss: Option<f64>,
    last: Option<LastStep>,
}

/// What draws energy and how it is known.
type Source = (Arc<str>, &'static str);

/// The numbers of the last step.
#[derive(Clone, Debug)]
struct LastStep {
    loss: f64,
    learning_rate: f64,
    num_tokens: u64,
    active_experts: f64,
    utilization: f64,
    watts: Vec<(Source, f64)>,
    /// One entry a sparse layer.
    routing: Vec<RoutingStats>,
}

/// From a millisecond to minutes, three a decade.
const SECONDS_BOUNDS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0,
    500.0,
];

/// From a tiny model on a laptop to thousands of GPUs.
const JOULES_BOUNDS: [f64; 24] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3,
    1e4, 2.5e4, 5e4, 1e5, 1e6, 1e7,
];

impl State {
    pub(super) fn new() -> Self {
        State {
            run: None,
            num_steps: 0,
            num_tokens: 0,
            num_dropped: 0,
            energy: BTreeMap::new(),
            grams: None,
            phases: BTreeMap::new(),
            unattributed: 0,
            num_sensor_resets: 0,
            durations: Histogram::new(&SECONDS_BOUNDS),
            energies: Histogram::new(&JOULES_BOUNDS),
            validation_loss: None,
            last: None,
        }
    }

    pub(super) fn begin_run(&mut self, run: RunFacts) {
        self.run = Some(run);
    }

    /// Adds the energy of any window. What its phases do not name belongs to its kind, and what neither names to
    /// nothing: phases and unattributed always add up to the energy.
    pub(super) fn window(&mut self, priced: &Priced) {
        let window = &priced.window;
        for part in &window.domains {
            *self.energy.entry(source(part)).or_default() += part.microjoules.0;
        }
        if let Some(grams) = priced.grams {
            *self.grams.get_or_insert(0.0) += grams.max(0.0);
        }
        let mut rest = window.microjoules().0;
        for part in priced.phases.iter().filter(|part| part.phase != OTHER_PHASE) {
            let part_of_rest = part.microjoules.0.min(rest);
            *self.phases.entry(part.phase).or_default() += part_of_rest;
            rest -= part_of_rest;
        }
        match window.kind {
            WindowKind::Step | WindowKind::Open | WindowKind::Unattributed => self.unattributed += rest,
            kind if rest > 0 => *self.phases.entry(kind.as_str()).or_default() += rest,
            _ => {}
        }
    }

    /// Adds a step, its window included.
    pub(super) fn step(
        &mut self,
        metrics: &StepMetrics,
        priced: &Priced,
        routing: &[RoutingStats],
        sensor_resets: u64,
    ) {
        self.window(priced);
        self.num_steps += 1;
        self.num_tokens += metrics.batch_tokens;
        self.num_dropped += metrics.dropped_tokens;
        self.num_sensor_resets = self.num_sensor_resets.max(sensor_resets);
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let exemplar = |value| Exemplar { value, step: metrics.step, unix_seconds };
        let window = &priced.window;
        self.durations.observe(exemplar(window.duration.0));
        if let Some(joules) = window.joules {
            self.energies.observe(exemplar(joules.0));
        }
        let watts = window.domains.iter().filter_map(|part| {
            part.microjoules.joules().over(window.duration).map(|watts| (source(part), watts.0))
        });
        self.last = Some(LastStep {
            loss: metrics.loss,
            learning_rate: metrics.lr,
            num_tokens: metrics.batch_tokens,
            active_experts: metrics.k_mean,
            utilization: metrics.mfu,
            watts: watts.collect(),
            routing: routing.to_vec(),
        });
    }

    pub(super) fn evaluated(&mut self, loss: f64) {
        self.validation_loss = Some(loss);
    }

    /// All that is known. Metrics with a series per layer come last: were there too many series, those would go.
    pub(super) fn gather(&self) -> Exposition {
        let (run, last) = (self.run.as_ref(), self.last.as_ref());
        let sparse = last.filter(|last| !last.routing.is_empty());
        let count = |value| run.map(|_| Number::Count(value));
        // Once a sensor was read there is energy to speak of, even where it is 0.
        let with_energy = |value| (!self.energy.is_empty()).then_some(value);
        let of_last = |value: fn(&LastStep) -> f64| single(last.map(|last| Number::Real(value(last))));
        let of_layers = |value: fn(&RoutingStats) -> f64| {
            let layers = (run.map_or(0, |run| run.first_sparse_layer)..)
                .zip(sparse.iter().flat_map(|last| &last.routing));
            layers
                .map(|(layer, stats)| sample([("layer", layer.to_string())], Number::Real(value(stats))))
                .collect()
        };
        let energy =
            self.energy.iter().map(|(source, &energy)| sample(labels(source), Number::Millionths(energy)));
        let phases = self
            .phases
            .iter()
            .map(|(phase, &energy)| sample([("phase", (*phase).to_owned())], Number::Millionths(energy)));
        let watts = last.iter().flat_map(|last| &last.watts);
        let watts = watts.map(|(source, watts)| sample(labels(source), Number::Real(*watts)));
        let carbon =
            self.grams.map(|grams| sample([("scope", "operational".to_owned())], Number::Real(grams)));
        let intensity = run.map(|run| {
            let labels = [("zone", run.grid_zone.clone()), ("basis", run.grid_basis.to_owned())];
            sample(labels, Number::Real(run.grid_grams_per_kwh))
        });
        let values = [
            (&catalogue::BUILD, vec![build()]),
            (&catalogue::TOKENS, single(count(self.num_tokens))),
            (&catalogue::STEPS, single(count(self.num_steps))),
            (&catalogue::ENERGY, energy.collect()),
            (&catalogue::CARBON, carbon.into_iter().collect()),
            (&catalogue::PHASE_ENERGY, phases.collect()),
            (&catalogue::UNATTRIBUTED_ENERGY, single(with_energy(Number::Millionths(self.unattributed)))),
            (&catalogue::SENSOR_RESETS, single(with_energy(Number::Count(self.num_sensor_resets)))),
            (&catalogue::DROPPED_TOKENS, single(sparse.map(|_| Number::Count(self.num_dropped)))),
            (&catalogue::LOSS, of_last(|last| last.loss)),
            (&catalogue::VALIDATION_LOSS, single(self.validation_loss.map(Number::Real))),
            (&catalogue::LEARNING_RATE, of_last(|last| last.learning_rate)),
            (&catalogue::BATCH_TOKENS, single(last.map(|last| Number::Count(last.num_tokens)))),
            (&catalogue::ACTIVE_EXPERTS, single(sparse.map(|last| Number::Real(last.active_experts)))),
            (&catalogue::POWER, watts.collect()),
            (&catalogue::GRID_INTENSITY, intensity.into_iter().collect()),
            (&catalogue::UTILIZATION, of_last(|last| last.utilization)),
            (&catalogue::EXPERT_LOAD_CV, of_layers(|stats| stats.load_cv)),
            (&catalogue::ROUTING_ENTROPY, of_layers(|stats| stats.routing_entropy_nats)),
        ];
        let histograms =
            [(&catalogue::STEP_DURATION, &self.durations), (&catalogue::STEP_ENERGY, &self.energies)];
        let histograms = histograms.into_iter().filter(|(_, histogram)| histogram.count() > 0);
        let histograms = histograms
            .map(|(metric, histogram)| Family { metric, samples: Samples::Histogram(histogram.clone()) });
        let values = values.into_iter().filter(|(_, samples)| !samples.is_empty());
        let values = values.map(|(metric, samples)| Family { metric, samples: Samples::Values(samples) });
        let run_id = run.map_or_else(String::new, |run| run.run_id.clone());
        Exposition { run_id, families: histograms.chain(values).collect() }
    }
}

fn source(part: &DomainEnergy) -> Source {
    (Arc::clone(&part.domain), part.provenance.as_str())
}

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
