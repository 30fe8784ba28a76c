//! `adamw.cu`.

use std::sync::LazyLock;

use wattle_kernels::cuda::calls::adamw::{self as calls, Parameter, State, TILE};
use wattle_kernels::ops::adamw::AdamW;
use wattle_kernels::{bf16, reference};

use crate::harness::{
    Argument, Buffer, Float, Kernels, Order, Value, assert_close, bits, floats, in_both_orders, unwritten,
    values,
};

static KERNELS: LazyLock<Kernels> = LazyLock::new(|| Kernels::load("adamw.cu"));
/// Tensors: one value, ragged, exactly a tile, several tiles with a ragged end, none.
const LENGTHS: [usize; 5] = [1, 1003, TILE, 2 * TILE + 5, 0];
const SETTINGS: AdamW =
    AdamW { learning_rate: 0.01, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, max_norm: 1.0, grad_scale: 0.5 };

impl Value for u8 {}

/// All parameters of a run with moments of type M; odd ones have no bf16 copy and do not decay.
struct Store<M> {
    weights: Vec<Buffer<f32>>,
    grads: Vec<Buffer<f32>>,
    moments: Vec<[Buffer<M>; 2]>,
    copies: Vec<Option<Buffer<bf16>>>,
    state: Buffer<u8>,
}

impl<M: Float> Store<M> {
    fn new() -> Self {
        let zeros = |n: usize| floats::<M>(&vec![0.0; n]);
        Store {
            weights: LENGTHS.iter().map(|&n| floats(&values(n, 1))).collect(),
            grads: LENGTHS.iter().map(|&n| unwritten(n)).collect(),
            moments: LENGTHS.iter().map(|&n| [zeros(n), zeros(n)]).collect(),
            copies: (0..LENGTHS.len()).map(|i| (i % 2 == 0).then(|| unwritten(LENGTHS[i]))).collect(),
            state: Buffer::new(&State::initial_bytes(0)),
        }
    }

    fn step(&mut self, order: Order, settings: AdamW) {
        let address = |argument: Argument| match argument {
            Argument::Pointer(pointer) => pointer.addr() as u64,
            _ => unreachable!("buffers give pointers"),
        };
        let parameters = (0..LENGTHS.len()).flat_map(|i| {
            let [first_moment, second_moment] = &mut self.moments[i];
            let parameter = Parameter {
                weight: address(self.weights[i].pointer()),
                grad: address(self.grads[i].pointer()),
                first_moment: address(first_moment.pointer()),
                second_moment: address(second_moment.pointer()),
                copy: self.copies[i].as_mut().map_or(0, |copy| address(copy.pointer())),
                num_elements: LENGTHS[i] as i64,
                weight_decay: decay(i),
            };
            parameter.to_bytes()
        });
        let mut parameters = Buffer::new(&parameters.collect::<Vec<u8>>());
        let tiles = calls::tiles(LENGTHS);
        let num_tiles = tiles.len();
        let mut tiles = Buffer::new(&tiles.into_iter().flat_map(calls::Tile::to_bytes).collect::<Vec<u8>>());
        let mut partials = Buffer::new(&vec![f64::NAN; num_tiles]);
        let buffers = calls::Buffers {
            parameters: parameters.pointer(),
            tiles: tiles.pointer(),
            partials: partials.pointer(),
            state: self.state.pointer(),
        };
        for call in calls::step(&buffers, num_tiles, &settings, M::DTYPE) {
            KERNELS.run(order, &call);
        }
    }

    fn state(&self) -> State {
        State::from_bytes(&self.state.read().try_into().unwrap())
    }

    fn all_bits(&self) -> Vec<Vec<u64>> {
        let copies = self.copies.iter().flatten().map(bits);
        let moments = self.moments.iter().flatten().map(bits);
        self.weights.iter().map(bits).chain(moments).chain(copies).collect()
    }
}

fn decay(parameter: usize) -> f32 {
    if parameter.is_multiple_of(2) { 0.1 } else { 0.0 }
}

/// Gradients of step `n`, larger than the norm to clip to or smaller.
fn gradients(n: u64, scale: f64) -> Vec<Vec<f64>> {
    (0..).zip(LENGTHS).map(|(i, len)| values(len, 10 * n + i).iter().map(|x| x * scale).collect()).collect()
}

fn norm(gradients: &[Vec<f64>]) -> f64 {
    gradients.iter().flatten().map(|g| g * g).sum::<f64>().sqrt()
}

