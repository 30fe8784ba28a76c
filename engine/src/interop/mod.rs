//! Models from disk, ready to compute: a run directory or one of its checkpoints.

mod loaded;

pub use loaded::LoadedModel;
