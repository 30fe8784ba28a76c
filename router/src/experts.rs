//! The experts of one layer over a routing plan: dispatch, two grouped products around a SwiGLU, combine.
//!
//! Shapes: x_td, y_td; weights_r f32; gate_up_e2fd (gate rows first, then up) and down_edf, one weight per expert;
//! their gradients are f32 of the same shapes and accumulate. x and the weights share one float dtype.
//! y_t = Σ_k down_e·(silu(gate_e·x_t)·(up_e·x_t)·w_tk) with e the k-th expert of t; a dropped assignment adds nothing.
//! The weights come with the plan in the order of its rows, and so does their gradient go back. Padding rows are zeros on
//! every way.
//! The routing weight sits before the down projection: the same sum, and no expert output is kept for its gradient.
//!
//! Saved for the backward: x and the gate|up rows. The gathered rows (k copies of x) and the activations are computed
//! again there: a copy and an elementwise pass against r·(d + f) elements held through the whole backward pass.
//! Napkin: 6·r·d·f FLOPs forward, 12·r·d·f backward.

use std::time::{Duration, Instant};

use wattle_kernels::ops::{grouped_matmul, permute, swiglu};
use wattle_kernels::{Error as KernelError, Tensor};

use crate::RoutingPlan;
use crate::error::Result;

/// y_td and what [`backward`] needs.
///
/// # Errors
/// Shapes or dtypes that do not fit each other or the plan; out of memory.
pub fn forward(
    x_td: &Tensor,
    gate_up_e2fd: &Tensor,
    down_edf: &Tensor,
    plan: &RoutingPlan,
    times: &mut ExpertTimes,
) -> Result<(Tensor, Saved)> {
    expect_shape("x", x_td, &[plan.num_tokens(), gate_up_e2fd.last_dim()])?;
    let x_rd = timed(&mut times.dispatch, || Ok(permute::gather(x_td, &plan.row_to_token_r)?))?;
    let (y_rd, gate_up_r2f) = timed(&mut times.experts, || {
        let gate_up_r2f = grouped_matmul::forward(&x_rd, gate_up_e2fd, &plan.offsets_e)?;
        let h_rf = swiglu::forward(&gate_up_r2f, Some(&plan.weights_r))?;
        Ok((grouped_matmul::forward(&h_rf, down_edf, &plan.offsets_e)?, gate_up_r2f))
    })?;
    let y_td = timed(&mut times.dispatch, || Ok(permute::gather_sum(&y_rd, &plan.token_to_rows_tk)?))?;
    Ok((y_td, Saved { x_td: x_td.clone(), gate_up_r2f, plan: plan.clone() }))
}

/// (dx_td, dweights_r); the gradients of the expert weights are added onto `dgate_up_e2fd` and `ddown_edf`.
///
/// Consumes `saved`, so that its memory is free for the next layer. dweights is in the order of the plan's rows: the
/// weight of a dropped assignment has none.
///
/// # Errors
/// Shapes or dtypes that do not fit; out of memory.
pub fn backward(
    dy_td: &Tensor,
    saved: Saved,
    gate_up_e2fd: &Tensor,
    down_edf: &Tensor,
    dgate_up_e2fd: &mut Tensor,
    ddown_edf: &mut Tensor,
    times: &mut ExpertTimes,
) -> Result<(Tensor, Tensor)> {
    let Saved { x_td, gate_up_r2f, plan } = saved;
    expect_shape("dy", dy_td, x_td.shape())?;
    let dy_rd = timed(&mut times.dispatch, || Ok(permute::gather(dy_td, &plan.row_to_token_r)?))?;
    let (dgate_up_r2f, dweights_r) = timed(&mut times.experts, || {
        let dh_rf = grouped_matmul::backward_input(&dy_rd, down_edf, &plan.offsets_e)?;
        let swiglu::Backward { h_rf, dgate_up_r2f, dweights_r } =
            swiglu::backward(dh_rf, gate_up_r2f, Some(&plan.weights_r))?;
        grouped_matmul::backward_weight(&dy_rd, &h_rf, &plan.offsets_e, ddown_edf)?;
        Ok((dgate_up_r2f, dweights_r))
    })?;
    drop(dy_rd);
    let Some(dweights_r) = dweights_r else { unreachable!("swiglu differentiates the weights it is given") };

    let x_rd = timed(&mut times.dispatch, || Ok(permute::gather(&x_td, &plan.row_to_token_r)?))?;
    let dx_rd = timed(&mut times.experts, || {
        grouped_matmul::backward_weight(&dgate_up_r2f, &x_rd, &plan.offsets_e, dgate_up_e2fd)?;
        drop(x_rd);
        Ok(grouped_matmul::backward_input(&dgate_up_r2f, gate_up_e2fd, &plan.offsets_e)?)
    })?;
    let dx_td = timed(&mut times.dispatch, || Ok(permute::gather_sum(&dx_rd, &plan.token_to_rows_tk)?))?;
    Ok((dx_td, dweights_r))
}

