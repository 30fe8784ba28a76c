//! How evenly and how decidedly a layer routed.

use crate::load::Load;

/// Statistics of one layer over an optimizer step. A step without tokens has all of them 0 but `dead_experts`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoutingStats {
    /// Standard deviation of the experts' load over its mean; 0 is even.
    pub load_cv: f64,
    /// The fullest expert's load over the mean; 1 is even, E / K the most there can be.
    pub max_load_ratio: f64,
    /// Entropy of the load over its largest value ln E; 1 is even, 0 is one expert for all. 1 for a single expert.
    pub load_entropy: f64,
    /// Mean over tokens of the entropy of their probabilities over the experts, in nats: 0 is certain, ln E is none
    /// preferred.
    pub routing_entropy_nats: f64,
    /// (token, expert) assignments dropped for lack of capacity.
    pub dropped_tokens: u64,
    /// Experts that no token chose.
    pub dead_experts: usize,
}

impl RoutingStats {
    /// The statistics of what was counted.
    pub fn new(load: &Load) -> Self {
        let num_experts = load.tokens_per_expert.len() as f64;
        let loads = || load.tokens_per_expert.iter().map(|&tokens| tokens as f64);
        let total: f64 = loads().sum();
        let mean = total / num_experts;
        let variance = loads().map(|load| (load - mean).powi(2)).sum::<f64>() / num_experts;
        let entropy =
            loads().filter(|&load| load > 0.0).map(|load| load / total).map(|p| -p * p.ln()).sum::<f64>();
        let dead_experts = loads().filter(|&load| load == 0.0).count();
        let or_zero = |has_any: bool, value: f64| if has_any { value } else { 0.0 };
        RoutingStats {
            load_cv: or_zero(total > 0.0, variance.sqrt() / mean),
            max_load_ratio: or_zero(total > 0.0, loads().fold(0.0, f64::max) / mean),
            load_entropy: or_zero(
                total > 0.0,
                if num_experts > 1.0 { entropy / num_experts.ln() } else { 1.0 },
            ),
            routing_entropy_nats: or_zero(load.num_tokens > 0, load.entropy_nats / load.num_tokens as f64),
            dropped_tokens: load.num_dropped(),
            dead_experts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(load_e: &[u64]) -> RoutingStats {
        let (tokens_per_expert, computed_per_expert) = (load_e.to_vec(), load_e.to_vec());
        RoutingStats::new(&Load { tokens_per_expert, computed_per_expert, ..Load::default() })
    }

    #[test]
    fn an_even_load_has_no_spread() {
        let even = stats(&[5; 4]);
        assert_eq!((even.load_cv, even.max_load_ratio, even.dead_experts), (0.0, 1.0, 0));
        assert!((even.load_entropy - 1.0).abs() < 1e-12);
    }

    #[test]
    fn one_expert_for_all_is_the_widest_spread() {
        let one = stats(&[0, 8, 0, 0]);
        // Mean 2, deviations -2, 6, -2, -2: variance 12.
        assert_eq!((one.load_cv, one.max_load_ratio), (12f64.sqrt() / 2.0, 4.0));
        assert_eq!((one.load_entropy, one.dead_experts), (0.0, 3));
    }

    #[test]
    fn a_single_expert_and_a_step_without_tokens_have_finite_statistics() {
        let single = stats(&[3]);
        assert_eq!((single.load_cv, single.max_load_ratio, single.load_entropy), (0.0, 1.0, 1.0));
        let none = stats(&[0; 3]);
        assert_eq!((none.load_cv, none.max_load_ratio, none.load_entropy), (0.0, 0.0, 0.0));
        assert_eq!((none.routing_entropy_nats, none.dead_experts), (0.0, 3));
    }
}
