//! Between a live run and a checkpoint: what is written, and how it is put back.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wattle_kernels::ops::adamw;
use wattle_kernels::{DType, Tensor};

use crate::checkpoint::{self, CheckpointError, NamedTensor, Progress, State};
use crate::model::{ParameterStore, RoutingState};
use crate::train::setup::Setup;
use crate::train::{Learner, StepReport, TrainError};

/// What begins so only the optimizer reads.
const OPTIMIZER: &str = "optimizer.";
const FIRST_MOMENT: &str = "optimizer.first_moment.";
const SECOND_MOMENT: &str = "optimizer.second_moment.";

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Optimizer steps, skipped ones included.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// The first sample not yet seen.
    pub next_sample: u64,
    /// Steps skipped because they were not finite.
    pub nonfinite_steps: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Tokens per expert since the run began, per sparse layer.
    pub expert_tokens: Vec<Vec<u64>>,
    /// The text that it trains on, as [`TokenCorpus::fingerprint`](crate::data::TokenCorpus::fingerprint); empty before
    /// any.
    pub text: String,
}

impl Position {
    /// Moves past a step.
    pub(super) fn after_step(&mut self, report: &StepReport, num_samples: u64) {
        self.step += 1;
        self.tokens += report.num_tokens;
        self.next_sample += num_samples;
        self.nonfinite_steps += u64::from(!report.applied);
        if self.expert_tokens.is_empty() {
            self.expert_tokens = report.tokens_per_expert.iter().map(|layer| vec![0; layer.len()]).collect();
        }
        for (sums, counts) in self.expert_tokens.iter_mut().zip(&report.tokens_per_expert) {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }
}

/// Writes a checkpoint of the run and returns its directory.
pub(super) fn save(setup: &Setup) -> Result<PathBuf, TrainError> {
    let position = &setup.position;
    let mut extra = serde_json::Map::new();
    extra.insert("seconds".into(), position.seconds.into());
    extra.insert("expert_tokens".into(), position.expert_tokens.clone().into());
    extra.insert("text_blake3".into(), position.text.clone().into());
    let state = State {
        tensors: model_tensors(&setup.learner.store, &setup.learner.routing),
        progress: Progress {
            step: position.step,
            tokens: position.tokens,
            next_sample: position.next_sample,
            nonfinite_steps: position.nonfinite_steps,
            seed: setup.config.run.seed,
        },
        config_toml: setup.config_toml.clone(),
        extra,
    };
    Ok(checkpoint::save(&setup.run.checkpoints(), &state, setup.config.checkpoint.keep)?)
}

/// Weights, optimizer moments where there are some, and router biases, under their names in checkpoints.
fn model_tensors(store: &ParameterStore, routing: &[RoutingState]) -> Vec<NamedTensor> {
    let named = |name: String, tensor: &Tensor| NamedTensor { name, tensor: tensor.clone() };
    let weights = store.iter().map(|p| named(p.name.clone(), &p.master));
    let moments = store.iter().flat_map(|p| {
        p.moments.iter().flat_map(|[first, second]| {
            [
                named(format!("{FIRST_MOMENT}{}", p.name), first),
                named(format!("{SECOND_MOMENT}{}", p.name), second),
            ]
        })
    });
    let biases = routing
        .iter()
        .enumerate()
        .filter_map(|(layer, state)| Some(named(router_bias_name(layer), state.bias.as_ref()?)));
    weights.chain(moments).chain(biases).collect()
}

/// Name of the router bias of a sparse layer, counted among the sparse layers.
pub(crate) fn router_bias_name(layer: usize) -> String {
    format!("router.bias.{layer}")
}

/// Puts a checkpoint's state into a learner of the same shape and returns the position.
pub(super) fn restore(learner: &mut Learner, state: State, from: &Path) -> Result<Position, TrainError> {
    let progress = state.progress;
    let expert_tokens = state.extra.get("expert_tokens").cloned().unwrap_or_default();
    let position = Position {
        step: progress.step,
        tokens: progress.tokens,
        next_sample: progress.next_sample,
        nonfinite_steps: progress.nonfinite_steps,
        seconds: state.extra.get("seconds").and_then(serde_json::Value::as_f64).unwrap_or(0.0),
        expert_tokens: serde_json::from_value(expert_tokens).unwrap_or_default(),
        text: state
            .extra
            .get("text_blake3")
            .and_then(serde_json::Value::as_str)
            .unwrap_or_default()
            .to_owned(),
    };
    let num_updates = progress.step - progress.nonfinite_steps;
    learner.updates = adamw::State::new(num_updates);
    let mut tensors = Tensors { tensors: state.tensors, from };
    restore_weights(&mut learner.store, &mut tensors)?;
    // A first step that was skipped leaves moments of zero.
    if num_updates > 0 || tensors.tensors.iter().any(|tensor| !is_of_model(&tensor.name)) {
        for parameter in learner.store.iter_mut() {
            let shape = parameter.master.shape();
            let first = tensors.take(&format!("{FIRST_MOMENT}{}", parameter.name), shape)?;
            let second = tensors.take(&format!("{SECOND_MOMENT}{}", parameter.name), shape)?;
            parameter.moments = Some([first, second]);
        }
    }
    restore_routing(&mut learner.routing, &mut tensors)?;
    tensors.expect_empty()?;
    Ok(position)
}

/// Whether a tensor of a checkpoint is the model's and not the optimizer's: two thirds of a checkpoint are not.
pub(crate) fn is_of_model(name: &str) -> bool {
    !name.starts_with(OPTIMIZER)
}

/// Puts a checkpoint's weights and router biases into a model that will only compute.
pub(crate) fn restore_model(
    store: &mut ParameterStore,
    routing: &mut [RoutingState],
    state: State,
    from: &Path,
) -> Result<(), CheckpointError> {
    let mut tensors = Tensors { tensors: state.tensors, from };
    restore_weights(store, &mut tensors)?;
    restore_routing(routing, &mut tensors)
}

fn restore_weights(store: &mut ParameterStore, tensors: &mut Tensors) -> Result<(), CheckpointError> {
    for parameter in store.iter_mut() {
        parameter.master = tensors.take(&parameter.name, parameter.master.shape())?;
    }
    store.refresh_compute_copies().map_err(|error| tensors.corrupt(None, error.to_string()))
}

fn restore_routing(routing: &mut [RoutingState], tensors: &mut Tensors) -> Result<(), CheckpointError> {
    for (layer, state) in routing.iter_mut().enumerate() {
        if let Some(bias) = &mut state.bias {
            *bias = tensors.take(&router_bias_name(layer), bias.shape())?;
        }
    }
    Ok(())
}

/// The tensors of a checkpoint that are not yet in place.
struct Tensors<'a> {
    tensors: Vec<NamedTensor>,
    from: &'a Path,
}

impl Tensors<'_> {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, CheckpointError> {
        let Some(index) = self.tensors.iter().position(|tensor| tensor.name == name) else {
            return Err(self.corrupt(Some(name), "is missing; the model has it".to_owned()));
        };
        // The order of writing is the order of taking, so the search ends at once and this moves little.
        let tensor = self.tensors.remove(index).tensor;
        if tensor.shape() != shape || tensor.dtype() != DType::F32 {
            let found = format!("{} {:?}", tensor.dtype(), tensor.shape());
            return Err(self.corrupt(Some(name), format!("is {found}, the model has f32 {shape:?}")));
        }
        Ok(tensor)
    }

    fn expect_empty(&self) -> Result<(), CheckpointError> {
        match self.tensors.first() {
            None => Ok(()),
            Some(tensor) => Err(self.corrupt(Some(&tensor.name), "is not part of this model".to_owned())),
        }
    }

    fn corrupt(&self, tensor: Option<&str>, what: String) -> CheckpointError {
        CheckpointError::Corrupt { path: self.from.to_owned(), tensor: tensor.map(str::to_owned), what }
    }
}
