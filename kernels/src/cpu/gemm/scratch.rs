//! Aligned memory for packed operands, kept by each thread from one product to the next.

use std::cell::RefCell;

/// The buffers of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// One packed panel of A.
    pub(super) a: Units,
    /// One packed block of B.
    pub(super) b: Units,
    /// f32 sums of a tile whose result is bf16 and whose K is cut into several blocks.
    pub(super) c: Vec<f32>,
}

impl Scratch {
    /// Runs `body` with this thread's buffers.
    pub(super) fn with<R>(body: impl FnOnce(&mut Scratch) -> R) -> R {
        thread_local! {
            static SCRATCH: RefCell<Scratch> = RefCell::default();
        }
        SCRATCH.with_borrow_mut(body)
    }
}

/// A growing buffer of 32-bit units on cache line borders; its contents are unspecified.
#[derive(Default)]
pub(super) struct Units(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _units: [u32; 16],
}

impl Units {
    /// The first `len` units.
    pub(super) fn take(&mut self, len: usize) -> &mut [u32] {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line { _units: [0; 16] });
        }
        // SAFETY: a `Line` is exactly sixteen u32 without padding, and `lines` of them hold `len` units.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }
}
