//! Attention as its equation reads, with the whole t x s matrix of one head at a time.

use crate::ops::attention::Mask;

/// The sizes and settings of one attention call.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// b
    pub batch: usize,
    /// t
    pub num_queries: usize,
    /// s
    pub num_keys: usize,
    /// h, a multiple of `num_kv_heads`
    pub num_heads: usize,
    /// g
    pub num_kv_heads: usize,
    /// d
    pub head_dim: usize,
    /// Which keys a query sees.
    pub mask: Mask,
    /// The factor on q·kᵀ.
    pub scale: f64,
    /// The absolute position of the first query.
    pub query_start: usize,
}

impl Attention {
    /// (o_bthd, lse_bht).
    pub fn forward(&self, q_bthd: &[f64], k_bsgd: &[f64], v_bsgd: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let mut o_bthd = vec![0.0; q_bthd.len()];
        let mut lse_bht = vec![f64::NEG_INFINITY; self.batch * self.num_heads * self.num_queries];
        for (b, h) in self.heads() {
            let (p_ts, lse_t) = self.probabilities(b, h, q_bthd, k_bsgd);
            for t in 0..self.num_queries {
                lse_bht[(b * self.num_heads + h) * self.num_queries + t] = lse_t[t];
                for s in 0..self.num_keys {
                    for d in 0..self.head_dim {
                        o_bthd[self.at_q(b, t, h) + d] +=
                            p_ts[t * self.num_keys + s] * v_bsgd[self.at_k(b, s, h) + d];
                    }
                }
            }
        }
        (o_bthd, lse_bht)
    }

