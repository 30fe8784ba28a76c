//! The sparse feed-forward block: a router chooses experts for each token, shared experts see all tokens.

use wattle_kernels::{DType, Device, Tensor};
use wattle_router::{LoadAccumulator, Result, RouterConfig, Scoring};

use crate::autograd::{Phase, RoutedExperts, Tape, Var};
use crate::model::config::MoeConfig;
use crate::model::decoder::Builder;
use crate::model::{FeedForward, ParamId};

/// One sparse layer: x `[b, t, d]` -> `[b, t, d]`.
#[derive(Debug)]
pub struct MoeLayer {
    router: ParamId,
    experts: RoutedExperts,
    shared: Option<FeedForward>,
    config: RouterConfig,
}

impl MoeLayer {
    /// Adds the layer's parameters under `name`.
    ///
    /// # Errors
    /// Out of memory.
    pub(super) fn new(build: &mut Builder, name: &str, d: usize, config: &MoeConfig) -> Result<Self> {
        let (e, f) = (config.num_experts, config.expert_ffn_size);
        Ok(MoeLayer {
            router: build.add_f32(&format!("{name}.router"), &[e, d], build.input_init())?,
            experts: RoutedExperts {
                gate_up: build.add(&format!("{name}.gate_up"), &[e, 2 * f, d], build.input_init())?,
                down: build.add(&format!("{name}.down"), &[e, d, f], build.output_init())?,
            },
            shared: match config.num_shared_experts {
                0 => None,
                n => Some(FeedForward::new(build, &format!("{name}.shared"), d, n * f)?),
            },
            config: config.router(),
        })
    }

    /// The layer's contribution to the residual stream.
    ///
    /// # Errors
    /// Any kernel error.
    pub(super) fn forward(
        &self,
        tape: &mut Tape,
        x_btd: &Var,
        state: &mut RoutingState,
        loss_scale: f32,
    ) -> Result<Var> {
        let shape = x_btd.value.shape().to_vec();
        let [b, t, d] = [shape[0], shape[1], shape[2]];
        tape.enter(Phase::Router);
        let x_td = tape.reshape(x_btd, &[b * t, d])?;
        let x_f32 = match x_td.value.dtype() {
            DType::F32 => x_td.clone(),
            _ => tape.cast(&x_td, DType::F32)?,
        };
        let logits = tape.linear(&x_f32, self.router)?;
        let RoutingState { bias, load, .. } = state;
        let (weights, routing) = tape.route(&logits, bias.as_ref(), &self.config, b, load, loss_scale)?;
        tape.enter(Phase::Experts);
        let mut y = tape.experts(&x_td, &weights, &routing, self.experts)?;
        if let Some(shared) = &self.shared {
            tape.enter(Phase::FeedForward);
            let dense = shared.forward(tape, &x_td)?;
            y = tape.add(&y, &dense)?;
        }
        tape.reshape(&y, &shape)
    }

    /// A new routing state for this layer.
    ///
    /// # Errors
    /// Out of memory.
    pub(super) fn new_state(&self) -> Result<RoutingState> {
        let num_experts = self.config.num_experts;
        // Sigmoid scores may bring a bias from elsewhere, even when it is not to move any more.
        let has_bias = self.config.bias_update_rate > 0.0 || self.config.scoring == Scoring::Sigmoid;
        let bias =
            if has_bias { Some(Tensor::zeros(&[num_experts], DType::F32, Device::Cpu)?) } else { None };
        let load = LoadAccumulator::new(num_experts, Device::Cpu)?;
        Ok(RoutingState { bias, load, rate: self.config.bias_update_rate })
    }
}

/// What one sparse layer's router carries from step to step, outside the gradient.
#[derive(Debug)]
pub struct RoutingState {
    /// Added to the scores for the choice alone; moved once per optimizer step.
    pub bias: Option<Tensor>,
    /// What was routed since the last [`RoutingState::take_load`].
    load: LoadAccumulator,
    rate: f32,
}

impl RoutingState {
    /// Closes an optimizer step: moves the bias against its load, which is given out.
    ///
    /// # Errors
    /// Out of memory.
    pub fn end_step(&mut self) -> Result<LoadAccumulator> {
        if let Some(bias) = &mut self.bias {
            self.load.move_bias(bias, self.rate)?;
        }
        self.take_load()
    }

    /// Gives out what was routed so far and starts anew, with the bias as it is: for passes that must not count.
    ///
    /// # Errors
    /// Out of memory.
    pub fn take_load(&mut self) -> Result<LoadAccumulator> {
        self.load.take()
    }
}
