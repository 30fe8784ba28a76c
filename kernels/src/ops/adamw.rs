//! AdamW (Loshchilov and Hutter, arXiv:1711.05101) over all parameters at once: their gradients' norm, clipping, and Adam
//! with decoupled weight decay.
//!
//! norm = grad_scale·sqrt(Σ grad²) over all tensors, and c = grad_scale·min(1, max_norm / norm). With g = c·grad at
//! update n: m = β1·m + (1 - β1)·g; v = β2·v + (1 - β2)·g²; w = w·(1 - lr·decay) - lr·m̂ / (sqrt(v̂) + ε) with
//! m̂ = m / (1 - β1ⁿ) and v̂ = v / (1 - β2ⁿ). A norm that is not finite leaves everything as it was and is no update.
//! Shapes: any, the same for weight (f32), grad (f32), both moments (f32 or bf16) and the bf16 copy of the new weight.
//! On a GPU the norm, the clipping and the decision are the device's own: no step waits for it, and [`Outcome::read`]
//! does when somebody wants to know.
//! Napkin: 4 bytes a parameter for the norm and 28 for the update (w, m, v in and out, grad in), 20 with bf16 moments,
//! 2 more with the copy; some 15 FLOPs; memory-bound.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{check, reduce};
use crate::profile::{self, Work};
use crate::tensor::Tensor;
use crate::{cpu, cuda};

/// Moves every parameter, unless the norm of all gradients is not finite.
///
/// # Errors
/// Shapes, dtypes or devices that do not fit; a setting out of its range; out of memory when a tensor is shared.
pub fn step(state: &mut State, settings: &AdamW, slots: &mut [Slot]) -> Result<Outcome> {
    settings.check()?;
    let moments = slots.first().map_or(DType::F32, |slot| slot.first_moment.dtype());
    slots.iter().try_for_each(|slot| slot.check(moments))?;
    match slots.first().map(|slot| slot.weight.device()) {
        Some(device @ Device::Cuda(_)) => {
            let bytes = || slots.iter().map(Slot::bytes_moved).sum();
            let _span = profile::span(OP, DType::F32, || Work::pass(bytes()));
            let group = state.on_gpu(device)?;
            Ok(Outcome(Source::Gpu(group.step(settings, moments, slots)?)))
        }
        Some(Device::Cpu) | None => {
            Ok(Outcome(Source::Host(step_on_host(state.on_host()?, settings, slots)?)))
        }
    }
}

/// The settings of a step, laid out as the kernels take them.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct AdamW {
    /// Step size.
    pub learning_rate: f32,
    /// Decay of the first moment, in [0, 1).
    pub beta1: f32,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f32,
    /// Keeps the divisor from zero.
    pub epsilon: f32,
    /// The norm that longer gradients are scaled down to; 0 switches that off.
    pub max_norm: f32,
    /// Multiplies every gradient first, so that averaging costs no pass of its own.
    pub grad_scale: f32,
}

/// One parameter of a step.
#[derive(Debug)]
pub struct Slot<'a> {
    /// f32
    pub weight: &'a mut Tensor,
    /// f32
    pub grad: &'a Tensor,
    /// Running mean of the gradient, f32 or bf16: the same for all parameters. Zeros at first.
    pub first_moment: &'a mut Tensor,
    /// Running mean of the gradient's square, as the first moment.
    pub second_moment: &'a mut Tensor,
    /// Gains the new weight in bf16, in the same pass.
    pub compute_copy: Option<&'a mut Tensor>,
    /// Share of the weight that a step of learning rate 1 removes.
    pub weight_decay: f32,
}

/// What steps hand on beside the parameters: how many updates there were, and on a GPU the tables of the tensors, which
/// are made anew only when one of them moved.
#[derive(Debug)]
pub struct State(Place);

#[derive(Debug)]
enum Place {
    Host { num_updates: u64 },
    Gpu(Box<cuda::ops::adamw::Group>),
}

/// What a step did: known at once on the host, and on a GPU when somebody asks.
#[derive(Clone, Debug)]
pub struct Outcome(Source);

#[derive(Clone, Debug)]
enum Source {
    Host(Update),
    Gpu(cuda::ops::adamw::Report),
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Euclidean norm of all gradients times the gradient scale, before clipping.
    pub gradient_norm: f64,
    /// False when the norm was not finite: nothing was moved.
    pub applied: bool,
}

const OP: &str = "adamw";

