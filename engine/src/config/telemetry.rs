//! `[telemetry]`: what a run says about itself while it goes on.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problem::{Problem, at_least_one};

/// What the run says about itself. `metrics.jsonl` always gets one object a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Steps between two log lines when standard error is no terminal; on a terminal there is a progress bar
    /// instead.
    pub log_every_steps: usize,
    /// Address and port at which Prometheus may read the run's metrics. Port 0 takes a free one and tells it on
    /// standard error. Without this key nothing is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prometheus_address: Option<String>,
    /// Whether the run directory gets an event file for TensorBoard.
    pub tensorboard: bool,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        TelemetryConfig { log_every_steps: 10, prometheus_address: None, tensorboard: true }
    }
}

impl TelemetryConfig {
    /// Everything that is wrong in this section.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        at_least_one(&mut problems, "telemetry.log_every_steps", self.log_every_steps);
        if let Some(Err(problem)) = self.parsed_address() {
            problems.push(problem);
        }
        problems
    }

    /// Where to serve metrics; none without the key.
    pub fn prometheus_address(&self) -> Option<SocketAddr> {
        self.parsed_address()?.ok()
    }

    fn parsed_address(&self) -> Option<Result<SocketAddr, Problem>> {
        let text = self.prometheus_address.as_ref()?;
        Some(text.parse().map_err(|_| {
            Problem::new(
                "telemetry.prometheus_address",
                format!(
                    "is {text:?}, expected an IP address and a port such as \"127.0.0.1:9464\" or \"[::1]:9464\"; \
                     0.0.0.0 opens it to the network, port 0 takes a free one"
                ),
            )
        }))
    }
}
