//! What a run says about itself: `metrics.jsonl`, the progress bar, plain log lines, metrics for Prometheus.

mod account;
mod exporter;
pub mod format;
mod message;
mod metrics;
mod progress;
mod tensorboard;

pub use account::{EnergyAccount, Priced};
pub use exporter::{Exporter, ExporterError, RunFacts};
pub use message::message;
pub use metrics::StepMetrics;
pub use progress::Progress;
pub use tensorboard::TensorBoard;
