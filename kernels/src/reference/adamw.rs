//! AdamW (Loshchilov and Hutter, arXiv:1711.05101): Adam with decoupled weight decay.

/// The settings of one step, as [`crate::ops::adamw::AdamW`].
pub struct AdamW {
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Keeps the divisor from zero.
    pub epsilon: f64,
    /// Share of the weight that a step of learning rate 1 removes.
    pub weight_decay: f64,
    /// Multiplies the gradient first.
    pub grad_scale: f64,
}

/// Updates weight and both moments; `step_number` counts from 1.
pub fn step(
    params: &AdamW,
    step_number: u64,
    weight: &mut [f64],
    grad: &[f64],
    first_moment: &mut [f64],
    second_moment: &mut [f64],
) {
    for i in 0..weight.len() {
        let g = grad[i] * params.grad_scale;
        first_moment[i] = params.beta1 * first_moment[i] + (1.0 - params.beta1) * g;
        second_moment[i] = params.beta2 * second_moment[i] + (1.0 - params.beta2) * g * g;
        let m_hat = first_moment[i] / (1.0 - params.beta1.powf(step_number as f64));
        let v_hat = second_moment[i] / (1.0 - params.beta2.powf(step_number as f64));
        weight[i] -= params.learning_rate * params.weight_decay * weight[i];
        weight[i] -= params.learning_rate * m_hat / (v_hat.sqrt() + params.epsilon);
    }
}