impl Outcome {
    /// Waits for a GPU's work up to that step.
    ///
    /// # Errors
    /// [`Error::Cuda`] when that failed.
    pub fn read(&self) -> Result<Update> {
        match &self.0 {
            Source::Host(update) => Ok(*update),
            Source::Gpu(report) => {
                let state = report.read()?;
                Ok(Update { gradient_norm: state.norm, applied: state.applies })
            }
        }
    }
}

impl State {
    /// Before the first step of a run that has `num_updates` behind it.
    pub fn new(num_updates: u64) -> Self {
        State(Place::Host { num_updates })
    }

    /// Updates so far: steps that were applied. On a GPU this waits for the last one.
    ///
    /// # Errors
    /// [`Error::Cuda`] when that failed.
    pub fn num_updates(&self) -> Result<u64> {
        match &self.0 {
            Place::Host { num_updates } => Ok(*num_updates),
            Place::Gpu(group) => group.num_updates(),
        }
    }

    /// Where the parameters are, there the state is.
    fn on_gpu(&mut self, device: Device) -> Result<&mut cuda::ops::adamw::Group> {
        if !matches!(&self.0, Place::Gpu(group) if group.device() == device) {
            let group = cuda::ops::adamw::Group::new(device, self.num_updates()?)?;
            self.0 = Place::Gpu(Box::new(group));
        }
        match &mut self.0 {
            Place::Gpu(group) => Ok(group),
            Place::Host { .. } => unreachable!("the state was just brought to a GPU"),
        }
    }

    fn on_host(&mut self) -> Result<&mut u64> {
        if let Place::Gpu(group) = &self.0 {
            self.0 = Place::Host { num_updates: group.num_updates()? };
        }
        match &mut self.0 {
            Place::Host { num_updates } => Ok(num_updates),
            Place::Gpu(_) => unreachable!("the state was just brought to the host"),
        }
    }
}

impl AdamW {
    fn check(&self) -> Result<()> {
        let refuse = |what, got: f32, expected: &str| {
            Err(Error::Value { op: OP, what, got: got.to_string(), expected: expected.to_owned() })
        };
        for (what, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return refuse(what, beta, "at least 0 and below 1");
            }
        }
        if self.max_norm.is_nan() || self.max_norm < 0.0 {
            return refuse("max_norm", self.max_norm, "0 (off) or more");
        }
        Ok(())
    }
}

impl Slot<'_> {
    fn check(&self, moments: DType) -> Result<()> {
        let shape = self.weight.shape();
        check::dtype(OP, "weight", self.weight, DType::F32)?;
        check::shape(OP, "grad", self.grad, shape)?;
        check::dtype(OP, "grad", self.grad, DType::F32)?;
        for (what, moment) in [("first_moment", &*self.first_moment), ("second_moment", &*self.second_moment)]
        {
            check::float(OP, what, moment)?;
            check::shape(OP, what, moment, shape)?;
            check::dtype(OP, what, moment, moments)?;
        }
        if let Some(copy) = &self.compute_copy {
            check::shape(OP, "compute_copy", copy, shape)?;
            check::dtype(OP, "compute_copy", copy, DType::Bf16)?;
        }
        Ok(())
    }

    /// By the update; the norm reads the gradient once more.
    fn bytes_moved(&self) -> usize {
        let copied = self.compute_copy.as_ref().map_or(0, |copy| copy.size_in_bytes());
        3 * self.weight.size_in_bytes() + 4 * self.first_moment.size_in_bytes() + copied
    }
}

fn step_on_host(num_updates: &mut u64, settings: &AdamW, slots: &mut [Slot]) -> Result<Update> {
    let gradients: Vec<&Tensor> = slots.iter().map(|slot| slot.grad).collect();
    let gradient_norm = reduce::global_norm(&gradients)? * f64::from(settings.grad_scale.abs());
    if !gradient_norm.is_finite() {
        return Ok(Update { gradient_norm, applied: false });
    }
    let clip = match settings.max_norm {
        0.0 => 1.0,
        max_norm => reduce::clip_factor(gradient_norm, max_norm),
    };
    let scaled = AdamW { grad_scale: clip * settings.grad_scale, ..*settings };
    for slot in slots {
        let _span = profile::span(OP, DType::F32, || Work::pass(slot.bytes_moved()));
        cpu::adamw::step(&scaled, *num_updates + 1, slot)?;
    }
    *num_updates += 1;
    Ok(Update { gradient_norm, applied: true })
}

#[cfg(test)]
mod tests;