/// What the backward of the experts needs from the forward.
#[derive(Debug)]
pub struct Saved {
    x_td: Tensor,
    gate_up_r2f: Tensor,
    plan: RoutingPlan,
}

/// Where the time of the experts went, summed over calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpertTimes {
    /// Moving rows between token order and expert order.
    pub dispatch: Duration,
    /// Grouped products and activations.
    pub experts: Duration,
}

fn timed<R>(total: &mut Duration, body: impl FnOnce() -> Result<R>) -> Result<R> {
    let start = Instant::now();
    let result = body();
    *total += start.elapsed();
    result
}

fn expect_shape(what: &'static str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.shape() == shape {
        return Ok(());
    }
    let (got, expected) = (tensor.shape().to_vec(), format!("{shape:?}"));
    Err(KernelError::Shape { op: "experts", what, got, expected }.into())
}

#[cfg(test)]
mod tests {
    use wattle_kernels::ops::routing_plan;
    use wattle_kernels::{DType, Device};

    use super::*;
    use crate::reference;
    use crate::testing::{assert_close, bits, in_pools, numeric_gradient, tensor, values};

    const D: usize = 6;
    const F: usize = 4;

    /// A layer of experts, its inputs and a routing, in f64.
    struct Layer {
        experts: usize,
        k: usize,
        indices_tk: Vec<i32>,
        capacity: Option<usize>,
        x_td: Vec<f64>,
        weights_tk: Vec<f64>,
        gate_up_e2fd: Vec<f64>,
        down_edf: Vec<f64>,
        dy_td: Vec<f64>,
    }

    impl Layer {
        fn new(experts: usize, k: usize, indices_tk: &[i32], capacity: Option<usize>) -> Self {
            let num_tokens = indices_tk.len() / k;
            Layer {
                experts,
                k,
                indices_tk: indices_tk.to_vec(),
                capacity,
                x_td: values(num_tokens * D, 1),
                weights_tk: values(indices_tk.len(), 2),
                gate_up_e2fd: values(experts * 2 * F * D, 3),
                down_edf: values(experts * D * F, 4),
                dy_td: values(num_tokens * D, 5),
            }
        }

        fn num_tokens(&self) -> usize {
            self.indices_tk.len() / self.k
        }

        fn plan(&self) -> RoutingPlan {
            let shape = [self.num_tokens(), self.k];
            let indices_tk = Tensor::from_slice(&self.indices_tk, &shape).unwrap();
            let weights_tk = tensor(&self.weights_tk, &shape, DType::F32);
            routing_plan::plan(&indices_tk, &weights_tk, self.experts, self.capacity).unwrap()
        }

        /// y, dx, dweights, dgate_up, ddown; the weight gradients start at 1.
        fn run(&self, dtype: DType) -> [Tensor; 5] {
            let (t, e) = (self.num_tokens(), self.experts);
            let x_td = tensor(&self.x_td, &[t, D], dtype);
            let gate_up_e2fd = tensor(&self.gate_up_e2fd, &[e, 2 * F, D], dtype);
            let down_edf = tensor(&self.down_edf, &[e, D, F], dtype);
            let mut dgate_up = tensor(&vec![1.0; e * 2 * F * D], &[e, 2 * F, D], DType::F32);
            let mut ddown = tensor(&vec![1.0; e * D * F], &[e, D, F], DType::F32);
            let (plan, mut times) = (self.plan(), ExpertTimes::default());
            let (y_td, saved) = forward(&x_td, &gate_up_e2fd, &down_edf, &plan, &mut times).unwrap();
            let dy_td = tensor(&self.dy_td, &[t, D], dtype);
            let (dx_td, dweights_r) =
                backward(&dy_td, saved, &gate_up_e2fd, &down_edf, &mut dgate_up, &mut ddown, &mut times)
                    .unwrap();
            let column_r1 = dweights_r.reshape(&[plan.num_rows(), 1]).unwrap();
            let rows = plan.token_to_rows_tk.reshape(&[t * self.k]).unwrap();
            let dweights_tk = permute::gather(&column_r1, &rows).unwrap().reshape(&[t, self.k]).unwrap();
            [y_td, dx_td, dweights_tk, dgate_up, ddown]
        }

        fn reference(&self, x: &[f64], weights: &[f64], gate_up: &[f64], down: &[f64]) -> Vec<f64> {
            let plan = self.plan();
            let keep: Vec<bool> =
                plan.token_to_rows_tk.data::<i32>().unwrap().iter().map(|&row| row >= 0).collect();
            reference::experts(x, weights, (gate_up, down), (&self.indices_tk, &keep), (D, F))
        }

