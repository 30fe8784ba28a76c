//! What the routing of one layer amounted to over an optimizer step.

use wattle_kernels::ops::routing as ops;

use crate::error::Result;
use crate::route::Routing;

/// Counts over the micro-batches of an optimizer step, for the global-batch loss, the expert bias and the statistics
/// of one layer. Every field is a sum, so ranks combine theirs by adding them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadAccumulator {
    /// Assignments per expert, dropped ones included; as f32 for collectives, exact up to 2^24 tokens a step.
    pub load_e: Vec<f32>,
    /// Assignments that each expert computed: its load without the dropped ones.
    pub computed_e: Vec<u64>,
    /// Tokens routed.
    pub num_tokens: u64,
    /// Assignments dropped for lack of capacity.
    pub num_dropped: u64,
    /// The entropy of each token's probabilities over the experts, summed over tokens, in nats.
    pub entropy_nats: f64,
}

impl LoadAccumulator {
    /// Nothing counted yet.
    pub fn new(num_experts: usize) -> Self {
        LoadAccumulator {
            load_e: vec![0.0; num_experts],
            computed_e: vec![0; num_experts],
            ..LoadAccumulator::default()
        }
    }

    /// Counts one micro-batch. To be called once for each: a forward pass that is computed again for its activations
    /// must not count twice.
    ///
    /// # Errors
    /// Another number of experts; out of memory.
    pub fn add(&mut self, routing: &Routing) -> Result<()> {
        crate::balance::expect_len("load_e", &self.load_e, routing.plan.tokens_per_expert.len())?;
        for (load, &tokens) in self.load_e.iter_mut().zip(&routing.plan.tokens_per_expert) {
            *load += tokens as f32;
        }
        let offsets_e = routing.plan.offsets_e.data::<i32>()?;
        for (computed, rows) in self.computed_e.iter_mut().zip(offsets_e.windows(2)) {
            // Offsets never fall.
            *computed += (rows[1] - rows[0]) as u64;
        }
        self.num_tokens += routing.plan.num_tokens() as u64;
        self.num_dropped += routing.plan.num_dropped as u64;
        let entropy_t = ops::entropy(&routing.scores_te)?;
        self.entropy_nats += entropy_t.data::<f32>()?.iter().copied().map(f64::from).sum::<f64>();
        Ok(())
    }

    /// Starts the next optimizer step.
    pub fn reset(&mut self) {
        *self = LoadAccumulator::new(self.load_e.len());
    }
}
