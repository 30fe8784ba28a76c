//! Linear layer and cross-entropy as their equation reads.

/// (losses_t, dx_td, dw_vd) of `grad_scale`·Σ losses, for x_td of width `d`; a target of -1 is ignored.
pub fn forward_backward(
    x_td: &[f64],
    w_vd: &[f64],
    targets_t: &[i32],
    d: usize,
    grad_scale: f64,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let mut losses_t = vec![0.0; targets_t.len()];
    let (mut dx_td, mut dw_vd) = (vec![0.0; x_td.len()], vec![0.0; w_vd.len()]);
    for (t, &target) in targets_t.iter().enumerate() {
        let Ok(target) = usize::try_from(target) else { continue };
        let x_d = &x_td[t * d..][..d];
        let logits_v: Vec<f64> =
            w_vd.chunks(d).map(|w_d| x_d.iter().zip(w_d).map(|(x, w)| x * w).sum()).collect();
        let max = logits_v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = max + logits_v.iter().map(|logit| (logit - max).exp()).sum::<f64>().ln();
        losses_t[t] = lse - logits_v[target];
        for (v, logit) in logits_v.iter().enumerate() {
            let onehot = if v == target { 1.0 } else { 0.0 };
            let dlogit = grad_scale * ((logit - lse).exp() - onehot);
            for i in 0..d {
                dx_td[t * d + i] += dlogit * w_vd[v * d + i];
                dw_vd[v * d + i] += dlogit * x_d[i];
            }
        }
    }
    (losses_t, dx_td, dw_vd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Philox, Purpose};

    #[test]
    fn gradients_are_the_central_difference_of_the_loss() {
        let (d, vocab, targets) = (3, 7, [2, -1, 6, 0]);
        let normals = |stream, len: usize| -> Vec<f64> {
            let rng = Philox::new(5, Purpose::Synthetic, stream);
            (0..len as u64).map(|i| rng.normal(i)).collect()
        };
        let inputs = [normals(0, targets.len() * d), normals(1, vocab * d)];
        let (_, dx, dw) = forward_backward(&inputs[0], &inputs[1], &targets, d, 0.3);
        for (which, gradient) in [dx, dw].iter().enumerate() {
            let scale = gradient.iter().fold(0.0f64, |max, x| max.max(x.abs()));
            for i in 0..gradient.len() {
                let loss = |step: f64| {
                    let mut moved = inputs.clone();
                    moved[which][i] += step;
                    0.3 * forward_backward(&moved[0], &moved[1], &targets, d, 0.3).0.iter().sum::<f64>()
                };
                let numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5;
                assert!((numeric - gradient[i]).abs() <= 1e-6 * scale, "input {which} element {i}");
            }
        }
    }

    #[test]
    fn equal_logits_give_the_log_of_the_vocabulary() {
        let (losses, _, _) = forward_backward(&[0.0, 0.0], &[1.0; 10], &[3], 2, 1.0);
        assert!((losses[0] - 5f64.ln()).abs() < 1e-12);
    }
}
