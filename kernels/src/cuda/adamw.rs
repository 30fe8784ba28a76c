//! What the AdamW kernels read and write in device memory: the structs of `adamw.cu`, field by field.

/// Elements of a tile, the share of one block.
pub const TILE: usize = 8192;

/// One tensor and its state. Pointers are device addresses; `copy` is null when nobody computes in bf16.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AdamWParameter {
    /// f32
    pub weight: *mut f32,
    /// f32
    pub grad: *const f32,
    /// f32 or bf16, as the kernel says
    pub first_moment: *mut std::ffi::c_void,
    /// As the first moment.
    pub second_moment: *mut std::ffi::c_void,
    /// Gains the new weight in bf16.
    pub copy: *mut half::bf16,
    /// Elements of each.
    pub num_elements: i64,
    /// Share of the weight that a step of learning rate 1 removes.
    pub weight_decay: f32,
    /// Fills the struct to a multiple of eight bytes.
    pub unused: i32,
}

/// The share of one block: elements from `part * TILE` on of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct AdamWTile {
    /// Index into the parameters.
    pub parameter: i32,
    /// Which [`TILE`] elements of it.
    pub part: i32,
}

/// The tiles of parameters of these lengths, in order.
pub fn tiles(num_elements: &[usize]) -> Vec<AdamWTile> {
    let parts = |len: usize| 0..len.div_ceil(TILE) as i32;
    let tiles = num_elements.iter().enumerate();
    tiles.flat_map(|(i, &len)| parts(len).map(move |part| AdamWTile { parameter: i as i32, part })).collect()
}

/// The settings of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct AdamWSettings {
    /// Step size.
    pub learning_rate: f32,
    /// Decay of the first moment, in [0, 1).
    pub beta1: f32,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f32,
    /// Keeps the divisor from zero.
    pub epsilon: f32,
    /// Longer gradients are scaled down to this norm; 0 switches that off.
    pub max_norm: f32,
    /// Multiplies every gradient first.
    pub grad_scale: f32,
}

/// What the launches of a step tell each other and, when it looks, the host. All zeros before the first step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct AdamWState {
    /// Euclidean norm of all gradients, before clipping.
    pub norm: f64,
    /// Steps taken: those whose norm was finite.
    pub num_updates: i64,
    /// Of the settings, times the clipping.
    pub grad_scale: f32,
    /// learning_rate / (1 - beta1^n).
    pub step_size: f32,
    /// 1 / sqrt(1 - beta2^n).
    pub second_correction: f32,
    /// 1 when the last step was taken, 0 when its norm was not finite.
    pub applies: i32,
}

// The sizes that the structs of `adamw.cu` have.
const _: () = assert!(size_of::<AdamWParameter>() == 56 && size_of::<AdamWTile>() == 8);
const _: () = assert!(size_of::<AdamWSettings>() == 24 && size_of::<AdamWState>() == 32);
