//! The plan of a configuration: parameters, operations, memory, and their cost on the hardware asked for.

use anyhow::Result;
use serde_json::{Map, Value, json};
use wattle_energy::carbon;
use wattle_energy::meter::model::Machine;
use wattle_energy::planner::hardware::modelled_watts;
use wattle_energy::planner::{Embodied, Factor, Hardware, Inputs, Range, Work};
use wattle_kernels::{DType, peak};

use super::Arguments;
use super::history::History;
use crate::config::{ComputePrecision, Config};
use crate::data::{Tokenizer, config::TokenizerKind};
use crate::telemetry::format;
use crate::train::{Footprint, flops_per_token, start_threads};

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

/// The chips that are planned on.
enum Place<'a> {
    /// This machine's processor.
    Here(Machine),
    /// An entry of the table.
    Known(&'a Hardware),
}

/// For programs and for people.
pub(super) fn plan(config: &Config, arguments: &Arguments) -> Result<(Map<String, Value>, String)> {
    let place = match arguments.hardware {
        Some(hardware) => Place::Known(hardware),
        None => {
            start_threads(config.device.threads)?;
            Place::Here(Machine::detect(config.energy.tdp_watts))
        }
    };
    let compute = place.compute(config);
    let (model, moe) = (&config.model, config.moe.as_ref());
    let vocab_size = vocab_size(config)?;
    let sequence = config.data.sequence_length;
    let sequences = config.optimizer.batch_sequences;
    // Every device holds the whole model and takes its share of the batch.
    let sequences_at_once =
        config.optimizer.micro_batch_sequences().min(sequences.div_ceil(arguments.chips as usize));
    let footprint =
        Footprint::new(model, moe, vocab_size, compute, sequences_at_once.saturating_mul(sequence));
    let per_token = flops_per_token(model, moe, vocab_size, sequence);
    let step_tokens = sequences as f64 * sequence as f64;
    let steps = (config.run.max_tokens.get() as f64 / step_tokens).ceil();
    let tokens = steps * step_tokens;

    let history = match place {
        Place::Here(_) => History::of(config),
        Place::Known(_) => None,
    };
    let estimate = Inputs {
        work: Work::Compute {
            flops: per_token * tokens,
            peak_flops: place.peak_flops(compute),
            efficiency: place.efficiency(history.as_ref()),
            chips: f64::from(arguments.chips),
        },
        watts_per_chip: place.watts(history.as_ref(), arguments),
        pue: match arguments.pue {
            Some(pue) => Factor::new(Range::exact(pue), "--pue"),
            None => Factor::new(Range::exact(config.carbon.pue), "carbon.pue"),
        },
        grams_per_kwh: match &arguments.location {
            Some(location) => carbon::lookup(location)?.into(),
            None => config.carbon.intensity()?.into(),
        },
        embodied: place.embodied(config, arguments.chips),
    }
    .estimate();

    let available = place.memory_bytes();
    let fits = available.map(|available| footprint.total_bytes() <= available);
    let notes = place.notes(compute, sequences, arguments.chips, fits);
    let mut object = Map::new();
    object.insert("name".into(), config.run.name.clone().into());
    object.insert("hardware".into(), place.name().into());
    object.insert("precision".into(), compute.name().into());
    object.insert("total_params".into(), footprint.total_params.into());
    object.insert("active_params".into(), footprint.active_params.into());
    object.insert("flops_per_token".into(), per_token.into());
    object.insert("tokens".into(), tokens.into());
    object.insert("steps".into(), steps.into());
    object.insert(
        "memory_bytes_per_chip".into(),
        json!({
            "weights": footprint.weight_bytes,
            "compute_copies": footprint.copy_bytes,
            "gradients": footprint.gradient_bytes,
            "moments": footprint.moment_bytes,
            "activations": footprint.activation_bytes,
            "total": footprint.total_bytes(),
            "available": available,
            "fits": fits,
        }),
    );
    object.extend(estimate.to_json());
    object.insert("notes".into(), notes.clone().into());

    let mut text =
        format!("{} on {} x {}, {}\n", config.run.name, arguments.chips, place.name(), compute.name());
    let count = |number: f64| format::count(number as u64);
    let bytes = |bytes: f64| format::bytes(bytes as usize);
    let mut line = |label: &str, what: String| text.push_str(&format!("{label:<12} {what}\n"));
    line(
        "parameters",
        format!(
            "{}, of which a token uses {}",
            count(footprint.total_params),
            count(footprint.active_params)
        ),
    );
    line(
        "tokens",
        format!("{} in {} steps, {per_token:.3e} FLOPs for each token", count(tokens), count(steps)),
    );
    line(
        "memory",
        format!(
            "{} a chip: weights {}, gradients {}, moments {}, activations {}{}",
            bytes(footprint.total_bytes()),
            bytes(footprint.weight_bytes + footprint.copy_bytes),
            bytes(footprint.gradient_bytes),
            bytes(footprint.moment_bytes),
            bytes(footprint.activation_bytes),
            available.map_or(String::new(), |available| format!("; it has {}", bytes(available))),
        ),
    );
    text.push_str(&estimate.to_text());
    notes.iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
    Ok((object, text))
}

