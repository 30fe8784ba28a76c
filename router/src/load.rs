//! What the routing of one layer amounted to over an optimizer step.

use wattle_kernels::ops::routing_load::{self, Tally};
use wattle_kernels::{Device, Tensor};

use crate::error::Result;
use crate::route::Routing;

/// Counts over the micro-batches of an optimizer step, for the global-batch loss, the expert bias and the statistics
/// of one layer.
///
/// The counts stay on the device that routed the tokens. [`LoadAccumulator::take`] hands a finished step out, to be read
/// when that no longer makes a GPU wait: a step later.
#[derive(Clone, Debug)]
pub struct LoadAccumulator {
    tally: Tally,
    device: Device,
    num_tokens: u64,
}

/// What was counted, on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    /// Assignments per expert, dropped ones included.
    pub tokens_per_expert: Vec<u64>,
    /// Assignments that each expert computed: its load without the dropped ones.
    pub computed_per_expert: Vec<u64>,
    /// Tokens routed.
    pub num_tokens: u64,
    /// The entropy of each token's probabilities over the experts, summed over tokens, in nats.
    pub entropy_nats: f64,
}

impl LoadAccumulator {
    /// Nothing counted yet.
    ///
    /// # Errors
    /// Out of memory; a device that is not there.
    pub fn new(num_experts: usize, device: Device) -> Result<Self> {
        Ok(LoadAccumulator { tally: Tally::new(num_experts, device)?, device, num_tokens: 0 })
    }

    /// Counts one micro-batch. To be called once for each: a forward pass that is computed again for its activations
    /// must not count twice.
    ///
    /// # Errors
    /// Another number of experts; out of memory.
    pub fn add(&mut self, routing: &Routing) -> Result<()> {
        self.tally.add(&routing.plan, &routing.routed.entropy_t)?;
        self.num_tokens += routing.plan.num_tokens() as u64;
        Ok(())
    }

    /// i32 `[e]`: assignments per expert so far, dropped ones included.
    ///
    /// # Errors
    /// None that an accumulator can give.
    pub fn load_e(&self) -> Result<Tensor> {
        Ok(self.tally.load_e()?)
    }

    /// Moves each expert's bias by `rate` towards an even load: up where the expert had fewer tokens than the mean, down
    /// where it had more, not at all where it had the mean. A GPU does that by itself, without a count on the host.
    ///
    /// To be called once per optimizer step with the counts of the whole step, of all micro-batches and all ranks. The
    /// bias (f32 `[e]`) belongs in the checkpoint.
    ///
    /// # Errors
    /// A bias of another length or device.
    pub fn move_bias(&self, bias_e: &mut Tensor, rate: f32) -> Result<()> {
        Ok(routing_load::update_bias(bias_e, &self.tally.load_e()?, rate)?)
    }

    /// Ends the optimizer step: gives its counts and starts the next one.
    ///
    /// # Errors
    /// Out of memory.
    pub fn take(&mut self) -> Result<Self> {
        let next = Self::new(self.tally.num_experts(), self.device)?;
        Ok(std::mem::replace(self, next))
    }

    /// The counts. Waits for a GPU until it has counted them.
    ///
    /// # Errors
    /// A copy that fails.
    pub fn read(&self) -> Result<Load> {
        let counts = self.tally.read()?;
        Ok(Load {
            tokens_per_expert: counts.tokens_per_expert,
            computed_per_expert: counts.computed_per_expert,
            num_tokens: self.num_tokens,
            entropy_nats: counts.entropy_nats,
        })
    }
}

impl Load {
    /// Assignments dropped for lack of capacity.
    pub fn num_dropped(&self) -> u64 {
        self.tokens_per_expert.iter().sum::<u64>() - self.computed_per_expert.iter().sum::<u64>()
    }
}
