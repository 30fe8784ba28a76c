//! The buffer pool: freed buffers are kept for the next step instead of going back to the system.
//!
//! A training step asks for the same sizes again and again; fresh memory would be zeroed by the kernel page by
//! page each time. The pool holds little more than the peak that was live at once: blocks that are of no use at the
//! peak would otherwise go back to the system at each step's peak, and come again behind it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// Alignment of every buffer: one cache line and one AVX-512 register.
pub const ALIGNMENT: usize = 64;

/// A block of this size or more is mapped by itself. The system then gives each page as it is touched, already zero: a
/// parameter that waits for its values takes no memory, and nothing is zeroed twice.
const MAPPED_BYTES: usize = 1 << 20;

/// The large page of x86-64, and of Arm with small pages of four kibibytes.
const LARGE_PAGE_BYTES: usize = 2 << 20;

/// The largest page that a system uses as its smallest: a mapping ends on the border of one, so that it can be cut there.
const LARGEST_SMALL_PAGE_BYTES: usize = 64 << 10;

/// How much memory tensors use, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Held by tensors now.
    pub live_bytes: usize,
    /// The most that was held at once since the last `reset_peak`.
    pub peak_bytes: usize,
    /// Free and kept for reuse.
    pub cached_bytes: usize,
}

/// Current use of the host pool.
pub fn stats() -> PoolStats {
    lock().stats
}

/// Starts a new peak measurement at the current live size.
pub fn reset_peak() {
    let mut pool = lock();
    pool.stats.peak_bytes = pool.stats.live_bytes;
}

struct Pool {
    free: BTreeMap<usize, Vec<Block>>,
    stats: PoolStats,
}

struct Block(NonNull<u8>);
// SAFETY: a block is plain memory owned by whoever holds it; no thread keeps another pointer to it.
unsafe impl Send for Block {}

static POOL: Mutex<Pool> = Mutex::new(Pool {
    free: BTreeMap::new(),
    stats: PoolStats { live_bytes: 0, peak_bytes: 0, cached_bytes: 0 },
});

fn lock() -> MutexGuard<'static, Pool> {
    // The counters stay consistent at every await-free point, so a panic elsewhere does not spoil them.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An aligned, initialised piece of host memory. Its contents are unspecified when it comes from the pool.
#[derive(Debug)]
pub(crate) struct Buffer {
    ptr: NonNull<u8>,
    /// Rounded size, the pool's class.
    capacity: usize,
    /// True when the memory is fresh from the system and therefore zero.
    pub(crate) zeroed: bool,
}

// SAFETY: the buffer owns its memory; shared access is read-only and exclusive access needs `&mut`.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Takes at least `bytes` from the pool or the system.
    pub(crate) fn take(bytes: usize) -> Result<Self> {
        let capacity = size_class(bytes);
        let mut pool = lock();
        if let Some((capacity, Block(ptr))) = pool.take_free(capacity) {
            pool.stats.cached_bytes -= capacity;
            pool.count_live(capacity);
            return Ok(Buffer { ptr, capacity, zeroed: false });
        }
        pool.trim(capacity);
        let live_bytes = pool.stats.live_bytes;
        let ptr = new_block(capacity).ok_or(Error::OutOfMemory { bytes, live_bytes })?;
        pool.count_live(capacity);
        Ok(Buffer { ptr, capacity, zeroed: true })
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.ptr.as_ptr()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut pool = lock();
        pool.stats.live_bytes -= self.capacity;
        if pool.has_room(self.capacity) {
            pool.stats.cached_bytes += self.capacity;
            pool.free.entry(self.capacity).or_default().push(Block(self.ptr));
        } else {
            free_block(self.ptr, self.capacity);
        }
    }
}

impl Pool {
    fn count_live(&mut self, capacity: usize) {
        self.stats.live_bytes += capacity;
        self.stats.peak_bytes = self.stats.peak_bytes.max(self.stats.live_bytes);
    }

    /// The smallest free block that holds `wanted` bytes, unless it is much larger: ragged sizes that change from step
    /// to step find a block each time.
    fn take_free(&mut self, wanted: usize) -> Option<(usize, Block)> {
        let mut fitting = self.free.range_mut(wanted..=wanted + wanted / 8);
        fitting.find_map(|(capacity, blocks)| Some((*capacity, blocks.pop()?)))
    }

    /// Whether the pool may hold `more` bytes: in all, an eighth above the peak.
    fn has_room(&self, more: usize) -> bool {
        let PoolStats { live_bytes, peak_bytes, cached_bytes } = self.stats;
        live_bytes + cached_bytes + more <= peak_bytes + peak_bytes / 8
    }

