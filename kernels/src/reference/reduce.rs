//! Sums over whole tensors.

/// Σ x.
pub fn sum(x: &[f64]) -> f64 {
    x.iter().sum()
}

/// Σ x².
pub fn sum_of_squares(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum()
}
