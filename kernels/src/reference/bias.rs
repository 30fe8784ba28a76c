//! Bias of a projection, added to each row.

/// y = x + bias.
pub fn forward(x: &[f64], bias_n: &[f64]) -> Vec<f64> {
    x.iter().zip(bias_n.iter().cycle()).map(|(x, bias)| x + bias).collect()
}

/// dbias_n after Σ over rows of dy has been added to what it was `before`.
pub fn backward(dy: &[f64], before_n: &[f64]) -> Vec<f64> {
    let mut dbias = before_n.to_vec();
    for (i, dy) in dy.iter().enumerate() {
        dbias[i % before_n.len()] += dy;
    }
    dbias
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{central_difference, dot, values};

    #[test]
    fn the_gradient_agrees_with_central_differences() {
        let (x, bias, dy) = (values(12, 1), values(4, 2), values(12, 3));
        let dbias = backward(&dy, &[0.0; 4]);
        central_difference(|bias| dot(&forward(&x, bias), &dy), &bias, &dbias, 1e-6);
    }
}
