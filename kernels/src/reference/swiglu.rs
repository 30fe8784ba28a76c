//! SwiGLU with an optional weight per row: h = silu(gate)·up·weight; a row of gate_up holds gate, then up.

/// h_rf for gate_up of r rows of 2·f. `weights_r` of None is a weight of one.
pub fn forward(gate_up_r2f: &[f64], weights_r: Option<&[f64]>, f: usize) -> Vec<f64> {
    let rows = gate_up_r2f.len() / (2 * f);
    let mut h_rf = vec![0.0; rows * f];
    for r in 0..rows {
        let weight = weights_r.map_or(1.0, |weights| weights[r]);
        for i in 0..f {
            let (gate, up) = (gate_up_r2f[r * 2 * f + i], gate_up_r2f[r * 2 * f + f + i]);
            h_rf[r * f + i] = gate * sigmoid(gate) * up * weight;
        }
    }
    h_rf
}

/// (dgate_up_r2f, dweights_r); dweights is what a weight of one would get when `weights_r` is None.
pub fn backward(
    dh_rf: &[f64],
    gate_up_r2f: &[f64],
    weights_r: Option<&[f64]>,
    f: usize,
) -> (Vec<f64>, Vec<f64>) {
    let rows = dh_rf.len() / f;
    let mut dgate_up_r2f = vec![0.0; gate_up_r2f.len()];
    let mut dweights_r = vec![0.0; rows];
    for r in 0..rows {
        let weight = weights_r.map_or(1.0, |weights| weights[r]);
        for i in 0..f {
            let (gate, up) = (gate_up_r2f[r * 2 * f + i], gate_up_r2f[r * 2 * f + f + i]);
            let (dh, s) = (dh_rf[r * f + i], sigmoid(gate));
            dgate_up_r2f[r * 2 * f + i] = dh * weight * up * s * (1.0 + gate * (1.0 - s));
            dgate_up_r2f[r * 2 * f + f + i] = dh * weight * gate * s;
            dweights_r[r] += dh * gate * s * up;
        }
    }
    (dgate_up_r2f, dweights_r)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{central_difference, dot, values};

    #[test]
    fn gradients_agree_with_central_differences() {
        let (rows, f) = (3, 5);
        let (gate_up, weights, dh) = (values(rows * 2 * f, 1), values(rows, 2), values(rows * f, 3));
        let (dgate_up, dweights) = backward(&dh, &gate_up, Some(&weights), f);
        let loss = |gate_up: &[f64], weights: &[f64]| dot(&forward(gate_up, Some(weights), f), &dh);
        central_difference(|gate_up| loss(gate_up, &weights), &gate_up, &dgate_up, 1e-6);
        central_difference(|weights| loss(&gate_up, weights), &weights, &dweights, 1e-6);
        let (dgate_up, _) = backward(&dh, &gate_up, None, f);
        central_difference(|gate_up| dot(&forward(gate_up, None, f), &dh), &gate_up, &dgate_up, 1e-6);
    }
}
