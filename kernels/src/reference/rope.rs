//! Rotary position embedding, half-split style: of each head the pairs (i, i + rotary_dim / 2) turn by an angle.

/// The angle of pair `i` at `position`: position·theta^(-2i / rotary_dim).
pub fn angle(position: usize, i: usize, rotary_dim: usize, theta: f64) -> f64 {
    position as f64 * theta.powf(-(2.0 * i as f64) / rotary_dim as f64)
}

/// y_bthd for x of shape `[b, t, h, d]`; token t stands at position start_position + t.
pub fn forward(
    x_bthd: &[f64],
    shape: [usize; 4],
    rotary_dim: usize,
    theta: f64,
    start_position: usize,
) -> Vec<f64> {
    rotate(x_bthd, shape, rotary_dim, |t, i| angle(start_position + t, i, rotary_dim, theta))
}

/// dx_bthd: the rotation backwards.
pub fn backward(
    dy_bthd: &[f64],
    shape: [usize; 4],
    rotary_dim: usize,
    theta: f64,
    start_position: usize,
) -> Vec<f64> {
    rotate(dy_bthd, shape, rotary_dim, |t, i| -angle(start_position + t, i, rotary_dim, theta))
}

fn rotate(
    x: &[f64],
    [b, t, h, d]: [usize; 4],
    rotary_dim: usize,
    angle: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let half = rotary_dim / 2;
    let mut y = x.to_vec();
    for b in 0..b {
        for token in 0..t {
            for head in 0..h {
                let at = ((b * t + token) * h + head) * d;
                for i in 0..half {
                    let (sin, cos) = angle(token, i).sin_cos();
                    y[at + i] = x[at + i] * cos - x[at + half + i] * sin;
                    y[at + half + i] = x[at + half + i] * cos + x[at + i] * sin;
                }
            }
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{central_difference, dot, values};

    #[test]
    fn the_gradient_agrees_with_central_differences() {
        let shape = [2, 3, 2, 7];
        let (x, dy) = (values(84, 1), values(84, 2));
        let dx = backward(&dy, shape, 4, 100.0, 5);
        central_difference(|x| dot(&forward(x, shape, 4, 100.0, 5), &dy), &x, &dx, 1e-6);
    }
}
