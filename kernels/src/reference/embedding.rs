//! Embedding look-up: row t of x is the table's row of id t.

/// x_td.
pub fn forward(ids_t: &[usize], table_vd: &[f64], d: usize) -> Vec<f64> {
    let mut x_td = vec![0.0; ids_t.len() * d];
    for t in 0..ids_t.len() {
        for i in 0..d {
            x_td[t * d + i] = table_vd[ids_t[t] * d + i];
        }
    }
    x_td
}

/// dtable_vd for a vocabulary of v.
pub fn backward(dx_td: &[f64], ids_t: &[usize], v: usize, d: usize) -> Vec<f64> {
    let mut dtable_vd = vec![0.0; v * d];
    for t in 0..ids_t.len() {
        for i in 0..d {
            dtable_vd[ids_t[t] * d + i] += dx_td[t * d + i];
        }
    }
    dtable_vd
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{central_difference, dot, values};

    #[test]
    fn the_gradient_agrees_with_central_differences() {
        let (ids, v, d) = ([2, 0, 2, 3], 4, 3);
        let (table, dx) = (values(v * d, 1), values(ids.len() * d, 2));
        let dtable = backward(&dx, &ids, v, d);
        central_difference(|table| dot(&forward(&ids, table, d), &dx), &table, &dtable, 1e-6);
    }
}
