//! The optimizer: gradient norm, clipping and AdamW over a store of parameters, and the learning-rate schedule.

pub mod config;
pub mod schedule;

use wattle_kernels::ops::adamw::{self, AdamW, Outcome, Slot, State};
use wattle_kernels::{DType, Result, Tensor};

use crate::model::ParameterStore;
use crate::optim::config::OptimizerConfig;

/// Clips the gradients to the configured norm and moves every parameter that has one by AdamW. A non-finite gradient
/// norm leaves everything as it was. On a GPU the outcome is known when it is read.
///
/// # Errors
/// Out of memory for the moments at the first update.
pub fn step(
    store: &mut ParameterStore,
    config: &OptimizerConfig,
    state: &mut State,
    learning_rate: f64,
) -> Result<Outcome> {
    let settings = AdamW {
        learning_rate: learning_rate as f32,
        beta1: config.beta1 as f32,
        beta2: config.beta2 as f32,
        epsilon: config.epsilon as f32,
        max_norm: config.clip_norm as f32,
        grad_scale: 1.0,
    };
    let mut slots = Vec::new();
    for parameter in store.iter_mut() {
        let Some(grad) = &parameter.gradient else { continue };
        let [first_moment, second_moment] = match &mut parameter.moments {
            Some(moments) => moments,
            slot => slot.insert([zeros_like(grad)?, zeros_like(grad)?]),
        };
        slots.push(Slot {
            weight: &mut parameter.master,
            grad,
            first_moment,
            second_moment,
            compute_copy: parameter.compute.as_mut(),
            weight_decay: if parameter.decays { config.weight_decay as f32 } else { 0.0 },
        });
    }
    adamw::step(state, &settings, &mut slots)
}

fn zeros_like(tensor: &Tensor) -> Result<Tensor> {
    Tensor::zeros(tensor.shape(), DType::F32, tensor.device())
}