    /// (dq_bthd, dk_bsgd, dv_bsgd).
    pub fn backward(
        &self,
        do_bthd: &[f64],
        q_bthd: &[f64],
        k_bsgd: &[f64],
        v_bsgd: &[f64],
    ) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let mut dq_bthd = vec![0.0; q_bthd.len()];
        let (mut dk_bsgd, mut dv_bsgd) = (vec![0.0; k_bsgd.len()], vec![0.0; v_bsgd.len()]);
        for (b, h) in self.heads() {
            let (p_ts, _) = self.probabilities(b, h, q_bthd, k_bsgd);
            for t in 0..self.num_queries {
                let p_s = &p_ts[t * self.num_keys..][..self.num_keys];
                let at_q = self.at_q(b, t, h);
                let dp_s: Vec<f64> = (0..self.num_keys)
                    .map(|s| self.dot(&do_bthd[at_q..], &v_bsgd[self.at_k(b, s, h)..]))
                    .collect();
                let mean: f64 = p_s.iter().zip(&dp_s).map(|(p, dp)| p * dp).sum();
                for s in 0..self.num_keys {
                    let at_k = self.at_k(b, s, h);
                    let ds = p_s[s] * (dp_s[s] - mean) * self.scale;
                    for d in 0..self.head_dim {
                        dq_bthd[at_q + d] += ds * k_bsgd[at_k + d];
                        dk_bsgd[at_k + d] += ds * q_bthd[at_q + d];
                        dv_bsgd[at_k + d] += p_s[s] * do_bthd[at_q + d];
                    }
                }
            }
        }
        (dq_bthd, dk_bsgd, dv_bsgd)
    }

    /// p_ts and lse_t of one head.
    fn probabilities(&self, b: usize, h: usize, q_bthd: &[f64], k_bsgd: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let mut p_ts = vec![0.0; self.num_queries * self.num_keys];
        let mut lse_t = vec![f64::NEG_INFINITY; self.num_queries];
        for t in 0..self.num_queries {
            let visible: Vec<usize> =
                (0..self.num_keys).filter(|&s| self.mask.sees(self.query_start + t, s)).collect();
            let score = |s: usize| {
                self.scale * self.dot(&q_bthd[self.at_q(b, t, h)..], &k_bsgd[self.at_k(b, s, h)..])
            };
            let max = visible.iter().map(|&s| score(s)).fold(f64::NEG_INFINITY, f64::max);
            if max > f64::NEG_INFINITY {
                lse_t[t] = max + visible.iter().map(|&s| (score(s) - max).exp()).sum::<f64>().ln();
            }
            for s in visible {
                p_ts[t * self.num_keys + s] = (score(s) - lse_t[t]).exp();
            }
        }
        (p_ts, lse_t)
    }

    fn heads(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let num_heads = self.num_heads;
        (0..self.batch * num_heads).map(move |i| (i / num_heads, i % num_heads))
    }

    fn dot(&self, x: &[f64], y: &[f64]) -> f64 {
        x[..self.head_dim].iter().zip(y).map(|(x, y)| x * y).sum()
    }

    /// Where the row of query t of head h starts.
    fn at_q(&self, b: usize, t: usize, h: usize) -> usize {
        ((b * self.num_queries + t) * self.num_heads + h) * self.head_dim
    }

    /// Where the row of key s starts that query head h reads.
    fn at_k(&self, b: usize, s: usize, h: usize) -> usize {
        let group = h / (self.num_heads / self.num_kv_heads);
        ((b * self.num_keys + s) * self.num_kv_heads + group) * self.head_dim
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Philox, Purpose};

    fn normals(stream: u64, len: usize) -> Vec<f64> {
        let rng = Philox::new(11, Purpose::Synthetic, stream);
        (0..len as u64).map(|i| rng.normal(i)).collect()
    }

    fn inner(x: &[f64], y: &[f64]) -> f64 {
        x.iter().zip(y).map(|(x, y)| x * y).sum()
    }

    #[test]
    fn backward_is_the_central_difference_of_forward() {
        let masks = [
            Mask::default(),
            Mask { causal: true, ..Mask::default() },
            Mask { causal: true, window: Some(2), num_global_tokens: 1 },
        ];
        for mask in masks {
            let attention = Attention {
                batch: 2,
                num_queries: 3,
                num_keys: 5,
                num_heads: 4,
                num_kv_heads: 2,
                head_dim: 3,
                mask,
                scale: 0.7,
                query_start: 2,
            };
            let inputs = [normals(0, 2 * 3 * 4 * 3), normals(1, 2 * 5 * 2 * 3), normals(2, 2 * 5 * 2 * 3)];
            let weight = normals(3, inputs[0].len());
            let (dq, dk, dv) = attention.backward(&weight, &inputs[0], &inputs[1], &inputs[2]);
            for (which, gradient) in [dq, dk, dv].iter().enumerate() {
                let scale = gradient.iter().fold(0.0f64, |max, x| max.max(x.abs()));
                for i in 0..gradient.len() {
                    let loss = |step: f64| {
                        let mut moved = inputs.clone();
                        moved[which][i] += step;
                        inner(&attention.forward(&moved[0], &moved[1], &moved[2]).0, &weight)
                    };
                    let numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5;
                    assert!(
                        (numeric - gradient[i]).abs() <= 1e-6 * scale,
                        "{mask:?} input {which} element {i}: {numeric} and {}",
                        gradient[i]
                    );
                }
            }
        }
    }

    #[test]
    fn equal_scores_average_the_visible_values() {
        let attention = Attention {
            batch: 1,
            num_queries: 3,
            num_keys: 3,
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 1,
            mask: Mask { causal: true, ..Mask::default() },
            scale: 1.0,
            query_start: 0,
        };
        let (o, lse) = attention.forward(&[0.0; 3], &[1.0; 3], &[3.0, 5.0, 10.0]);
        for (got, want) in o.iter().zip([3.0, 4.0, 6.0]) {
            assert!((got - want).abs() < 1e-12);
        }
        for (got, want) in lse.iter().zip([1.0f64, 2.0, 3.0]) {
            assert!((got - want.ln()).abs() < 1e-12);
        }
    }
}
