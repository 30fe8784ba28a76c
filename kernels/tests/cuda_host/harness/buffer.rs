//! Device memory on the host, with guards on both sides: a write outside is found, a read outside yields NaN.

use super::{Argument, Float, Floats};

/// Bytes on each side; a multiple of every alignment.
const GUARD: usize = 256;
/// What guards are filled with: NaN as f32, bf16 and f64, -1 as integers.
const GUARD_BYTE: u8 = 0xff;

/// A plain value that kernels read and write. Every bit pattern is valid.
pub trait Value: Copy {}
impl Value for f32 {}
impl Value for f64 {}
impl Value for wattle_kernels::bf16 {}
impl Value for i32 {}
impl Value for u32 {}
impl Value for u64 {}

#[derive(Clone, Copy)]
#[repr(align(256))]
struct Block {
    _bytes: [u8; GUARD],
}

/// An array in device memory, aligned as the device's allocator does it.
pub struct Buffer<T> {
    blocks: Vec<Block>,
    /// Elements between an aligned address and the first one.
    shift: usize,
    len: usize,
    _element: std::marker::PhantomData<T>,
}

impl<T: Value> Buffer<T> {
    /// A buffer that holds `values`.
    pub fn new(values: &[T]) -> Self {
        Self::shifted(values, 0)
    }

    /// A buffer whose first element lies `shift` elements behind an aligned address, as in a slice of another.
    pub fn shifted(values: &[T], shift: usize) -> Self {
        let num_blocks = 2 + ((shift + values.len()) * size_of::<T>()).div_ceil(GUARD);
        let blocks = vec![Block { _bytes: [GUARD_BYTE; GUARD] }; num_blocks];
        let mut buffer = Buffer { blocks, shift, len: values.len(), _element: std::marker::PhantomData };
        let start = buffer.start();
        let source = values.as_ptr().cast::<u8>();
        // SAFETY: `values` has this many bytes, and the blocks hold them behind the first guard.
        unsafe {
            let target = buffer.blocks.as_mut_ptr().cast::<u8>().add(start);
            std::ptr::copy_nonoverlapping(source, target, size_of_val(values));
        }
        buffer
    }

    /// The address for a kernel. It stays valid while the buffer lives; kernels write through it between calls here.
    pub fn pointer(&mut self) -> Argument {
        let start = self.start();
        Argument::Pointer(self.blocks.as_mut_ptr().cast::<u8>().wrapping_add(start).cast())
    }

    /// The address with the type that picks the kernel.
    pub fn floats(&mut self) -> Floats
    where
        T: Float,
    {
        Floats { pointer: self.pointer(), dtype: T::DTYPE }
    }

    /// The values.
    ///
    /// # Panics
    /// When something was written outside the buffer.
    #[track_caller]
    pub fn read(&self) -> Vec<T> {
        let bytes = self.blocks.as_ptr().cast::<u8>();
        let (start, total) = (self.start(), self.blocks.len() * GUARD);
        let end = start + self.len * size_of::<T>();
        for place in (0..start).chain(end..total) {
            // SAFETY: `place` lies within the blocks.
            let byte = unsafe { *bytes.add(place) };
            assert_eq!(
                byte,
                GUARD_BYTE,
                "byte {} from the start was overwritten",
                place as isize - start as isize
            );
        }
        // SAFETY: the blocks hold `len` values from `start` on, which is aligned for T as the shift is in elements.
        unsafe { std::slice::from_raw_parts(bytes.add(start).cast::<T>(), self.len) }.to_vec()
    }

    fn start(&self) -> usize {
        GUARD + self.shift * size_of::<T>()
    }
}
