//! Router scores, expert selection and the sums of the router's losses in f64; `e` experts a row.

/// Softmax of each row.
pub fn softmax(logits_te: &[f64], e: usize) -> Vec<f64> {
    let mut scores_te = Vec::new();
    for row in logits_te.chunks(e) {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
        scores_te.extend(row.iter().map(|x| (x - max).exp() / sum));
    }
    scores_te
}

/// dlogits = s·(ds − Σ ds·s) in each row.
pub fn softmax_backward(dscores_te: &[f64], scores_te: &[f64], e: usize) -> Vec<f64> {
    let mut dlogits_te = Vec::new();
    for (ds, s) in dscores_te.chunks(e).zip(scores_te.chunks(e)) {
        let dot: f64 = ds.iter().zip(s).map(|(ds, s)| ds * s).sum();
        dlogits_te.extend(ds.iter().zip(s).map(|(ds, s)| s * (ds - dot)));
    }
    dlogits_te
}

/// 1 / (1 + e^-x) of each value.
pub fn sigmoid(logits: &[f64]) -> Vec<f64> {
    logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect()
}

/// dlogits = ds·s·(1 − s).
pub fn sigmoid_backward(dscores: &[f64], scores: &[f64]) -> Vec<f64> {
    dscores.iter().zip(scores).map(|(ds, s)| ds * s * (1.0 - s)).collect()
}

/// The `k` experts of each row with the highest score plus bias, best first; ties go to the lower index, NaN last.
pub fn top_k(scores_te: &[f64], bias_e: &[f64], k: usize) -> Vec<i32> {
    let e = bias_e.len();
    let mut indices_tk = Vec::new();
    for row in scores_te.chunks(e) {
        let key = |i: &usize| row[*i] + bias_e[*i];
        let mut order: Vec<usize> = (0..e).filter(|i| !key(i).is_nan()).collect();
        order.sort_by(|a, b| key(b).total_cmp(&key(a)));
        order.extend((0..e).filter(|i| key(i).is_nan()));
        indices_tk.extend(order[..k].iter().map(|&i| i as i32));
    }
    indices_tk
}

/// weights_tk = scores[t, indices_tk].
pub fn select(scores_te: &[f64], indices_tk: &[i32], e: usize, k: usize) -> Vec<f64> {
    indices_tk.iter().enumerate().map(|(i, &index)| scores_te[i / k * e + index as usize]).collect()
}

/// dscores_te: dweights scattered back to the chosen places, zero elsewhere.
pub fn select_backward(dweights_tk: &[f64], indices_tk: &[i32], e: usize, k: usize) -> Vec<f64> {
    let mut dscores_te = vec![0.0; indices_tk.len() / k * e];
    for (i, (&index, dw)) in indices_tk.iter().zip(dweights_tk).enumerate() {
        dscores_te[i / k * e + index as usize] += dw;
    }
    dscores_te
}

/// ln Σ e^x of each row.
pub fn logsumexp(logits_te: &[f64], e: usize) -> Vec<f64> {
    logits_te.chunks(e).map(|row| row.iter().map(|x| x.exp()).sum::<f64>().ln()).collect()
}

/// The entropy −Σ p·ln p of each row in nats, with p = s / Σ s.
pub fn entropy(scores_te: &[f64], e: usize) -> Vec<f64> {
    let term = |p: f64| if p == 0.0 { 0.0 } else { -p * p.ln() };
    scores_te.chunks(e).map(|row| row.iter().map(|s| term(s / row.iter().sum::<f64>())).sum()).collect()
}