        /// Output against the dense loops, gradients against their central differences.
        #[track_caller]
        fn check(&self, dtype: DType, rel: f64) {
            let Layer { x_td: x, weights_tk: w, gate_up_e2fd: up, down_edf: down, .. } = self;
            let loss = |y: Vec<f64>| y.iter().zip(&self.dy_td).map(|(y, dy)| y * dy).sum::<f64>();
            let plus_one = |gradient: Vec<f64>| gradient.iter().map(|g| g + 1.0).collect::<Vec<_>>();
            let [y_td, dx_td, dweights_tk, dgate_up, ddown] = self.run(dtype);
            assert_close(&y_td, &self.reference(x, w, up, down), rel);
            assert_close(&dx_td, &numeric_gradient(|x| loss(self.reference(x, w, up, down)), x), rel);
            assert_close(&dweights_tk, &numeric_gradient(|w| loss(self.reference(x, w, up, down)), w), rel);
            let want = numeric_gradient(|up| loss(self.reference(x, w, up, down)), up);
            assert_close(&dgate_up, &plus_one(want), rel);
            let want = numeric_gradient(|down| loss(self.reference(x, w, up, down)), down);
            assert_close(&ddown, &plus_one(want), rel);
        }
    }

    #[test]
    fn forward_and_backward_follow_the_dense_loops() {
        let layer = Layer::new(4, 2, &[2, 0, 0, 3, 1, 2, 3, 0, 0, 1, 2, 1, 1, 3], None);
        layer.check(DType::F32, 1e-4);
        layer.check(DType::Bf16, 5e-2);
    }

    #[test]
    fn an_expert_without_tokens_computes_nothing_and_gets_no_gradient() {
        let layer = Layer::new(3, 1, &[2, 0, 0, 2], None);
        layer.check(DType::F32, 1e-4);
        let [.., dgate_up, ddown] = layer.run(DType::F32);
        assert!(dgate_up.data::<f32>().unwrap()[2 * F * D..][..2 * F * D].iter().all(|&g| g == 1.0));
        assert!(ddown.data::<f32>().unwrap()[D * F..][..D * F].iter().all(|&g| g == 1.0));
    }

    #[test]
    fn one_expert_works() {
        Layer::new(1, 1, &[0; 5], None).check(DType::F32, 1e-4);
    }

    #[test]
    fn all_experts_at_once_work() {
        Layer::new(3, 3, &[0, 1, 2, 2, 1, 0, 1, 0, 2], None).check(DType::F32, 1e-4);
    }

    #[test]
    fn all_tokens_to_one_expert_work() {
        Layer::new(4, 1, &[2; 7], None).check(DType::F32, 1e-4);
    }

    #[test]
    fn dropped_assignments_add_nothing_and_get_no_gradient() {
        let layer = Layer::new(3, 2, &[0, 1, 0, 2, 1, 0, 0, 1], Some(2));
        layer.check(DType::F32, 1e-4);
        let [_, _, dweights_tk, ..] = layer.run(DType::F32);
        let dropped: Vec<usize> =
            (0..8).filter(|&assignment| dweights_tk.data::<f32>().unwrap()[assignment] == 0.0).collect();
        assert_eq!(dropped, [5, 6, 7]);
    }

    #[test]
    fn no_tokens_work() {
        let [y_td, dx_td, dweights_tk, dgate_up, _] = Layer::new(2, 2, &[], None).run(DType::F32);
        assert_eq!(
            (y_td.shape(), dx_td.shape(), dweights_tk.shape()),
            (&[0, D][..], &[0, D][..], &[0, 2][..])
        );
        assert!(dgate_up.data::<f32>().unwrap().iter().all(|&g| g == 1.0));
    }

    #[test]
    fn thread_count_does_not_change_a_bit() {
        let indices: Vec<i32> =
            (0..600).map(|i| [(i / 2) % 5, (i / 2 + 1 + i / 200) % 5][i as usize % 2]).collect();
        let layer = Layer::new(5, 2, &indices, Some(100));
        in_pools(|| layer.run(DType::F32).iter().map(bits).collect::<Vec<_>>());
    }

    #[test]
    fn wrong_shapes_are_errors_that_name_the_tensor() {
        let layer = Layer::new(2, 1, &[0, 1, 1], None);
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, Device::Cpu).unwrap();
        let (gate_up, down) = (zeros(&[2, 2 * F, D]), zeros(&[2, D, F]));
        let run = |x: &Tensor, down: &Tensor| {
            let mut times = ExpertTimes::default();
            forward(x, &gate_up, down, &layer.plan(), &mut times).map(drop).unwrap_err().to_string()
        };
        let error = run(&zeros(&[4, D]), &down);
        assert_eq!(error, "experts: x has shape [4, 6], expected [3, 6]");
        let error = run(&zeros(&[3, D]), &zeros(&[3, D, F]));
        assert!(error.starts_with("grouped_matmul: offsets has shape [3]"), "{error}");
    }
}
