//! Root-mean-square normalisation: y = w·x·rstd with rstd = 1 / sqrt(mean(x²) + eps), row by row.

/// (y_td, rstd_t).
pub fn forward(x_td: &[f64], w_d: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let d = w_d.len();
    let mut y_td = vec![0.0; x_td.len()];
    let mut rstd_t = vec![0.0; x_td.len() / d];
    for t in 0..rstd_t.len() {
        let mut mean_square = 0.0;
        for i in 0..d {
            mean_square += x_td[t * d + i] * x_td[t * d + i] / d as f64;
        }
        rstd_t[t] = 1.0 / (mean_square + eps).sqrt();
        for i in 0..d {
            y_td[t * d + i] = w_d[i] * x_td[t * d + i] * rstd_t[t];
        }
    }
    (y_td, rstd_t)
}

/// (dx_td, dw_d).
pub fn backward(dy_td: &[f64], x_td: &[f64], w_d: &[f64], rstd_t: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let d = w_d.len();
    let mut dx_td = vec![0.0; x_td.len()];
    let mut dw_d = vec![0.0; d];
    for t in 0..rstd_t.len() {
        let mut mean = 0.0;
        for i in 0..d {
            let normed = x_td[t * d + i] * rstd_t[t];
            dw_d[i] += dy_td[t * d + i] * normed;
            mean += dy_td[t * d + i] * w_d[i] * normed / d as f64;
        }
        for i in 0..d {
            let normed = x_td[t * d + i] * rstd_t[t];
            dx_td[t * d + i] = rstd_t[t] * (dy_td[t * d + i] * w_d[i] - normed * mean);
        }
    }
    (dx_td, dw_d)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{central_difference, dot, values};

    #[test]
    fn gradients_agree_with_central_differences() {
        let (t, d, eps) = (3, 5, 1e-3);
        let (x, w, dy) = (values(t * d, 1), values(d, 2), values(t * d, 3));
        let (_, rstd) = forward(&x, &w, eps);
        let (dx, dw) = backward(&dy, &x, &w, &rstd);
        central_difference(|x| dot(&forward(x, &w, eps).0, &dy), &x, &dx, 1e-6);
        central_difference(|w| dot(&forward(&x, w, eps).0, &dy), &w, &dw, 1e-6);
    }
}
