//! AdamW over several parameters: what the device decides by itself, and when the host learns of it.

use wattle_kernels::ops::adamw::{self, AdamW, Outcome, Slot, State};
use wattle_kernels::{DType, Device, Tensor};

use crate::{DTYPES, GPU, assert_close, gpu_is_here, normal, on_gpu};

/// Less than a tile, a ragged end, several tiles.
const SHAPES: [&[usize]; 3] = [&[5], &[37, 27], &[3, 70, 80]];
const SETTINGS: AdamW =
    AdamW { learning_rate: 0.01, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, max_norm: 1.0, grad_scale: 0.5 };

/// Parameters on one device; the first alone does not decay and has no bf16 copy.
struct Store {
    device: Device,
    weights: Vec<Tensor>,
    grads: Vec<Tensor>,
    moments: Vec<[Tensor; 2]>,
    copies: Vec<Option<Tensor>>,
    state: State,
}

impl Store {
    fn new(device: Device, moments: DType) -> Self {
        let zeros = |shape, dtype| Tensor::zeros(shape, dtype, device).unwrap();
        let mut seeds = 1..;
        let weights =
            SHAPES.map(|shape| normal(shape, DType::F32, seeds.next().unwrap()).to_device(device).unwrap());
        Store {
            device,
            weights: weights.into(),
            grads: Vec::new(),
            moments: SHAPES.map(|shape| [zeros(shape, moments), zeros(shape, moments)]).into(),
            copies: SHAPES.map(|shape| (shape.len() > 1).then(|| zeros(shape, DType::Bf16))).into(),
            state: State::new(0),
        }
    }

    /// Steps on gradients of that seed, of which the last value is `last`.
    fn step(&mut self, seed: u64, last: Option<f32>) -> Outcome {
        self.grads = SHAPES
            .iter()
            .zip(seed..)
            .map(|(shape, seed)| {
                let mut grad = normal(shape, DType::F32, seed);
                if let (Some(last), Some(value)) = (last, grad.data_mut::<f32>().unwrap().last_mut()) {
                    *value = last;
                }
                grad.to_device(self.device).unwrap()
            })
            .collect();
        let tensors = self.weights.iter_mut().zip(&self.grads).zip(&mut self.moments).zip(&mut self.copies);
        let mut slots: Vec<Slot> = tensors
            .map(|(((weight, grad), [first_moment, second_moment]), copy)| Slot {
                weight_decay: if copy.is_some() { 0.1 } else { 0.0 },
                weight,
                grad,
                first_moment,
                second_moment,
                compute_copy: copy.as_mut(),
            })
            .collect();
        adamw::step(&mut self.state, &SETTINGS, &mut slots).unwrap()
    }

    fn values(&self) -> Vec<Vec<f32>> {
        let tensors = self.weights.iter().chain(self.moments.iter().flatten());
        tensors.chain(self.copies.iter().flatten()).map(|tensor| tensor.to_f32_vec().unwrap()).collect()
    }
}

#[test]
fn steps_are_those_of_the_host_and_their_norms_can_be_read_late() {
    if !gpu_is_here() {
        return;
    }
    for moments in DTYPES {
        let (mut here, mut there) = (Store::new(Device::Cpu, moments), Store::new(GPU, moments));
        let wanted = [10, 20, 30].map(|seed| here.step(seed, None).read().unwrap());
        // All three are under way before the first is looked at.
        let outcomes = [10, 20, 30].map(|seed| there.step(seed, None));
        for (outcome, wanted) in outcomes.iter().zip(wanted) {
            let got = outcome.read().unwrap();
            assert!(got.applied && wanted.applied);
            let error = (got.gradient_norm - wanted.gradient_norm).abs();
            assert!(error <= 1e-6 * wanted.gradient_norm, "{got:?}, {wanted:?}");
        }
        assert_eq!(there.state.num_updates().unwrap(), 3);
        let pairs = there.weights.iter().zip(&here.weights);
        let pairs = pairs.chain(there.moments.iter().flatten().zip(here.moments.iter().flatten()));
        for (got, want) in pairs.chain(there.copies.iter().flatten().zip(here.copies.iter().flatten())) {
            assert_close(got, want);
        }
    }
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing_and_is_no_update() {
    if !gpu_is_here() {
        return;
    }
    let mut store = Store::new(GPU, DType::F32);
    store.step(10, None);
    for spoiled in [f32::NAN, f32::INFINITY] {
        let before = store.values();
        let update = store.step(20, Some(spoiled)).read().unwrap();
        assert!(!update.applied && !update.gradient_norm.is_finite());
        assert_eq!(store.values(), before);
        assert_eq!(store.state.num_updates().unwrap(), 1);
    }
}

/// What a checkpoint brings: other tensors, and the number of updates.
#[test]
fn a_run_goes_on_where_it_was_left_with_other_tensors() {
    if !gpu_is_here() {
        return;
    }
    let mut whole = Store::new(GPU, DType::F32);
    let mut parts = Store::new(GPU, DType::F32);
    for store in [&mut whole, &mut parts] {
        store.step(10, None);
    }
    let again = |tensor: &mut Tensor| *tensor = on_gpu(&tensor.to_device(Device::Cpu).unwrap());
    parts.weights.iter_mut().chain(parts.moments.iter_mut().flatten()).for_each(again);
    parts.state = State::new(parts.state.num_updates().unwrap());
    for store in [&mut whole, &mut parts] {
        store.step(20, None);
    }
    assert_eq!(parts.values(), whole.values());
}
