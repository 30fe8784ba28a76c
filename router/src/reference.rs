//! The oracle of the tests: routing losses and experts in plain f64 loops, with the selection held fixed.

use wattle_kernels::reference::routing;

use crate::config::{BalanceLoss, RouterConfig, Scoring};

/// weights_tk, the balance loss and the z-loss, both times their coefficients.
pub(crate) fn route(
    logits_te: &[f64],
    indices_tk: &[i32],
    config: &RouterConfig,
    num_sequences: usize,
    earlier_load_e: &[f64],
) -> (Vec<f64>, f64, f64) {
    let (e, k) = (config.num_experts, config.top_k);
    let num_tokens = logits_te.len() / e;
    let scores_te = match config.scoring {
        Scoring::Softmax => routing::softmax(logits_te, e),
        Scoring::Sigmoid => routing::sigmoid(logits_te),
    };
    let mut weights_tk = routing::select(&scores_te, indices_tk, e, k);
    for weights in weights_tk.chunks_mut(k) {
        let epsilon = if config.scoring == Scoring::Sigmoid { 1e-7 } else { 0.0 };
        let sum = if config.renormalise { weights.iter().sum::<f64>() + epsilon } else { 1.0 };
        for weight in weights {
            *weight *= f64::from(config.routed_scaling_factor) / sum;
        }
    }

    let num_groups = match config.balance_loss {
        BalanceLoss::None => 0,
        BalanceLoss::Sequence => num_sequences,
        BalanceLoss::MicroBatch | BalanceLoss::GlobalBatch => 1,
    };
    let mut balance_loss = 0.0;
    for g in 0..num_groups {
        let tokens = g * num_tokens / num_groups..(g + 1) * num_tokens / num_groups;
        let mut load_e = vec![0.0; e];
        if config.balance_loss == BalanceLoss::GlobalBatch {
            load_e.copy_from_slice(earlier_load_e);
        }
        let mut mean_probability_e = vec![0.0; e];
        for t in tokens.clone() {
            let scores = &scores_te[t * e..][..e];
            let epsilon = if config.scoring == Scoring::Sigmoid { 1e-7 } else { 0.0 };
            let sum = scores.iter().sum::<f64>() + epsilon;
            for i in 0..e {
                mean_probability_e[i] += scores[i] / sum / tokens.len() as f64;
            }
            for slot in 0..k {
                load_e[indices_tk[t * k + slot] as usize] += 1.0;
            }
        }
        let total: f64 = load_e.iter().sum();
        for i in 0..e {
            balance_loss += e as f64 * load_e[i] / total * mean_probability_e[i] / num_groups as f64;
        }
    }

    let lse_t = routing::logsumexp(logits_te, e);
    let z_loss = lse_t.iter().map(|lse| lse * lse).sum::<f64>() / num_tokens as f64;
    let balance_loss = f64::from(config.balance_loss_coefficient) * balance_loss;
    (weights_tk, balance_loss, f64::from(config.z_loss_coefficient) * z_loss)
}

/// y_td of the experts, token by token; `keep` says which assignments were not dropped.
pub(crate) fn experts(
    x_td: &[f64],
    weights_tk: &[f64],
    (gate_up_e2fd, down_edf): (&[f64], &[f64]),
    (indices_tk, keep): (&[i32], &[bool]),
    (d, f): (usize, usize),
) -> Vec<f64> {
    let num_tokens = x_td.len() / d;
    let k = indices_tk.len().checked_div(num_tokens).unwrap_or(0);
    let mut y_td = vec![0.0; num_tokens * d];
    for t in 0..num_tokens {
        let x = &x_td[t * d..][..d];
        for assignment in t * k..(t + 1) * k {
            if !keep[assignment] {
                continue;
            }
            let e = indices_tk[assignment] as usize;
            let project =
                |row: usize| -> f64 { (0..d).map(|i| gate_up_e2fd[(e * 2 * f + row) * d + i] * x[i]).sum() };
            for j in 0..f {
                let (gate, up) = (project(j), project(f + j));
                let h = gate / (1.0 + (-gate).exp()) * up * weights_tk[assignment];
                for i in 0..d {
                    y_td[t * d + i] += down_edf[(e * d + i) * f + j] * h;
                }
            }
        }
    }
    y_td
}
