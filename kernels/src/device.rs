//! Where a tensor lives and where an operation runs.

/// A place that holds tensors and computes on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// The host processor, all threads of the current rayon pool.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this number, as CUDA counts them.
    Cuda(usize),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}
