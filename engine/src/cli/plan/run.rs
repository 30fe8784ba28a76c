//! The plan of a configuration: parameters, operations, memory, and their cost on the hardware asked for.

use anyhow::Result;
use serde_json::{Map, Value, json};
use wattle_energy::carbon;
use wattle_energy::meter::machine::Machine;
use wattle_energy::planner::{Estimate, Factor, Inputs, Range, Work};
use wattle_kernels::DType;

use super::Arguments;
use super::history::History;
use super::place::Place;
use crate::config::Config;
use crate::data::{Tokenizer, config::TokenizerKind};
use crate::telemetry::format;
use crate::train::{Footprint, flops_per_token, start_threads};

/// What a configured run will cost.
pub(super) struct Plan<'a> {
    config: &'a Config,
    place: Place,
    num_chips: u32,
    compute: DType,
    footprint: Footprint,
    flops_per_token: f64,
    num_steps: f64,
    num_tokens: f64,
    estimate: Estimate,
}

impl<'a> Plan<'a> {
    /// Looks at the machine and at earlier runs, and reckons.
    pub(super) fn new(config: &'a Config, arguments: &Arguments) -> Result<Self> {
        let place = match arguments.hardware {
            Some(hardware) => Place::Known(hardware),
            None => {
                start_threads(config.device.threads)?;
                Place::Here(Machine::detect(config.energy.tdp_watts))
            }
        };
        let num_chips = arguments.chips;
        let compute = place.compute(config);
        let (model, moe, vocab_size) = (&config.model, config.moe.as_ref(), vocab_size(config)?);
        let (optimizer, sequence) = (&config.optimizer, config.data.sequence_length);
        // Every chip holds the whole model and takes its share of the batch.
        let share = optimizer.batch_sequences.div_ceil(num_chips as usize);
        let tokens_at_once = optimizer.micro_batch_sequences().min(share).saturating_mul(sequence);
        let flops_per_token = flops_per_token(model, moe, vocab_size, sequence);
        let step_tokens = optimizer.batch_sequences as f64 * sequence as f64;
        let num_steps = (config.run.max_tokens.get() as f64 / step_tokens).ceil();
        let num_tokens = num_steps * step_tokens;
        let inputs = inputs(config, &place, arguments, compute, flops_per_token * num_tokens)?;
        Ok(Plan {
            footprint: Footprint::new(model, moe, vocab_size, compute, tokens_at_once),
            estimate: inputs.estimate(),
            config,
            place,
            num_chips,
            compute,
            flops_per_token,
            num_steps,
            num_tokens,
        })
    }

    /// For programs.
    pub(super) fn to_json(&self) -> Map<String, Value> {
        let footprint = &self.footprint;
        let head = json!({
            "name": self.config.run.name,
            "hardware": self.place.name(),
            "precision": self.compute.name(),
            "total_params": footprint.total_params,
            "active_params": footprint.active_params,
            "flops_per_token": self.flops_per_token,
            "tokens": self.num_tokens,
            "steps": self.num_steps,
            "memory_bytes_per_chip": {
                "weights": footprint.weight_bytes,
                "compute_copies": footprint.copy_bytes,
                "gradients": footprint.gradient_bytes,
                "moments": footprint.moment_bytes,
                "activations": footprint.activation_bytes,
                "total": footprint.total_bytes(),
                "available": self.place.memory_bytes(),
                "fits": self.fits(),
            },
            "notes": self.notes(),
        });
        let mut object = self.estimate.to_json();
        object.extend(head.as_object().cloned().unwrap_or_default());
        object
    }

