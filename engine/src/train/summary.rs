//! What a person reads when a run has ended: the last numbers, where the joules came from, a sample.

use wattle_energy::EnergyTotals;

use crate::data::StreamDecoder;
use crate::model::{Sampling, generate};
use crate::telemetry::{EnergyAccount, StepMetrics, format, message};
use crate::train::setup::Setup;
use crate::train::{Ended, TrainError};

/// The end of a run.
pub(super) struct Summary<'a> {
    pub(super) ended: Ended,
    pub(super) setup: &'a mut Setup,
    pub(super) last_step: Option<&'a StepMetrics>,
    pub(super) energy: &'a EnergyAccount,
    pub(super) totals: &'a EnergyTotals,
}

impl Summary<'_> {
    /// Prints it to stderr.
    pub(super) fn print(self) -> Result<(), TrainError> {
        if self.ended == Ended::Completed
            && let Some(text) = sample(self.setup)?
        {
            message(format_args!("\nsample\n{}\n", indent(&text)));
        }
        let position = &self.setup.position;
        let line = |label: &str, text: String| message(format_args!("{label:<14} {text}"));
        line(
            "ended",
            match self.ended {
                Ended::Completed => "the token budget is spent".to_owned(),
                Ended::MaxSteps => {
                    format!("--max-steps reached at step {}; the same command goes on", position.step)
                }
                Ended::Signalled => {
                    format!("told to stop at step {}; the same command goes on from there", position.step)
                }
            },
        );
        if let Some(step) = self.last_step {
            let held_out = step
                .val_loss
                .map_or(String::new(), |loss| format!(", held out {loss:.4} ({:.2} perplexity)", loss.exp()));
            line("loss", format!("{:.4} nats/token{held_out}", step.ce_loss));
        }
        let seconds = position.seconds.max(f64::MIN_POSITIVE);
        line(
            "tokens",
            format!(
                "{} in {} steps, {} tokens/s with everything",
                format::count(position.tokens),
                format::count(position.step),
                format::count((position.tokens as f64 / seconds) as u64),
            ),
        );
        line(
            "energy",
            format!(
                "{} in this process from {}, {:.0} % of it measured; counting it took {:.3} % of the time",
                format::joules(self.totals.joules.0),
                self.energy.source_label(),
                100.0 * self.totals.measured_share,
                100.0 * self.totals.overhead_share(),
            ),
        );
        line(
            "carbon",
            format!(
                "{} so far at {}",
                format::grams_co2e(self.energy.grams_total()),
                self.energy.intensity_label(),
            ),
        );
        line("memory", format!("{} at the peak", format::bytes(wattle_kernels::pool::stats().peak_bytes)));
        line("run directory", self.setup.run.path().display().to_string());
        Ok(())
    }
}

/// The model's continuation of the configured prompt.
fn sample(setup: &mut Setup) -> Result<Option<String>, TrainError> {
    let run = &setup.config.run;
    if run.sample_tokens == 0 {
        return Ok(None);
    }
    let boundary = setup.tokenizer.boundary_id();
    let mut prompt = vec![boundary];
    prompt.extend(setup.tokenizer.encode(&run.sample_prompt)?);
    let mut tokens = Vec::new();
    let learner = &mut setup.learner;
    generate(
        &learner.decoder,
        &mut learner.store,
        &mut learner.routing,
        &prompt,
        setup.data.sequence_length(),
        &Sampling { max_tokens: run.sample_tokens, seed: run.seed, ..Sampling::default() },
        |token| {
            tokens.push(token);
            token != boundary
        },
    )?;
    let mut stream = StreamDecoder::new(&setup.tokenizer);
    let mut text = run.sample_prompt.clone();
    for token in tokens.into_iter().filter(|&token| token != boundary) {
        text.push_str(&stream.push(token)?);
    }
    text.push_str(&stream.finish()?);
    Ok(Some(text))
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
