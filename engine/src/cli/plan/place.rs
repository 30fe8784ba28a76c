//! Where a planned run computes: this machine's processor or chips of the table, and what is known of them.

use wattle_energy::meter::machine::Machine;
use wattle_energy::planner::hardware::modelled_watts;
use wattle_energy::planner::{Embodied, Factor, Hardware, Range};
use wattle_kernels::{DType, peak};

use super::history::History;
use crate::config::{ComputePrecision, Config};

/// The chips that are planned on.
pub(super) enum Place {
    /// This machine's processor.
    Here(Machine),
    /// An entry of the table.
    Known(&'static Hardware),
}

impl Place {
    /// What people call it.
    pub(super) fn name(&self) -> &str {
        match self {
            Place::Here(machine) if machine.model_name.is_empty() => "this processor",
            Place::Here(machine) => &machine.model_name,
            Place::Known(hardware) => hardware.name,
        }
    }

    /// The number format that the configuration comes to there.
    pub(super) fn compute(&self, config: &Config) -> DType {
        match (config.precision.compute, self) {
            (ComputePrecision::F32, _) => DType::F32,
            (ComputePrecision::Bf16, _) => DType::Bf16,
            (ComputePrecision::Auto, Place::Here(_)) if wattle_kernels::bf16_is_fast() => DType::Bf16,
            (ComputePrecision::Auto, Place::Known(hardware)) if hardware.peak_format != "f32" => DType::Bf16,
            (ComputePrecision::Auto, _) => DType::F32,
        }
    }

    /// Operations per second of one chip at most.
    pub(super) fn peak_flops(&self, compute: DType) -> Factor {
        match self {
            Place::Here(_) => Factor::new(
                Range::exact(peak::measure_flops(compute)),
                format!("measured now: multiply-adds on {} threads", rayon::current_num_threads()),
            ),
            Place::Known(hardware) => hardware.peak_flops(),
        }
    }

    /// The share of the peak: of earlier runs here, or of others elsewhere.
    pub(super) fn efficiency(&self, history: Option<&History>) -> Factor {
        match (history, self) {
            (Some(history), _) => Factor::new(history.efficiency, format!("mfu of {}", history.describe())),
            (None, Place::Known(hardware)) if hardware.peak_format != "f32" => published_efficiency(),
            (None, _) => processor_efficiency(),
        }
    }

    /// Mean power of one chip with its share of the computer; `None` when nobody has published it.
    pub(super) fn watts(&self, history: Option<&History>) -> Option<Factor> {
        match (history.and_then(|history| Some((history, history.watts?))), self) {
            (Some((history, watts)), _) if history.is_measured => {
                Some(Factor::new(watts, format!("measured over the steps of {}", history.describe())))
            }
            // What the model said then it would say again, with its error.
            (Some((history, watts)), _) => {
                let modelled = modelled_watts(1.0, &format!("the steps of {}", history.describe()));
                Some(Factor::new(watts * modelled.range, modelled.source))
            }
            (None, Place::Here(machine)) => {
                let watts = machine.cpu_watts(1.0).0 + machine.memory.watts().0;
                Some(modelled_watts(watts, &machine.describe()))
            }
            (None, Place::Known(hardware)) => hardware.system_watts(),
        }
    }

    /// What the user declared of all chips together goes before the table.
    pub(super) fn embodied(&self, config: &Config, chips: u32) -> Option<Embodied> {
        match (&config.carbon.embodied, self) {
            (Some(declared), _) => Some(Embodied {
                kg_per_chip: declared.kg * declared.share / f64::from(chips),
                lifetime_years: declared.lifetime_years,
                boundary: declared.boundary.clone().into(),
                source: "carbon.embodied".into(),
            }),
            (None, Place::Known(hardware)) => hardware.embodied(),
            (None, Place::Here(_)) => None,
        }
    }

    /// Memory of one chip; `None` when it is the owner's choice.
    pub(super) fn memory_bytes(&self) -> Option<f64> {
        match self {
            Place::Here(machine) => Some(machine.memory.bytes as f64),
            Place::Known(hardware) => hardware.memory_gb.map(|gigabytes| gigabytes * 1e9),
        }
    }
}

/// Shares of the peak that training reached elsewhere, for chips that no run has been seen on.
fn published_efficiency() -> Factor {
    Factor::new(
        Range { low: 0.197, mid: 0.39, high: 0.493 },
        "no earlier run on this hardware; published: 0.197 GPT-3 on V100 (Patterson 2021), 0.390 Qwen2-57B-A14B and \
         0.493 Mixtral 8x22B on H100 (Megatron Core, arXiv 2504.14960)",
    )
}

/// Shares of the peak that Wattle reached on a processor, when no run has been seen on this one.
fn processor_efficiency() -> Factor {
    Factor::new(
        Range { low: 0.32, mid: 0.48, high: 0.53 },
        "no earlier run on this hardware; preset S on an Intel Xeon, which swings by a third (docs/performance.md)",
    )
}
