//! The operations a model composes: each calls one forward kernel and records the matching backward.

use std::sync::Arc;

use wattle_kernels::ops::attention::{self, Mask};
use wattle_kernels::ops::rope::{self, RopeTable};
use wattle_kernels::ops::{bias, cross_entropy, elementwise, embedding, matmul, rms_norm, swiglu};
use wattle_kernels::{DType, Tensor};
use wattle_router::experts::{self, ExpertTimes};
use wattle_router::{LoadAccumulator, Result, RouterConfig, Routing};

use crate::autograd::{Phase, Tape, Var};
use crate::model::ParamId;

/// Where the routed experts' parameters are.
#[derive(Clone, Copy, Debug)]
pub struct RoutedExperts {
    /// Gate and up projections, `[E, 2f, d]`.
    pub gate_up: ParamId,
    /// Down projections, `[E, d, f]`.
    pub down: ParamId,
}

impl Tape<'_> {
    /// Rows of the embedding table: ids `[b, t]` -> `[b, t, d]`.
    pub fn embedding(&mut self, ids_bt: &Tensor, table: ParamId) -> Result<Var> {
        let weight = self.parameters.compute(table);
        let x = embedding::forward(ids_bt, weight, weight.dtype())?;
        let x = self.var(x);
        let (ids, out) = (ids_bt.clone(), x.id);
        self.record(move |walk| {
            let Some(dx) = walk.take(out) else { return Ok(()) };
            Ok(embedding::backward(&dx, &ids, walk.parameters.gradient_mut(table)?)?)
        });
        Ok(x)
    }

    /// y = x / rms(x) · weight over the last dimension.
    pub fn rms_norm(&mut self, x: &Var, weight: ParamId, epsilon: f32) -> Result<Var> {
        let (y, rstd) = rms_norm::forward(&x.value, self.parameters.master(weight), epsilon)?;
        let y = self.var(y);
        let (input, saved, out) = (x.id, x.value.clone(), y.id);
        self.record(move |walk| {
            let Some(dy) = walk.take(out) else { return Ok(()) };
            let onto = walk.take(input);
            let (master, gradient) = walk.parameters.master_and_gradient(weight)?;
            let dx = rms_norm::backward(&dy, &saved, master, &rstd, gradient, onto)?;
            walk.put(input, dx);
            Ok(())
        });
        Ok(y)
    }

    /// y = x·Wᵀ in the dtype of x.
    pub fn linear(&mut self, x: &Var, weight: ParamId) -> Result<Var> {
        let w = self.parameters.compute(weight);
        let y = matmul::forward(&x.value, w, x.value.dtype())?;
        let y = self.var(y);
        let (input, saved, out) = (x.id, x.value.clone(), y.id);
        self.record(move |walk| {
            let Some(dy) = walk.take(out) else { return Ok(()) };
            matmul::backward_weight(&dy, &saved, walk.parameters.gradient_mut(weight)?)?;
            let onto = walk.take(input);
            let dx = matmul::backward_input(&dy, walk.parameters.compute(weight), onto)?;
            walk.put(input, dx);
            Ok(())
        });
        Ok(y)
    }

    /// y = x + bias, row by row. Takes the value by ownership to work in place.
    pub fn bias(&mut self, x: Var, bias: ParamId) -> Result<Var> {
        let input = x.id;
        let y = bias::forward(x.value, self.parameters.master(bias))?;
        let y = self.var(y);
        let out = y.id;
        self.record(move |walk| {
            let Some(dy) = walk.take(out) else { return Ok(()) };
            bias::backward(&dy, walk.parameters.gradient_mut(bias)?)?;
            walk.add(input, dy)
        });
        Ok(y)
    }

    /// Another view of the same elements.
    pub fn reshape(&mut self, x: &Var, shape: &[usize]) -> Result<Var> {
        let y = x.value.reshape(shape)?;
        let y = self.var(y);
        let (input, before, out) = (x.id, x.value.shape().to_vec(), y.id);
        self.record(move |walk| {
            let Some(dy) = walk.take(out) else { return Ok(()) };
            walk.add(input, dy.reshape(&before)?)
        });
        Ok(y)
    }

    /// Rotary position embedding on `[b, t, h, head]`. Takes the value by ownership to work in place.
    pub fn rope(&mut self, x: Var, table: &Arc<RopeTable>, start_position: usize) -> Result<Var> {
        let input = x.id;
        let y = rope::forward(x.value, table, start_position)?;
        let y = self.var(y);
        let (table, out) = (Arc::clone(table), y.id);
        self.record(move |walk| {
            let Some(dy) = walk.take(out) else { return Ok(()) };
            let dx = rope::backward(dy, &table, start_position)?;
            walk.add(input, dx)
        });
        Ok(y)
    }

    /// softmax(q·kᵀ·scale + mask)·v, never holding the score matrix.
    pub fn attention(
        &mut self,
        q: &Var,
        k: &Var,
        v: &Var,
        mask: &Mask,
        scale: f32,
        query_start: usize,
    ) -> Result<Var> {
        let (o, lse) = attention::forward(&q.value, &k.value, &v.value, mask, scale, query_start)?;
        let o = self.var(o);
        if self.is_recording() {
            let (q, k, v, saved, mask) = (q.clone(), k.clone(), v.clone(), o.clone(), *mask);
            self.record(move |walk| {
                let Some(d_o) = walk.take(saved.id) else { return Ok(()) };
                let (dq, dk, dv) = attention::backward(
                    &d_o,
                    &q.value,
                    &k.value,
                    &v.value,
                    &saved.value,
                    &lse,
                    &mask,
                    scale,
                    query_start,
                )?;
                walk.add(q.id, dq)?;
                walk.add(k.id, dk)?;
                walk.add(v.id, dv)
            });
        }
        Ok(o)
    }

    /// a + b: the residual connection.
    pub fn add(&mut self, a: &Var, b: &Var) -> Result<Var> {
        let sum = elementwise::add(&a.value, &b.value)?;
        let sum = self.var(sum);
        let (a, b, out) = (a.id, b.id, sum.id);
        self.record(move |walk| {
            let Some(dy) = walk.take(out) else { return Ok(()) };
            walk.add(a, dy.clone())?;
            walk.add(b, dy)
        });
        Ok(sum)
    }

    /// silu(gate)·up with gate and up side by side in each row.
    pub fn swiglu(&mut self, gate_up: &Var) -> Result<Var> {
        let h = swiglu::forward(&gate_up.value, None)?;
        let h = self.var(h);
        let (input, saved, out) = (gate_up.id, gate_up.value.clone(), h.id);
        self.record(move |walk| {
            let Some(dh) = walk.take(out) else { return Ok(()) };
            walk.add(input, swiglu::backward(dh, saved, None)?.dgate_up_r2f)
        });
        Ok(h)
    }

    /// The same values in another float type.
    pub fn cast(&mut self, x: &Var, dtype: DType) -> Result<Var> {
        let y = elementwise::cast(&x.value, dtype)?;
        let y = self.var(y);
        let (input, before, out) = (x.id, x.value.dtype(), y.id);
        self.record(move |walk| {
            let Some(dy) = walk.take(out) else { return Ok(()) };
            walk.add(input, elementwise::cast(&dy, before)?)
        });
        Ok(y)
    }

    /// Router logits -> routing weights in the order of the plan's rows, and the plan. Balance and z-loss enter the
    /// losses times `scale`; `load` holds what earlier micro-batches of the step chose, and counts this one.
    pub fn route(
        &mut self,
        logits: &Var,
        bias: Option<&Tensor>,
        config: &RouterConfig,
        num_sequences: usize,
        load: &mut LoadAccumulator,
        scale: f32,
    ) -> Result<(Var, Arc<Routing>)> {
        let earlier = load.load_e()?;
        let routing = wattle_router::route(&logits.value, bias, config, num_sequences, Some(&earlier))?;
        drop(earlier);
        load.add(&routing)?;
        let routing = Arc::new(routing);
        self.pending.push((routing.losses.clone(), scale));
        let weights = self.var(routing.plan.weights_r.clone());
        let (saved, logits, out) = (Arc::clone(&routing), logits.clone(), weights.id);
        self.record(move |walk| {
            let dweights = match walk.take(out) {
                Some(dweights) => dweights,
                None => {
                    let weights_r = &saved.plan.weights_r;
                    Tensor::zeros(weights_r.shape(), DType::F32, weights_r.device())?
                }
            };
            let dlogits = wattle_router::route_backward(&saved, &logits.value, &dweights, scale)?;
            walk.add(logits.id, dlogits)
        });
        Ok((weights, routing))
    }

    /// The routed experts' weighted sum: x `[t, d]` -> `[t, d]`, with the weights that [`Tape::route`] gave.
    pub fn experts(
        &mut self,
        x: &Var,
        weights: &Var,
        routing: &Routing,
        parameters: RoutedExperts,
    ) -> Result<Var> {
        let mut times = ExpertTimes::default();
        let (y, saved) = experts::forward(
            &x.value,
            self.parameters.compute(parameters.gate_up),
            self.parameters.compute(parameters.down),
            &routing.plan,
            &mut times,
        )?;
        self.clock().charge(Phase::Dispatch, times.dispatch);
        let y = self.var(y);
        let (x, weights, out) = (x.id, weights.id, y.id);
        self.record(move |walk| {
            let Some(dy) = walk.take(out) else { return Ok(()) };
            let mut times = ExpertTimes::default();
            let (gate_up, down) = (parameters.gate_up, parameters.down);
            let (mut d_gate_up, mut d_down) =
                (walk.parameters.take_gradient(gate_up)?, walk.parameters.take_gradient(down)?);
            let result = experts::backward(
                &dy,
                saved,
                walk.parameters.compute(gate_up),
                walk.parameters.compute(down),
                &mut d_gate_up,
                &mut d_down,
                &mut times,
            );
            walk.parameters.return_gradient(gate_up, d_gate_up);
            walk.parameters.return_gradient(down, d_down);
            walk.clock.charge(Phase::Dispatch, times.dispatch);
            let (dx, dweights) = result?;
            walk.add(x, dx)?;
            walk.add(weights, dweights)
        });
        Ok(y)
    }

    /// Adds `scale` · Σ cross-entropy of x·Wᵀ against the targets to the losses; targets of -1 are ignored.
    /// Returns each token's cross-entropy in nats.
    ///
    /// A loss is a root: its gradient is computed here, chunk by chunk, while the logits exist.
    pub fn cross_entropy(
        &mut self,
        x: &Var,
        weight: ParamId,
        targets: &Tensor,
        scale: f32,
    ) -> Result<Tensor> {
        if !self.is_recording() {
            let losses = cross_entropy::forward(&x.value, self.parameters.compute(weight), targets)?;
            self.losses.cross_entropy += sum(&losses)? * f64::from(scale);
            return Ok(losses);
        }
        let mut gradient = self.parameters.take_gradient(weight)?;
        let w = self.parameters.compute(weight);
        let result = cross_entropy::forward_backward(&x.value, w, targets, scale, &mut gradient);
        self.parameters.return_gradient(weight, gradient);
        let (losses, dx) = result?;
        self.losses.cross_entropy += sum(&losses)? * f64::from(scale);
        let input = x.id;
        self.record(move |walk| walk.add(input, dx));
        Ok(losses)
    }
}

/// Sum in f64 in index order: the same bits everywhere.
fn sum(values: &Tensor) -> Result<f64> {
    Ok(values.data::<f32>()?.iter().map(|&x| f64::from(x)).sum())
}
