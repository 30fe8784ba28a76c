//! Row gather and gather-sum in f64.

/// Row r of the result is `x[rows[r]]`, or zeros for -1; `d` values a row.
pub fn gather(x_td: &[f64], rows_r: &[i32], d: usize) -> Vec<f64> {
    let mut x_rd = vec![0.0; rows_r.len() * d];
    for (r, &row) in rows_r.iter().enumerate() {
        if row >= 0 {
            for i in 0..d {
                x_rd[r * d + i] = x_td[row as usize * d + i];
            }
        }
    }
    x_rd
}

/// Row t of the result is the sum over k of `y[token_rows[t, k]]`, -1 skipped.
pub fn gather_sum(y_rd: &[f64], token_rows_tk: &[i32], k: usize, d: usize) -> Vec<f64> {
    let num_tokens = token_rows_tk.len().checked_div(k).unwrap_or(0);
    let mut out_td = vec![0.0; num_tokens * d];
    for t in 0..num_tokens {
        for slot in 0..k {
            let row = token_rows_tk[t * k + slot];
            if row >= 0 {
                for i in 0..d {
                    out_td[t * d + i] += y_rd[row as usize * d + i];
                }
            }
        }
    }
    out_td
}
