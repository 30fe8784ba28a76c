//! What the run has come to so far: written once a step, read once a scrape.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use wattle_energy::attribution::OTHER_PHASE;
use wattle_energy::{DomainEnergy, WindowKind};
use wattle_router::RoutingStats;

use super::RunFacts;
use super::histogram::{Exemplar, Histogram};
use crate::telemetry::{Priced, StepMetrics};

/// All values. What is not known yet has no value, which is not 0.
#[derive(Clone, Debug)]
pub(super) struct State {
    /// None until the run's first step is near.
    pub(super) run: Option<RunFacts>,
    pub(super) num_steps: u64,
    pub(super) num_tokens: u64,
    pub(super) num_dropped: u64,
    /// By domain and source, in microjoules. Empty until a sensor was read.
    pub(super) energy: BTreeMap<Source, u64>,
    pub(super) grams: Option<f64>,
    /// In microjoules.
    pub(super) phases: BTreeMap<&'static str, u64>,
    /// In microjoules.
    pub(super) unattributed: u64,
    pub(super) num_sensor_resets: u64,
    pub(super) durations: Histogram,
    pub(super) energies: Histogram,
    pub(super) validation_loss: Option<f64>,
    pub(super) last: Option<LastStep>,
}

/// What draws energy and how it is known.
pub(super) type Source = (Arc<str>, &'static str);

/// The numbers of the last step.
#[derive(Clone, Debug)]
pub(super) struct LastStep {
    pub(super) loss: f64,
    pub(super) learning_rate: f64,
    pub(super) num_tokens: u64,
    pub(super) active_experts: f64,
    pub(super) utilization: f64,
    pub(super) watts: Vec<(Source, f64)>,
    /// One entry a sparse layer.
    pub(super) routing: Vec<RoutingStats>,
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
}

fn source(part: &DomainEnergy) -> Source {
    (Arc::clone(&part.domain), part.provenance.as_str())
}
