//! `[device]` and `[precision]`: where a run computes and in which number format.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::problem::Problem;

/// Where the run computes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceConfig {
    /// The kind of device.
    pub kind: DeviceKind,
    /// Number of CPU threads that compute; 0 takes every core the process may use.
    pub threads: usize,
}

/// More threads than any machine has cores would only take memory for their stacks.
const MAX_THREADS: usize = 4096;

impl DeviceConfig {
    /// Everything that is wrong in this section.
    pub fn validate(&self) -> Vec<Problem> {
        match self.threads {
            0..=MAX_THREADS => Vec::new(),
            threads => {
                let message =
                    format!("is {threads}, expected at most {MAX_THREADS}; 0 takes every core there is");
                vec![Problem::new("device.threads", message)]
            }
        }
    }
}

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The fastest device that this build can use.
    #[default]
    Auto,
    /// The processor.
    Cpu,
}

/// In which number format the run computes. Master weights, optimizer state, router and reductions are f32
/// whatever is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PrecisionConfig {
    /// Number format of activations and of the weights that are multiplied.
    pub compute: ComputePrecision,
}

/// The number format of matrix products and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ComputePrecision {
    /// bf16 where the device multiplies it natively, else f32; the log says which.
    #[default]
    Auto,
    /// 32-bit floating point.
    F32,
    /// bfloat16 with f32 accumulation.
    Bf16,
}