    /// For a terminal.
    pub(super) fn to_text(&self) -> String {
        let footprint = &self.footprint;
        let count = |number: f64| format::count(number as u64);
        let bytes = |bytes: f64| format::bytes(bytes as usize);
        let (name, place) = (&self.config.run.name, self.place.name());
        let mut text = format!("{name} on {} x {place}, {}\n", self.num_chips, self.compute.name());
        let mut line = |label: &str, what: String| text.push_str(&format!("{label:<12} {what}\n"));
        let (total, active) = (count(footprint.total_params), count(footprint.active_params));
        line("parameters", format!("{total}, of which a token uses {active}"));
        let (tokens, steps) = (count(self.num_tokens), count(self.num_steps));
        line(
            "tokens",
            format!("{tokens} in {steps} steps, {:.3e} FLOPs for each token", self.flops_per_token),
        );
        let available = self.place.memory_bytes().map(|available| format!("; it has {}", bytes(available)));
        line(
            "memory",
            format!(
                "{} a chip: weights {}, gradients {}, moments {}, activations {}{}",
                bytes(footprint.total_bytes()),
                bytes(footprint.weight_bytes + footprint.copy_bytes),
                bytes(footprint.gradient_bytes),
                bytes(footprint.moment_bytes),
                bytes(footprint.activation_bytes),
                available.unwrap_or_default(),
            ),
        );
        text.push_str(&self.estimate.to_text());
        self.notes().iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
        text
    }

    /// Whether the memory of a chip is enough; `None` when it is not known.
    fn fits(&self) -> Option<bool> {
        self.place.memory_bytes().map(|available| self.footprint.total_bytes() <= available)
    }

    /// What makes the run worse than the plan's ranges say.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let (sequences, chips) = (self.config.optimizer.batch_sequences, self.num_chips);
        if self.fits() == Some(false) {
            let remedy = "lower optimizer.micro_batch_sequences, or take chips with more memory";
            notes.push(format!("it does not fit into the memory: {remedy}"));
        }
        if chips as usize > sequences {
            notes.push(format!(
                "a step has {sequences} sequences for {chips} chips: raise optimizer.batch_sequences, or the rest \
                 is idle"
            ));
        }
        if let Place::Known(hardware) = self.place {
            if self.compute == DType::F32 && hardware.peak_format != "f32" {
                let format = hardware.peak_format;
                notes.push(format!(
                    "the run computes in f32, the peak is of {format}: time and energy come out too low"
                ));
            }
            if self.estimate.joules.is_none() {
                notes.push("with --chip-watts the energy and the carbon can be told too".to_owned());
            }
        }
        notes
    }
}

/// The factors of the cost, each from the best source there is.
fn inputs(
    config: &Config,
    place: &Place,
    arguments: &Arguments,
    compute: DType,
    flops: f64,
) -> Result<Inputs> {
    let history = match place {
        Place::Here(_) => History::of(config),
        Place::Known(_) => None,
    };
    let history = history.as_ref();
    Ok(Inputs {
        work: Work::Compute {
            flops,
            peak_flops: place.peak_flops(compute),
            efficiency: place.efficiency(history),
            chips: f64::from(arguments.chips),
        },
        watts_per_chip: match arguments.chip_watts {
            Some(watts) => Some(Factor::new(Range::exact(watts), "--chip-watts")),
            None => place.watts(history),
        },
        pue: match arguments.pue {
            Some(pue) => Factor::new(Range::exact(pue), "--pue"),
            None => Factor::new(Range::exact(config.carbon.pue), "carbon.pue"),
        },
        grams_per_kwh: match &arguments.location {
            Some(location) => carbon::lookup(location)?.into(),
            None => config.carbon.intensity()?.into(),
        },
        embodied: place.embodied(config, arguments.chips),
    })
}

/// The number of token ids; of a tokenizer that is still to be trained, the number asked for.
fn vocab_size(config: &Config) -> Result<usize> {
    let tokenizer = &config.tokenizer;
    Ok(match tokenizer.kind {
        TokenizerKind::Bpe => tokenizer.vocab_size,
        _ => Tokenizer::from_config(tokenizer, &config.data, config.run.seed)?.vocab_size(),
    })
}
