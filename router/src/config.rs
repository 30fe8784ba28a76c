//! The settings of routing, and the check of all of them at once.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How tokens choose experts and how the load is kept even.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RouterConfig {
    /// Routed experts in a layer.
    #[schemars(range(min = 1))]
    pub num_experts: usize,
    /// Experts that each token uses; at most `num_experts`.
    #[schemars(range(min = 1))]
    pub top_k: usize,
    /// Experts that every token uses beside the routed ones. They run as one dense feed-forward layer.
    pub num_shared_experts: usize,
    /// How logits become scores.
    pub scoring: Scoring,
    /// Divide the weights of a token's experts by their sum. With `top_k` 1 the weight is then 1 whatever the score,
    /// so that only the balance and z losses still teach the router.
    pub renormalise: bool,
    /// Factor on the weights of the experts (2.5 in DeepSeek-V3).
    #[schemars(range(min = 0.0))]
    pub routed_scaling_factor: f32,
    /// An expert takes at most this many times its fair share of tokens and drops the rest; none drops nothing.
    #[schemars(range(min = 0.0))]
    pub capacity_factor: Option<f32>,
    /// Over which tokens the load-balancing loss counts the load.
    pub balance_loss: BalanceLoss,
    /// Factor on the load-balancing loss; without meaning when `balance_loss` is none.
    #[schemars(range(min = 0.0))]
    pub balance_loss_coefficient: f32,
    /// Factor on the z-loss, the mean square of the logits' logsumexp; 0 turns it off.
    #[schemars(range(min = 0.0))]
    pub z_loss_coefficient: f32,
    /// How far an expert's bias moves in an optimizer step (aux-loss-free balancing; 1e-3 in DeepSeek-V3); 0 leaves
    /// the bias as it is. Made for sigmoid scores; with softmax it works too, but there a score is about
    /// 1 / `num_experts`, so choose the rate well below that.
    #[schemars(range(min = 0.0))]
    pub bias_update_rate: f32,
}

/// How logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// Softmax over the experts: they compete, and the scores of a token sum to 1.
    Softmax,
    /// A sigmoid for each expert by itself.
    Sigmoid,
}

/// Over which tokens the load-balancing loss counts the load of the experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BalanceLoss {
    /// No loss.
    None,
    /// The tokens of one micro-batch on one rank.
    MicroBatch,
    /// The tokens of each sequence by itself (DeepSeek-V3): the strictest.
    Sequence,
    /// All tokens of the optimizer step on all ranks (Qwen3): lets an expert specialise on a kind of text.
    GlobalBatch,
}

/// A setting that does not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field of [`RouterConfig`].
    pub key: &'static str,
    /// What is there, what was expected, and what to do.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

impl Default for RouterConfig {
    fn default() -> Self {
        RouterConfig {
            num_experts: 8,
            top_k: 2,
            num_shared_experts: 0,
            scoring: Scoring::Softmax,
            renormalise: true,
            routed_scaling_factor: 1.0,
            capacity_factor: None,
            balance_loss: BalanceLoss::GlobalBatch,
            balance_loss_coefficient: 0.01,
            z_loss_coefficient: 0.001,
            bias_update_rate: 0.0,
        }
    }
}

