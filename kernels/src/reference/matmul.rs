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
