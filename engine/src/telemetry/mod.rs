//! What a run says about itself: `metrics.jsonl`, the progress bar, plain log lines.

pub mod format;
mod metrics;
mod progress;

pub use metrics::StepMetrics;
pub use progress::Progress;