/// The number of token ids; of a tokenizer that is still to be trained, the number asked for.
fn vocab_size(config: &Config) -> Result<usize> {
    let tokenizer = &config.tokenizer;
    Ok(match tokenizer.kind {
        TokenizerKind::Bpe => tokenizer.vocab_size,
        _ => Tokenizer::from_config(tokenizer, &config.data, config.run.seed)?.vocab_size(),
    })
}

impl Place<'_> {
    fn name(&self) -> &str {
        match self {
            Place::Here(machine) if machine.model_name.is_empty() => "this processor",
            Place::Here(machine) => &machine.model_name,
            Place::Known(hardware) => hardware.name,
        }
    }

    fn compute(&self, config: &Config) -> DType {
        match (config.precision.compute, self) {
            (ComputePrecision::F32, _) => DType::F32,
            (ComputePrecision::Bf16, _) => DType::Bf16,
            (ComputePrecision::Auto, Place::Here(_)) if wattle_kernels::bf16_is_fast() => DType::Bf16,
            (ComputePrecision::Auto, Place::Known(hardware)) if hardware.peak_format != "f32" => DType::Bf16,
            (ComputePrecision::Auto, _) => DType::F32,
        }
    }

    fn peak_flops(&self, compute: DType) -> Factor {
        match self {
            Place::Here(_) => Factor::new(
                Range::exact(peak::measure_flops(compute)),
                format!("measured now: multiply-adds on {} threads", rayon::current_num_threads()),
            ),
            Place::Known(hardware) => hardware.peak_flops(),
        }
    }

    fn efficiency(&self, history: Option<&History>) -> Factor {
        match (history, self) {
            (Some(history), _) => Factor::new(history.efficiency, format!("mfu of {}", history.describe())),
            (None, Place::Known(hardware)) if hardware.peak_format != "f32" => published_efficiency(),
            (None, _) => processor_efficiency(),
        }
    }

    fn watts(&self, history: Option<&History>, arguments: &Arguments) -> Option<Factor> {
        if let Some(watts) = arguments.chip_watts {
            return Some(Factor::new(Range::exact(watts), "--chip-watts"));
        }
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
                let watts = machine.cpu_watts(1.0).0 + machine.ram_watts().0;
                Some(modelled_watts(watts, &machine.describe()))
            }
            (None, Place::Known(hardware)) => hardware.system_watts(),
        }
    }

    /// What the user declared of all chips together goes before the table.
    fn embodied(&self, config: &Config, chips: u32) -> Option<Embodied> {
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

    fn memory_bytes(&self) -> Option<f64> {
        match self {
            Place::Here(machine) => Some(machine.memory_bytes as f64),
            Place::Known(hardware) => hardware.memory_gb.map(|gigabytes| gigabytes * 1e9),
        }
    }

    /// What makes the plan worse than its ranges say.
    fn notes(&self, compute: DType, sequences: usize, chips: u32, fits: Option<bool>) -> Vec<String> {
        let mut notes = Vec::new();
        if fits == Some(false) {
            notes.push(
                "it does not fit: lower optimizer.micro_batch_sequences, or spread the model over chips"
                    .into(),
            );
        }
        if chips as usize > sequences {
            notes.push(format!(
                "a step has {sequences} sequences for {chips} chips: raise optimizer.batch_sequences, or the rest is idle"
            ));
        }
        match self {
            Place::Known(hardware) if compute == DType::F32 && hardware.peak_format != "f32" => {
                notes.push(format!(
                    "the run computes in f32, the peak is of {}: time and energy come out too low",
                    hardware.peak_format
                ));
            }
            Place::Known(hardware) if hardware.system_watts().is_none() => {
                notes.push(format!(
                    "--chip-watts says what a {} draws, and with it energy and carbon",
                    hardware.name
                ));
            }
            _ => {}
        }
        notes
    }
}