fn check<M: Float>(scale: f64, rel: f64) {
    let run = |order: Order| {
        let mut store = Store::<M>::new();
        let mut want: Vec<Vec<f64>> = LENGTHS.iter().map(|&n| values(n, 1)).collect();
        let mut moments: Vec<[Vec<f64>; 2]> = LENGTHS.iter().map(|&n| [vec![0.0; n], vec![0.0; n]]).collect();
        for n in 1..=3 {
            let gradients = gradients(n, scale);
            store.grads = gradients.iter().map(|g| floats(g)).collect();
            store.step(order, SETTINGS);
            let norm = norm(&gradients) * f64::from(SETTINGS.grad_scale);
            let clip = (f64::from(SETTINGS.max_norm) / norm).min(1.0);
            for (i, weight) in want.iter_mut().enumerate() {
                let rule = reference::adamw::AdamW {
                    learning_rate: f64::from(SETTINGS.learning_rate),
                    beta1: f64::from(SETTINGS.beta1),
                    beta2: f64::from(SETTINGS.beta2),
                    epsilon: f64::from(SETTINGS.epsilon),
                    weight_decay: f64::from(decay(i)),
                    grad_scale: clip * f64::from(SETTINGS.grad_scale),
                };
                let [m, v] = &mut moments[i];
                reference::adamw::step(&rule, n, weight, &gradients[i], m, v);
            }
            let state = store.state();
            assert!((state.norm - norm).abs() <= 1e-6 * norm, "{} and {norm}", state.norm);
            assert_eq!((state.num_updates, state.applies), (n as i64, true));
        }
        for i in 0..LENGTHS.len() {
            assert_close(&store.weights[i], &want[i], rel);
            for (got, want) in store.moments[i].iter().zip(&moments[i]) {
                assert_close(got, want, 3.0 * M::TOLERANCE);
            }
            if let Some(copy) = &store.copies[i] {
                let rounded: Vec<f64> =
                    store.weights[i].read().iter().map(|&w| bf16::from_f32(w).to_f64()).collect();
                assert_close(copy, &rounded, 0.0);
            }
        }
        store.all_bits()
    };
    in_both_orders(run);
}

#[test]
fn steps_follow_the_reference_with_and_without_clipping() {
    for scale in [1.0, 1e-4] {
        check::<f32>(scale, 2e-6);
        // A step moves a weight by about its learning rate; moments of 8 bits bend that by a hundredth.
        check::<bf16>(scale, 1e-2 * f64::from(SETTINGS.learning_rate));
    }
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing_and_is_not_counted() {
    for spoiled in [f64::NAN, f64::INFINITY] {
        let mut store = Store::<f32>::new();
        store.grads = gradients(1, 1.0).iter().map(|g| floats(g)).collect();
        store.step(Order::Forward, SETTINGS);
        let before = store.all_bits();
        let mut bad = gradients(2, 1.0);
        bad[3][TILE + 1] = spoiled;
        store.grads = bad.iter().map(|g| floats(g)).collect();
        store.step(Order::Forward, SETTINGS);
        assert_eq!(store.all_bits(), before);
        let state = store.state();
        assert_eq!((state.num_updates, state.applies), (1, false));
        assert!(!state.norm.is_finite());
    }
}

#[test]
fn a_maximum_norm_of_zero_switches_clipping_off() {
    let mut store = Store::<f32>::new();
    store.grads = gradients(1, 1.0).iter().map(|g| floats(g)).collect();
    store.step(Order::Forward, AdamW { max_norm: 0.0, ..SETTINGS });
    assert_eq!(store.state().grad_scale, SETTINGS.grad_scale);
}

#[test]
fn a_run_goes_on_with_the_bias_correction_of_its_updates() {
    let mut store = Store::<f32>::new();
    store.state = Buffer::new(&State::initial_bytes(41));
    store.grads = gradients(1, 1.0).iter().map(|g| floats(g)).collect();
    store.step(Order::Forward, SETTINGS);
    let State { num_updates, step_size, second_correction, .. } = store.state();
    assert_eq!(num_updates, 42);
    let correction = |beta: f32| 1.0 - f64::from(beta).powi(42);
    assert_eq!(step_size, (f64::from(SETTINGS.learning_rate) / correction(SETTINGS.beta1)) as f32);
    assert_eq!(second_correction, (1.0 / correction(SETTINGS.beta2).sqrt()) as f32);
}
