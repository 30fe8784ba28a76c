//! The whole decoder in f64, written from its equations over the kernels' reference operations.

use std::collections::BTreeMap;

use wattle_engine::model::config::{ModelConfig, MoeConfig};
use wattle_kernels::ops::attention::Mask;
use wattle_kernels::reference::attention::Attention;
use wattle_kernels::reference::{bias, cross_entropy, embedding, matmul, rms_norm, rope, routing, swiglu};
use wattle_router::{BalanceLoss, Scoring};

/// Weights by name, as in checkpoints.
pub type Weights = BTreeMap<String, Vec<f64>>;

/// A decoder's shape and the batch it sees.
pub struct ReferenceDecoder {
    /// The transformer.
    pub model: ModelConfig,
    /// Its sparse layers.
    pub moe: Option<MoeConfig>,
    /// Sequences.
    pub batch: usize,
    /// Tokens in each.
    pub sequence: usize,
}

impl ReferenceDecoder {
    /// Mean cross-entropy plus balance and z-losses.
    pub fn loss(&self, weights: &Weights, ids: &[i32], targets: &[i32]) -> f64 {
        let d = self.model.d_model;
        let num_tokens = ids.len();
        let places: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
        let mut x = embedding::forward(&places, &weights["model.embedding"], d);
        let mut auxiliary = 0.0;
        for layer in 0..self.model.num_layers {
            let name = format!("model.layers.{layer}");
            let normed = self.norm(&x, &weights[&format!("{name}.attention_norm")]);
            let y = self.attention(weights, &name, layer, &normed);
            add(&mut x, &y);
            let normed = self.norm(&x, &weights[&format!("{name}.feed_forward_norm")]);
            let y = match &self.moe {
                Some(moe) if layer >= moe.num_leading_dense_layers => {
                    let (y, loss) = self.sparse(weights, &format!("{name}.moe"), moe, &normed);
                    auxiliary += loss;
                    y
                }
                _ => self.dense(weights, &format!("{name}.feed_forward"), &normed),
            };
            add(&mut x, &y);
        }
        let x = self.norm(&x, &weights["model.final_norm"]);
        let head = weights.get("model.head").unwrap_or(&weights["model.embedding"]);
        let (losses, ..) = cross_entropy::forward_backward(&x, head, targets, d, 1.0);
        losses.iter().sum::<f64>() / num_tokens as f64 + auxiliary
    }

    fn norm(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
        rms_norm::forward(x, weight, f64::from(self.model.norm_epsilon as f32)).0
    }

    fn attention(&self, weights: &Weights, name: &str, layer: usize, x: &[f64]) -> Vec<f64> {
        let (model, d) = (&self.model, self.model.d_model);
        let (b, t, head_dim) = (self.batch, self.sequence, model.head_dim());
        let project = |which: &str, num_heads: usize| {
            let weight = &weights[&format!("{name}.attention.{which}")];
            let mut y = matmul::forward(x, weight, [b * t, num_heads * head_dim, d]);
            if let Some(values) = weights.get(&format!("{name}.attention.{which}_bias")) {
                y = bias::forward(&y, values);
            }
            if which == "value" {
                return y;
            }
            let y = match weights.get(&format!("{name}.attention.{which}_norm")) {
                Some(norm) => self.norm(&y, norm),
                None => y,
            };
            rope::forward(&y, [b, t, num_heads, head_dim], model.rotary_dim(), model.rope_theta, 0)
        };
        let window = Some(model.attention_window(layer)).filter(|&window| window > 0);
        let attention = Attention {
            batch: b,
            num_queries: t,
            num_keys: t,
            num_heads: model.num_heads,
            num_kv_heads: model.num_kv_heads(),
            head_dim,
            mask: Mask { causal: true, window, num_global_tokens: model.num_global_tokens },
            scale: (head_dim as f64).sqrt().recip(),
            query_start: 0,
        };
        let (query, key) = (project("query", model.num_heads), project("key", model.num_kv_heads()));
        let (mixed, _) = attention.forward(&query, &key, &project("value", model.num_kv_heads()));
        let output = &weights[&format!("{name}.attention.output")];
        matmul::forward(&mixed, output, [b * t, d, model.num_heads * head_dim])
    }

