//! y = x·W_eᵀ for the rows of each expert, and its gradients. Rows behind the last offset come out zero.

use std::ops::Range;

use crate::reference::matmul;

/// y_ro: the rows of expert e times w_oi of e, transposed.
pub fn forward(x_ri: &[f64], w_eoi: &[f64], offsets: &[usize], [r, o, i]: [usize; 3]) -> Vec<f64> {
    let mut y_ro = vec![0.0; r * o];
    for (e, rows) in groups(offsets).enumerate() {
        let (x, w) = (&x_ri[rows.start * i..rows.end * i], &w_eoi[e * o * i..][..o * i]);
        y_ro[rows.start * o..rows.end * o].copy_from_slice(&matmul::forward(x, w, [rows.len(), o, i]));
    }
    y_ro
}

/// dx_ri: the rows of expert e times w_oi of e.
pub fn backward_input(dy_ro: &[f64], w_eoi: &[f64], offsets: &[usize], [r, o, i]: [usize; 3]) -> Vec<f64> {
    let mut dx_ri = vec![0.0; r * i];
    for (e, rows) in groups(offsets).enumerate() {
        let (dy, w) = (&dy_ro[rows.start * o..rows.end * o], &w_eoi[e * o * i..][..o * i]);
        dx_ri[rows.start * i..rows.end * i].copy_from_slice(&matmul::backward_input(
            dy,
            w,
            [rows.len(), o, i],
        ));
    }
    dx_ri
}

/// dw_eoi: the rows of dy of expert e, transposed, times the rows of x of e.
pub fn backward_weight(dy_ro: &[f64], x_ri: &[f64], offsets: &[usize], [_, o, i]: [usize; 3]) -> Vec<f64> {
    let dw_oi = |rows: Range<usize>| {
        let (dy, x) = (&dy_ro[rows.start * o..rows.end * o], &x_ri[rows.start * i..rows.end * i]);
        matmul::backward_weight(dy, x, [rows.len(), o, i])
    };
    groups(offsets).flat_map(dw_oi).collect()
}

fn groups(offsets: &[usize]) -> impl Iterator<Item = Range<usize>> {
    offsets.windows(2).map(|pair| pair[0]..pair[1])
}