impl RouterConfig {
    /// Every problem of these settings; empty when they work.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, key: &'static str, message: String| {
            if !holds {
                problems.push(Problem { key, message });
            }
        };
        let (e, k) = (self.num_experts, self.top_k);
        require(
            e > 0,
            "num_experts",
            "is 0, expected at least 1; a model without routed experts needs no mixture-of-experts layer"
                .into(),
        );
        require(k > 0, "top_k", "is 0, expected at least 1; set how many experts a token uses".into());
        require(
            k <= e,
            "top_k",
            format!("is {k}, expected at most the {e} of num_experts; lower top_k or add experts"),
        );
        let scale = self.routed_scaling_factor;
        require(
            scale.is_finite() && scale > 0.0,
            "routed_scaling_factor",
            format!("is {scale}, expected a finite number above 0; use 1.0 for no scaling"),
        );
        if let Some(factor) = self.capacity_factor {
            require(
                factor.is_finite() && factor > 0.0,
                "capacity_factor",
                format!("is {factor}, expected a finite number above 0; leave it out to drop no tokens"),
            );
        }
        for (key, value) in [
            ("balance_loss_coefficient", self.balance_loss_coefficient),
            ("z_loss_coefficient", self.z_loss_coefficient),
            ("bias_update_rate", self.bias_update_rate),
        ] {
            require(
                value.is_finite() && value >= 0.0,
                key,
                format!("is {value}, expected a finite number of at least 0; use 0 to turn it off"),
            );
        }
        problems
    }

    /// The most tokens an expert takes out of `num_tokens`: ⌈capacity_factor·T·K / E⌉, or none when nothing is
    /// dropped.
    pub fn capacity(&self, num_tokens: usize) -> Option<usize> {
        let fair_share = (num_tokens * self.top_k) as f64 / self.num_experts as f64;
        // A decimal such as 1.1 is a little more than itself in f32: without the slack, 1.1 times 100 would be 111.
        let slack = 1.0 - f64::from(f32::EPSILON);
        self.capacity_factor.map(|factor| (f64::from(factor) * fair_share * slack).ceil() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_has_no_problems() {
        assert_eq!(RouterConfig::default().validate(), []);
    }

    #[test]
    fn all_problems_are_listed_at_once() {
        let config = RouterConfig {
            num_experts: 0,
            top_k: 2,
            routed_scaling_factor: 0.0,
            capacity_factor: Some(-1.0),
            balance_loss_coefficient: -0.01,
            z_loss_coefficient: f32::NAN,
            bias_update_rate: f32::INFINITY,
            ..RouterConfig::default()
        };
        let keys: Vec<&str> = config.validate().iter().map(|problem| problem.key).collect();
        assert_eq!(
            keys,
            [
                "num_experts",
                "top_k",
                "routed_scaling_factor",
                "capacity_factor",
                "balance_loss_coefficient",
                "z_loss_coefficient",
                "bias_update_rate"
            ]
        );
    }

    #[test]
    fn a_problem_says_what_was_expected_and_what_to_do() {
        let config = RouterConfig { num_experts: 4, top_k: 5, ..RouterConfig::default() };
        assert_eq!(
            config.validate()[0].to_string(),
            "top_k: is 5, expected at most the 4 of num_experts; lower top_k or add experts"
        );
    }

    #[test]
    fn a_bias_with_softmax_scores_is_allowed() {
        let config = RouterConfig { bias_update_rate: 1e-4, ..RouterConfig::default() };
        assert_eq!(config.validate(), []);
    }

    #[test]
    fn settings_survive_toml_and_unknown_keys_are_refused() {
        let config = RouterConfig {
            scoring: Scoring::Sigmoid,
            capacity_factor: Some(1.25),
            balance_loss: BalanceLoss::MicroBatch,
            ..RouterConfig::default()
        };
        let text = toml::to_string(&config).unwrap();
        assert!(
            text.contains("scoring = \"sigmoid\"") && text.contains("balance_loss = \"micro_batch\""),
            "{text}"
        );
        assert_eq!(toml::from_str::<RouterConfig>(&text).unwrap(), config);
        assert_eq!(toml::from_str::<RouterConfig>("").unwrap(), RouterConfig::default());
        let error = toml::from_str::<RouterConfig>("topk = 2").unwrap_err().to_string();
        assert!(error.contains("unknown field `topk`"), "{error}");
    }

    #[test]
    fn the_schema_documents_every_field() {
        let schema = schemars::schema_for!(RouterConfig).to_value();
        let fields = schema["properties"].as_object().unwrap();
        assert_eq!(fields.len(), 11);
        assert!(fields.values().all(|field| field["description"].is_string()), "{schema}");
        assert_eq!(schema["additionalProperties"], false);
    }

    #[test]
    fn capacity_rounds_a_fair_share_up() {
        let config = RouterConfig { capacity_factor: Some(1.25), ..RouterConfig::default() };
        assert_eq!(config.capacity(10), Some(4)); // 1.25·10·2 / 8 = 3.125
        assert_eq!(config.capacity(0), Some(0));
        let config = RouterConfig { capacity_factor: Some(1.1), ..config };
        assert_eq!(config.capacity(400), Some(110)); // 1.1·400·2 / 8 = 110
        assert_eq!(RouterConfig::default().capacity(10), None);
    }
}