    fn dense(&self, weights: &Weights, name: &str, x: &[f64]) -> Vec<f64> {
        let (d, t) = (self.model.d_model, self.batch * self.sequence);
        let (gate_up, down) = (&weights[&format!("{name}.gate_up")], &weights[&format!("{name}.down")]);
        let f = down.len() / d;
        let hidden = swiglu::forward(&matmul::forward(x, gate_up, [t, 2 * f, d]), None, f);
        matmul::forward(&hidden, down, [t, d, f])
    }

    /// The sparse block's output and its balance and z-losses.
    fn sparse(&self, weights: &Weights, name: &str, moe: &MoeConfig, x: &[f64]) -> (Vec<f64>, f64) {
        let (d, t) = (self.model.d_model, self.batch * self.sequence);
        let (e, k, f) = (moe.num_experts, moe.top_k, moe.expert_ffn_size);
        let logits = matmul::forward(x, &weights[&format!("{name}.router")], [t, e, d]);
        let scores = match moe.scoring {
            Scoring::Softmax => routing::softmax(&logits, e),
            Scoring::Sigmoid => routing::sigmoid(&logits),
        };
        let chosen = routing::top_k(&scores, &vec![0.0; e], k);
        let mut gates = routing::select(&scores, &chosen, e, k);
        for gates in gates.chunks_mut(k) {
            let sum: f64 =
                gates.iter().sum::<f64>() + if moe.scoring == Scoring::Sigmoid { 1e-7 } else { 0.0 };
            let scale = f64::from(moe.routed_scaling_factor as f32);
            gates.iter_mut().for_each(|gate| *gate *= scale / if moe.renormalise { sum } else { 1.0 });
        }
        let (gate_up, down) = (&weights[&format!("{name}.gate_up")], &weights[&format!("{name}.down")]);
        let mut y = vec![0.0; t * d];
        for (assignment, (&expert, gate)) in chosen.iter().zip(&gates).enumerate() {
            let (token, expert) = (assignment / k, expert as usize);
            let gate_up = &gate_up[expert * 2 * f * d..][..2 * f * d];
            let row = matmul::forward(&x[token * d..][..d], gate_up, [1, 2 * f, d]);
            let hidden = swiglu::forward(&row, Some(&[*gate]), f);
            let out = matmul::forward(&hidden, &down[expert * d * f..][..d * f], [1, d, f]);
            add(&mut y[token * d..][..d], &out);
        }
        if moe.num_shared_experts > 0 {
            let shared = self.dense(weights, &format!("{name}.shared"), x);
            add(&mut y, &shared);
        }
        (y, self.auxiliary_loss(moe, &logits, &scores, &chosen))
    }

    fn auxiliary_loss(&self, moe: &MoeConfig, logits: &[f64], scores: &[f64], chosen: &[i32]) -> f64 {
        let (e, k) = (moe.num_experts, moe.top_k);
        let probabilities: Vec<f64> = match moe.scoring {
            Scoring::Softmax => scores.to_vec(),
            Scoring::Sigmoid => scores
                .chunks(e)
                .flat_map(|row| {
                    let sum = row.iter().sum::<f64>() + 1e-7;
                    row.iter().map(move |score| score / sum)
                })
                .collect(),
        };
        let num_groups = match moe.balance_loss {
            BalanceLoss::None => 0,
            BalanceLoss::MicroBatch | BalanceLoss::GlobalBatch => 1,
            BalanceLoss::Sequence => self.batch,
        };
        let tokens_per_group = probabilities.len() / e / num_groups.max(1);
        let mut balance = 0.0;
        for group in 0..num_groups {
            let rows = &probabilities[group * tokens_per_group * e..][..tokens_per_group * e];
            let choices = &chosen[group * tokens_per_group * k..][..tokens_per_group * k];
            for expert in 0..e {
                let share = choices.iter().filter(|&&chosen| chosen as usize == expert).count() as f64
                    / choices.len() as f64;
                let mean = rows.iter().skip(expert).step_by(e).sum::<f64>() / tokens_per_group as f64;
                balance += e as f64 * share * mean / num_groups as f64;
            }
        }
        let lse = routing::logsumexp(logits, e);
        let z = lse.iter().map(|x| x * x).sum::<f64>() / lse.len() as f64;
        moe.balance_loss_coefficient * balance + moe.z_loss_coefficient * z
    }
}

fn add(sum: &mut [f64], x: &[f64]) {
    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
}
