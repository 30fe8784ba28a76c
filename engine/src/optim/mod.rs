//! The optimizer: gradient norm, clipping and AdamW over a store of parameters, and the learning-rate schedule.

pub mod config;
pub mod schedule;

use wattle_kernels::ops::adamw::{self, AdamW};
use wattle_kernels::ops::reduce;
use wattle_kernels::{DType, Device, Result, Tensor};

use crate::model::ParameterStore;
use crate::optim::config::OptimizerConfig;

/// What an update did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Euclidean norm of all gradients before clipping.
    pub gradient_norm: f64,
    /// False when the norm was not finite: the weights were left alone.
    pub applied: bool,
}

/// Clips the gradients to the configured norm and moves every parameter by AdamW. `update_number` counts applied
/// updates from 1, for the bias correction. A non-finite gradient norm leaves everything as it was.
///
/// # Errors
/// Out of memory for the moments at the first update.
pub fn step(
    store: &mut ParameterStore,
    config: &OptimizerConfig,
    learning_rate: f64,
    update_number: u64,
) -> Result<Update> {
    let gradients: Vec<&Tensor> = store.iter().filter_map(|parameter| parameter.gradient.as_ref()).collect();
    let gradient_norm = reduce::global_norm(&gradients)?;
    if !gradient_norm.is_finite() {
        return Ok(Update { gradient_norm, applied: false });
    }
    let grad_scale = match config.clip_norm {
        0.0 => 1.0,
        max_norm => reduce::clip_factor(gradient_norm, max_norm as f32),
    };
    for parameter in store.iter_mut() {
        let Some(gradient) = &parameter.gradient else { continue };
        let [first, second] = match &mut parameter.moments {
            Some(moments) => moments,
            slot => slot.insert([zeros_like(gradient)?, zeros_like(gradient)?]),
        };
        let rule = AdamW {
            learning_rate: learning_rate as f32,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            epsilon: config.epsilon as f32,
            weight_decay: if parameter.decays { config.weight_decay as f32 } else { 0.0 },
            grad_scale,
        };
        let (weight, copy) = (&mut parameter.master, parameter.compute.as_mut());
        adamw::step(&rule, update_number, weight, gradient, first, second, copy)?;
    }
    Ok(Update { gradient_norm, applied: true })
}

fn zeros_like(tensor: &Tensor) -> Result<Tensor> {
    Tensor::zeros(tensor.shape(), DType::F32, Device::Cpu)
}
