//! y_to = x_ti·w_oiᵀ and its gradients.

/// y_to = x_ti·w_oiᵀ.
pub fn forward(x_ti: &[f64], w_oi: &[f64], [t, o, i]: [usize; 3]) -> Vec<f64> {
    let mut y_to = vec![0.0; t * o];
    for row in 0..t {
        for out in 0..o {
            for inp in 0..i {
                y_to[row * o + out] += x_ti[row * i + inp] * w_oi[out * i + inp];
            }
        }
    }
    y_to
}

/// dx_ti = dy_to·w_oi.
pub fn backward_input(dy_to: &[f64], w_oi: &[f64], [t, o, i]: [usize; 3]) -> Vec<f64> {
    let mut dx_ti = vec![0.0; t * i];
    for row in 0..t {
        for out in 0..o {
            for inp in 0..i {
                dx_ti[row * i + inp] += dy_to[row * o + out] * w_oi[out * i + inp];
            }
        }
    }
    dx_ti
}

/// dw_oi = dy_toᵀ·x_ti.
pub fn backward_weight(dy_to: &[f64], x_ti: &[f64], [t, o, i]: [usize; 3]) -> Vec<f64> {
    let mut dw_oi = vec![0.0; o * i];
    for row in 0..t {
        for out in 0..o {
            for inp in 0..i {
                dw_oi[out * i + inp] += dy_to[row * o + out] * x_ti[row * i + inp];
            }
        }
    }
    dw_oi
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Philox, Purpose};

    fn random(stream: u64, len: usize) -> Vec<f64> {
        let rng = Philox::new(5, Purpose::Synthetic, stream);
        (0..len as u64).map(|i| rng.uniform(i) - 0.5).collect()
    }

    /// Central differences of sum(dy * y) for each element of `at`.
    fn differences(at: &[f64], dy: &[f64], y: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
        let loss = |at: &[f64]| y(at).iter().zip(dy).map(|(y, dy)| y * dy).sum::<f64>();
        let step = 1e-3;
        let moved = |index: usize, by: f64| {
            let mut at = at.to_vec();
            at[index] += by;
            loss(&at)
        };
        (0..at.len()).map(|index| (moved(index, step) - moved(index, -step)) / (2.0 * step)).collect()
    }

    fn assert_close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= 1e-6 * want.abs().max(1e-3), "{got} {want}");
        }
    }

    #[test]
    fn gradients_are_those_of_central_differences() {
        let shape @ [t, o, i] = [3, 4, 5];
        let (x, w, dy) = (random(1, t * i), random(2, o * i), random(3, t * o));
        assert_close(&backward_input(&dy, &w, shape), &differences(&x, &dy, |x| forward(x, &w, shape)));
        assert_close(&backward_weight(&dy, &x, shape), &differences(&w, &dy, |w| forward(&x, w, shape)));
    }

    #[test]
    fn grouped_gradients_are_those_of_central_differences() {
        use crate::reference::grouped_matmul::{backward_input, backward_weight, forward};
        // Three experts, the second without rows, and a row of padding.
        let (offsets, shape @ [r, o, i]) = ([0, 2, 2, 5], [6, 3, 4]);
        let (x, w, dy) = (random(1, r * i), random(2, 3 * o * i), random(3, r * o));
        assert_close(
            &backward_input(&dy, &w, &offsets, shape),
            &differences(&x, &dy, |x| forward(x, &w, &offsets, shape)),
        );
        assert_close(
            &backward_weight(&dy, &x, &offsets, shape),
            &differences(&w, &dy, |w| forward(&x, w, &offsets, shape)),
        );
    }
}
