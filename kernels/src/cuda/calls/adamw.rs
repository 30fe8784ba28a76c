//! `adamw.cu`: its three calls, and what they read and write in device memory, field by field.

use super::super::{Argument, Call, Launch, geometry};
use crate::dtype::DType;
use crate::ops::adamw::AdamW;

/// Elements of a tile, the share of one block.
pub const TILE: usize = 8192;

/// The buffers of a step.
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    /// [`Parameter`]s, one a tensor
    pub parameters: Argument,
    /// [`Tile`]s, `num_tiles` of them
    pub tiles: Argument,
    /// f64 `[num_tiles]`
    pub partials: Argument,
    /// One [`State`]
    pub state: Argument,
}

/// One tensor and its state, by device addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameter {
    /// f32
    pub weight: u64,
    /// f32
    pub grad: u64,
    /// f32 or bf16, as the kernel says
    pub first_moment: u64,
    /// As the first moment.
    pub second_moment: u64,
    /// Gains the new weight in bf16; 0 when nobody computes in bf16.
    pub copy: u64,
    /// Elements of each.
    pub num_elements: i64,
    /// Share of the weight that a step of learning rate 1 removes.
    pub weight_decay: f32,
}

/// The share of one block: elements from `part * TILE` on of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Index into the parameters.
    pub parameter: i32,
    /// Which [`TILE`] elements of it.
    pub part: i32,
}

/// What the launches of a step tell each other and, when it looks, the host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    /// Euclidean norm of all gradients times the settings' scale, before clipping.
    pub norm: f64,
    /// Steps taken: those whose norm was finite.
    pub num_updates: i64,
    /// Of the settings, times the clipping.
    pub grad_scale: f32,
    /// learning_rate / (1 - beta1^n).
    pub step_size: f32,
    /// 1 / sqrt(1 - beta2^n).
    pub second_correction: f32,
    /// Whether the last step was taken: its norm was finite.
    pub applies: bool,
}

/// Bytes of a [`Parameter`], a [`Tile`] and a [`State`] in memory, as `adamw.cu` asserts them.
pub const PARAMETER_BYTES: usize = 56;
/// As above.
pub const TILE_BYTES: usize = 8;
/// As above.
pub const STATE_BYTES: usize = 32;
// The settings are handed over as they are.
const _: () = assert!(size_of::<AdamW>() == 24);

impl Parameter {
    /// As the kernels read it.
    pub fn to_bytes(&self) -> [u8; PARAMETER_BYTES] {
        let Parameter { weight, grad, first_moment, second_moment, copy, num_elements, weight_decay } = *self;
        let mut bytes = [0; PARAMETER_BYTES];
        for (i, address) in [weight, grad, first_moment, second_moment, copy].into_iter().enumerate() {
            bytes[8 * i..][..8].copy_from_slice(&address.to_ne_bytes());
        }
        bytes[40..48].copy_from_slice(&num_elements.to_ne_bytes());
        bytes[48..52].copy_from_slice(&weight_decay.to_ne_bytes());
        bytes
    }
}

impl Tile {
    /// As the kernels read it.
    pub fn to_bytes(self) -> [u8; TILE_BYTES] {
        let mut bytes = [0; TILE_BYTES];
        bytes[..4].copy_from_slice(&self.parameter.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.part.to_ne_bytes());
        bytes
    }
}

impl State {
    /// Before the first step of a run that has `num_updates` behind it, as the kernels read it.
    pub fn initial_bytes(num_updates: u64) -> [u8; STATE_BYTES] {
        let mut bytes = [0; STATE_BYTES];
        bytes[8..16].copy_from_slice(&num_updates.to_ne_bytes());
        bytes
    }

    /// From what the kernels wrote.
    pub fn from_bytes(bytes: &[u8; STATE_BYTES]) -> Self {
        fn at<const N: usize>(bytes: &[u8; STATE_BYTES], first: usize) -> [u8; N] {
            std::array::from_fn(|i| bytes[first + i])
        }
        State {
            norm: f64::from_ne_bytes(at(bytes, 0)),
            num_updates: i64::from_ne_bytes(at(bytes, 8)),
            grad_scale: f32::from_ne_bytes(at(bytes, 16)),
            step_size: f32::from_ne_bytes(at(bytes, 20)),
            second_correction: f32::from_ne_bytes(at(bytes, 24)),
            applies: i32::from_ne_bytes(at(bytes, 28)) != 0,
        }
    }
}

/// The tiles of parameters of these lengths, in order.
pub fn tiles(num_elements: impl IntoIterator<Item = usize>) -> Vec<Tile> {
    let parts = |len: usize| 0..len.div_ceil(TILE) as i32;
    let tiles = num_elements.into_iter().enumerate();
    tiles.flat_map(|(i, len)| parts(len).map(move |part| Tile { parameter: i as i32, part })).collect()
}

/// A step, in order: the norm's partials, what is decided for all, the update. Moments are f32 or bf16.
pub fn step(buffers: &Buffers, num_tiles: usize, settings: &AdamW, moments: DType) -> [Call; 3] {
    let Buffers { parameters, tiles, partials, state } = *buffers;
    let settings = Argument::AdamW(*settings);
    [
        call("gradient_squares".to_owned(), geometry::adamw(num_tiles), vec![parameters, tiles, partials]),
        call(
            "adamw_prepare".to_owned(),
            geometry::adamw_prepare(),
            vec![partials, state, settings, Argument::long(num_tiles)],
        ),
        call(
            format!("adamw_step_{moments}"),
            geometry::adamw(num_tiles),
            vec![parameters, tiles, state, settings],
        ),
    ]
}

fn call(kernel: String, launch: Launch, arguments: Vec<Argument>) -> Call {
    Call { source: "adamw.cu", kernel, launch, arguments }
}
