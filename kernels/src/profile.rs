//! Where the time goes: each operation, summed by name, element type and shape, with its FLOPs and bytes.
//!
//! Off until [`start`]; then every public function of [`crate::ops`] adds its time. What an operation calls in turn is
//! part of it: no time is counted twice.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::dtype::DType;
use crate::tensor::Tensor;

/// Forgets what was recorded and records from here on, for the whole process.
pub fn start() {
    lock().clear();
    IS_ON.store(true, Ordering::Relaxed);
}

/// Stops recording and gives what was recorded, ordered by name, element type and shape.
pub fn stop() -> Vec<Entry> {
    IS_ON.store(false, Ordering::Relaxed);
    std::mem::take(&mut *lock())
        .into_iter()
        .map(|((op, dtype, shape), total)| Entry { op, dtype, shape, total })
        .collect()
}

/// All calls of one operation on one element type and shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name, as in the crate's errors.
    pub op: &'static str,
    /// Name of the operands' element type.
    pub dtype: &'static str,
    /// Sizes of a product, in the order its file describes; empty for a pass over memory.
    pub shape: Vec<usize>,
    /// What its calls came to.
    pub total: Total,
}

/// Sums over calls.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Total {
    /// Number of calls.
    pub num_calls: u64,
    /// Wall-clock time.
    pub time: Duration,
    /// Floating-point operations of products. Those of passes over memory are not counted.
    pub flops: f64,
    /// Bytes that must be read and written when each operand is moved once.
    pub bytes: f64,
}

/// What one call does, as the operation states it.
#[derive(Debug)]
pub(crate) struct Work {
    shape: Vec<usize>,
    flops: f64,
    bytes: usize,
}

impl Work {
    /// Products that do `flops` over the sizes of `shape` and move `bytes`.
    pub(crate) fn products(shape: &[usize], flops: usize, bytes: usize) -> Self {
        Work { shape: shape.to_vec(), flops: flops as f64, bytes }
    }

    /// A pass over memory that moves `bytes`.
    pub(crate) fn pass(bytes: usize) -> Self {
        Work { shape: Vec::new(), flops: 0.0, bytes }
    }
}

/// Bytes of all `tensors` together.
pub(crate) fn bytes_of(tensors: &[&Tensor]) -> usize {
    tensors.iter().map(|tensor| tensor.size_in_bytes()).sum()
}

/// Measures from here until the value is dropped, when recording is on and no other span is open on this thread. `work`
/// is asked only then.
#[must_use]
pub(crate) fn span(op: &'static str, dtype: DType, work: impl FnOnce() -> Work) -> Option<Span> {
    if !IS_ON.load(Ordering::Relaxed) || IS_OPEN.replace(true) {
        return None;
    }
    Some(Span { op, dtype, work: work(), begin: Instant::now() })
}

/// A call under way.
#[derive(Debug)]
pub(crate) struct Span {
    op: &'static str,
    dtype: DType,
    work: Work,
    begin: Instant,
}

impl Drop for Span {
    fn drop(&mut self) {
        let time = self.begin.elapsed();
        IS_OPEN.set(false);
        let key = (self.op, self.dtype.name(), std::mem::take(&mut self.work.shape));
        let mut totals = lock();
        let total = totals.entry(key).or_default();
        total.num_calls += 1;
        total.time += time;
        total.flops += self.work.flops;
        total.bytes += self.work.bytes as f64;
    }
}

type Key = (&'static str, &'static str, Vec<usize>);

thread_local! {
    /// Whether this thread is inside a span.
    static IS_OPEN: Cell<bool> = const { Cell::new(false) };
}

static IS_ON: AtomicBool = AtomicBool::new(false);
static TOTALS: Mutex<BTreeMap<Key, Total>> = Mutex::new(BTreeMap::new());

fn lock() -> MutexGuard<'static, BTreeMap<Key, Total>> {
    TOTALS.lock().unwrap_or_else(PoisonError::into_inner)
}