    /// Gives cached blocks of other sizes back, largest first, until there is room for `wanted` more bytes.
    fn trim(&mut self, wanted: usize) {
        while self.stats.cached_bytes > 0 && !self.has_room(wanted) {
            let Some(mut entry) = self.free.last_entry() else { return };
            let capacity = *entry.key();
            if let Some(Block(ptr)) = entry.get_mut().pop() {
                self.stats.cached_bytes -= capacity;
                free_block(ptr, capacity);
            }
            if entry.get().is_empty() {
                entry.remove();
            }
        }
    }
}

/// Zeroed memory from the system; none when there is no more. `capacity` is not zero.
fn new_block(capacity: usize) -> Option<NonNull<u8>> {
    if capacity >= MAPPED_BYTES {
        return map(capacity);
    }
    let layout = Layout::from_size_align(capacity, ALIGNMENT).ok()?;
    // SAFETY: the layout is not zero-sized.
    NonNull::new(unsafe { alloc_zeroed(layout) })
}

/// Zeroed pages that take no memory before they are touched: large pages where the system gives them, which cost a
/// fault and an entry of the processor's page cache for each two mebibytes instead of for each four kibibytes.
fn map(capacity: usize) -> Option<NonNull<u8>> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // Room to begin on the border of a large page.
    let slack = if capacity >= LARGE_PAGE_BYTES { LARGE_PAGE_BYTES } else { 0 };
    let block_bytes = mapped_bytes(capacity);
    let mapped = block_bytes.checked_add(slack)?;
    // SAFETY: a new private mapping touches no memory that anybody has.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), mapped, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    if slack == 0 {
        return NonNull::new(start.cast());
    }
    let before = start.cast::<u8>().align_offset(LARGE_PAGE_BYTES);
    // SAFETY: `before` is at most the slack, so both ends and the block between them lie inside the mapping.
    unsafe {
        let block = start.cast::<u8>().add(before);
        unmap(start.cast(), before);
        unmap(block.add(block_bytes), slack - before);
        // A wish: a system without large pages refuses it and gives small ones.
        #[cfg(target_os = "linux")]
        libc::madvise(block.cast(), capacity, libc::MADV_HUGEPAGE);
        NonNull::new(block)
    }
}

/// What a block of `capacity` bytes takes of the address space: whole pages. What lies behind it is never touched.
fn mapped_bytes(capacity: usize) -> usize {
    capacity.next_multiple_of(LARGEST_SMALL_PAGE_BYTES)
}

/// # Safety
/// The range belongs to a mapping whose memory there nobody uses any more; it begins on the border of a page.
unsafe fn unmap(start: *mut u8, bytes: usize) {
    if bytes > 0 {
        // SAFETY: the caller's promise.
        unsafe { libc::munmap(start.cast(), bytes) };
    }
}

fn free_block(ptr: NonNull<u8>, capacity: usize) {
    if capacity >= MAPPED_BYTES {
        // SAFETY: every block of this size is a mapping of exactly so many bytes and is freed once.
        unsafe { unmap(ptr.as_ptr(), mapped_bytes(capacity)) };
        return;
    }
    // SAFETY: every smaller block was allocated in `new_block` with exactly this layout and is freed once.
    unsafe { dealloc(ptr.as_ptr(), Layout::from_size_align_unchecked(capacity, ALIGNMENT)) }
}

/// Rounds up to 256 bytes below a page, to a page above: ragged sizes of one step meet again in the next.
fn size_class(bytes: usize) -> usize {
    let unit = if bytes <= 4096 { 256 } else { 4096 };
    bytes.max(1).next_multiple_of(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_cover_their_request() {
        for bytes in [0, 1, 255, 256, 257, 4096, 4097, 1 << 20] {
            assert!(size_class(bytes) >= bytes.max(1));
            assert_eq!(size_class(size_class(bytes)), size_class(bytes));
        }
    }

    #[test]
    fn a_buffer_is_aligned_and_zero_when_it_is_fresh() {
        for bytes in [1000, MAPPED_BYTES - 1, MAPPED_BYTES, 3 * MAPPED_BYTES + 1] {
            let mut buffer = Buffer::take(bytes).unwrap();
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            // SAFETY: the buffer holds at least `bytes` initialised bytes and is not shared.
            let content = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr(), bytes) };
            assert!(!buffer.zeroed || content.iter().all(|&byte| byte == 0));
            content.fill(1);
        }
    }

    #[test]
    fn more_than_there_is_is_refused() {
        let error = Buffer::take(isize::MAX as usize).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    }
}
