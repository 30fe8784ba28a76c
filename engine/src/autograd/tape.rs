//! The tape itself: values, records, and the walk back.

use wattle_kernels::Tensor;
use wattle_kernels::ops::elementwise;
use wattle_router::{PendingLosses, Result};

use crate::autograd::{Phase, PhaseClock};
use crate::model::ParameterStore;

/// A value on the tape. Clones share the tensor.
#[derive(Clone, Debug)]
pub struct Var {
    pub(super) id: usize,
    /// The value.
    pub value: Tensor,
}

/// What the losses of one forward pass came to. Each is already scaled as it enters the gradient.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// Sum of the tokens' cross-entropy times its scale, in nats.
    pub cross_entropy: f64,
    /// Load-balancing losses of all layers times coefficient and scale.
    pub balance: f64,
    /// Router z-losses of all layers times coefficient and scale.
    pub z: f64,
}

impl Losses {
    /// The number whose gradient the backward pass computes.
    pub fn total(&self) -> f64 {
        self.cross_entropy + self.balance + self.z
    }
}

/// Records one forward pass over a store of parameters and computes its gradients.
///
/// Losses are the roots: each takes its scale when it is made, and their sum is what [`Tape::backward`] descends.
pub struct Tape<'p> {
    pub(super) parameters: &'p mut ParameterStore,
    pub(super) losses: Losses,
    /// What the routers pay times its scale, not yet among the losses.
    pub(super) pending: Vec<(PendingLosses, f32)>,
    records: Option<Vec<Record>>,
    num_vars: usize,
    clock: PhaseClock,
    phase: Phase,
}

struct Record {
    phase: Phase,
    backward: BackwardFn,
}

type BackwardFn = Box<dyn FnOnce(&mut Backward) -> Result<()>>;

/// What a recorded operation works on while the tape plays back.
pub(super) struct Backward<'p> {
    pub(super) parameters: &'p mut ParameterStore,
    pub(super) clock: &'p mut PhaseClock,
    gradients: Vec<Option<Tensor>>,
}

impl<'p> Tape<'p> {
    /// A tape that records for a backward pass; time goes on `clock`.
    pub fn recording(parameters: &'p mut ParameterStore, clock: PhaseClock) -> Self {
        Self::new(parameters, Some(Vec::new()), clock)
    }

    /// A tape that only computes: for evaluation and generation.
    pub fn forward_only(parameters: &'p mut ParameterStore) -> Self {
        Self::new(parameters, None, PhaseClock::start(Phase::Head))
    }

    fn new(parameters: &'p mut ParameterStore, records: Option<Vec<Record>>, clock: PhaseClock) -> Self {
        Tape {
            parameters,
            losses: Losses::default(),
            pending: Vec::new(),
            records,
            num_vars: 0,
            clock,
            phase: Phase::Head,
        }
    }

    /// From here on, time and recorded operations belong to `phase`.
    pub fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.clock.enter(phase);
    }

    /// The losses so far. Waits for a device that still computes them.
    ///
    /// # Errors
    /// A copy from a device that fails.
    pub fn losses(&mut self) -> Result<Losses> {
        for (pending, scale) in self.pending.drain(..) {
            let losses = pending.read()?;
            self.losses.balance += f64::from(losses.balance) * f64::from(scale);
            self.losses.z += f64::from(losses.z) * f64::from(scale);
        }
        Ok(self.losses)
    }

    /// Ends the pass without its gradients.
    pub fn into_clock(self) -> PhaseClock {
        self.clock
    }

    pub(super) fn clock(&mut self) -> &mut PhaseClock {
        &mut self.clock
    }

    /// A value that needs no gradient of its own: an input.
    pub fn input(&mut self, value: Tensor) -> Var {
        self.var(value)
    }

    /// Walks back over the records: afterwards every parameter's gradient holds its sum. Gives the clock back.
    ///
    /// # Errors
    /// Any kernel error; the gradients are then incomplete.
    pub fn backward(mut self) -> Result<PhaseClock> {
        let records = self.records.take().unwrap_or_default();
        let mut walk = Backward {
            parameters: self.parameters,
            clock: &mut self.clock,
            gradients: (0..self.num_vars).map(|_| None).collect(),
        };
        for record in records.into_iter().rev() {
            walk.clock.enter(record.phase);
            (record.backward)(&mut walk)?;
        }
        Ok(self.clock)
    }

    pub(super) fn is_recording(&self) -> bool {
        self.records.is_some()
    }

    pub(super) fn var(&mut self, value: Tensor) -> Var {
        self.num_vars += 1;
        Var { id: self.num_vars - 1, value }
    }

    /// Keeps `backward` for the walk back, unless this tape only computes.
    pub(super) fn record(&mut self, backward: impl FnOnce(&mut Backward) -> Result<()> + 'static) {
        let phase = self.phase;
        if let Some(records) = &mut self.records {
            records.push(Record { phase, backward: Box::new(backward) });
        }
    }
}

impl Backward<'_> {
    /// The gradient of a value, complete by the time its producer asks; none when nothing used the value.
    pub(super) fn take(&mut self, id: usize) -> Option<Tensor> {
        self.gradients[id].take()
    }

    /// Puts the gradient of a value in place; whoever calls has taken what was there and added onto it.
    pub(super) fn put(&mut self, id: usize, gradient: Tensor) {
        debug_assert!(self.gradients[id].is_none(), "a gradient would be lost");
        self.gradients[id] = Some(gradient);
    }

    /// Adds to the gradient of a value.
    pub(super) fn add(&mut self, id: usize, gradient: Tensor) -> Result<()> {
        match &mut self.gradients[id] {
            Some(sum) => Ok(elementwise::add_assign(sum, &gradient)?),
            slot => {
                *slot = Some(gradient);
                Ok(())
            }
        }
    }
}
