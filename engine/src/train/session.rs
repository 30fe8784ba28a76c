//! A training run from start to end: steps, evaluation, checkpoints, and everyone who watches.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use wattle_energy::WindowKind;
use wattle_energy::attribution::PhaseEnergy;

use crate::autograd::Phase;
use crate::config::Resolved;
use crate::data::evaluation_batches;
use crate::files::JsonlWriter;
use crate::telemetry::{
    EnergyAccount, Exporter, Priced, Progress, RunFacts, StepMetrics, TensorBoard, message,
};
use crate::train::setup::Setup;
use crate::train::signals::Signals;
use crate::train::snapshot;
use crate::train::summary::Summary;
use crate::train::{Options, StepReport, TrainError};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The token budget is spent.
    Completed,
    /// `--max-steps` was reached first.
    MaxSteps,
    /// A signal asked for the end; the checkpoint is durable.
    Signalled,
}

/// What a run leaves behind.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Where its files are.
    pub run_directory: PathBuf,
    /// How it ended.
    pub ended: Ended,
}

/// Trains as the configuration says, from the start or from a checkpoint, and returns when the run ended.
///
/// # Errors
/// [`TrainError`]; whatever was durable stays so.
pub fn train(resolved: &Resolved, options: &Options) -> Result<Outcome, TrainError> {
    let signals =
        Signals::listen().map_err(|source| TrainError::System { action: "listen for signals", source })?;
    // Before the long set-up, so that an address that is taken is told at once.
    let exporter = resolved.config.telemetry.prometheus_address().map(Exporter::start).transpose()?;
    if let Some(exporter) = &exporter {
        message(format_args!("metrics at http://{}/metrics", exporter.address()));
    }
    let mut session = Session::start(Setup::open(resolved, options)?, exporter, options)?;
    let result = session.run(&signals, options.max_steps);
    let closed = session.close(&result, options);
    let ended = match (result, closed) {
        (Ok(ended), closed) => closed.map(|()| ended)?,
        (Err(error), closed) => {
            // What ended the run is the error to return; that the books did not close is said beside it.
            if let Err(beside) = closed {
                message(format_args!("and the energy account was not closed: {beside}"));
            }
            return Err(error);
        }
    };
    Ok(Outcome { run_directory: session.setup.run.path().to_owned(), ended })
}

/// A run in progress.
struct Session {
    setup: Setup,
    energy: EnergyAccount,
    metrics: JsonlWriter,
    /// None unless asked for.
    exporter: Option<Exporter>,
    board: Option<TensorBoard>,
    progress: Progress,
    /// Seconds of training in earlier parts of the run.
    seconds_before: f64,
    started: Instant,
    /// Steps in a row that were not finite.
    nonfinite_in_a_row: u64,
    last_checkpoint: PathBuf,
    /// The step that a checkpoint in the run directory holds, 0 before the first.
    saved_step: u64,
    last_step: Option<StepMetrics>,
}

impl Session {
    fn start(setup: Setup, exporter: Option<Exporter>, options: &Options) -> Result<Self, TrainError> {
        let (config, position) = (&setup.config, &setup.position);
        let mut energy = EnergyAccount::open(
            &setup.run,
            config,
            &setup.config_toml,
            &setup.monitor,
            setup.resumed_from.as_ref().map(|_| position.step),
        )?;
        let priced = energy.close(&setup.monitor, WindowKind::Setup, position.step, None)?;
        if let Some(exporter) = &exporter {
            let run_id = setup.run.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            let first_sparse_layer = config.moe.as_ref().map_or(0, |moe| moe.num_leading_dense_layers);
            let intensity = energy.intensity().clone();
            exporter.begin_run(RunFacts { run_id, first_sparse_layer, intensity });
            exporter.window(&priced);
        }
        for alert in energy.alerts(&setup.monitor, position.step)? {
            setup.say(&format!("energy: {alert}"));
        }
        setup.say(&format!(
            "energy from {}, set-up took {:.1} s",
            energy.source_label(),
            priced.window.duration.0
        ));
        let metrics = JsonlWriter::open(&setup.run.metrics())?;
        let board = match config.telemetry.tensorboard {
            true => Some(TensorBoard::create(setup.run.path(), position.step)?),
            false => None,
        };
        let progress = Progress::start(
            position.tokens,
            config.run.max_tokens.get(),
            config.telemetry.log_every_steps,
            options.quiet,
        );
        let is_own = |path: &PathBuf| path.parent() == Some(&setup.run.checkpoints());
        Ok(Session {
            saved_step: setup.resumed_from.as_ref().filter(|path| is_own(path)).map_or(0, |_| position.step),
            seconds_before: position.seconds,
            last_checkpoint: setup.resumed_from.clone().unwrap_or_else(|| setup.run.checkpoints()),
            setup,
            energy,
            metrics,
            exporter,
            board,
            progress,
            started: Instant::now(),
            nonfinite_in_a_row: 0,
            last_step: None,
        })
    }

    fn run(&mut self, signals: &Signals, max_steps: Option<u64>) -> Result<Ended, TrainError> {
        let config = self.setup.config.clone();
        let max_tokens = config.run.max_tokens.get();
        if self.setup.position.step > self.saved_step {
            // Begun from a checkpoint elsewhere: from here on this run directory stands on its own.
            self.checkpoint()?;
        }
        let ended = loop {
            let position = &self.setup.position;
            if position.tokens >= max_tokens {
                break Ended::Completed;
            }
            if max_steps.is_some_and(|max| position.step >= max) {
                break Ended::MaxSteps;
            }
            if signals.should_stop() {
                break Ended::Signalled;
            }
            self.step()?;
            let step = self.setup.position.step;
            let is_due = |every: usize| every > 0 && step.is_multiple_of(every as u64);
            // Asked first: a request is met by a checkpoint that was due anyway.
            if signals.take_checkpoint() || is_due(config.checkpoint.every_steps) {
                self.checkpoint()?;
            }
        };
        if self.setup.position.step > self.saved_step {
            self.checkpoint()?;
        }
        Ok(ended)
    }

    /// One optimizer step with everything that follows from it.
    fn step(&mut self) -> Result<(), TrainError> {
        let config = self.setup.config.clone();
        let setup = &mut self.setup;
        let begin = Instant::now();
        let micro = config.optimizer.micro_batch_sequences();
        let num_micro_batches = config.optimizer.batch_sequences / micro;
        let step_tokens = (config.optimizer.batch_sequences * setup.data.sequence_length()) as u64;
        let learning_rate = config.schedule.learning_rate_at(
            setup.position.tokens + step_tokens,
            config.run.max_tokens,
            config.optimizer.learning_rate,
        );
        let first_sample = setup.position.next_sample;
        let data = &setup.data;
        let report = setup.learner.step(num_micro_batches, step_tokens, learning_rate, |micro_batch| {
            data.batch(first_sample + (micro_batch * micro) as u64, micro)
        })?;
        setup.position.after_step(&report, config.optimizer.batch_sequences as u64);
        let spent = begin.elapsed();
        let (step, tokens) = (setup.position.step, setup.position.tokens);
        let first_sparse_layer = config.moe.as_ref().map_or(0, |moe| moe.num_leading_dense_layers);
        let priced = self.energy.close_step(&self.setup.monitor, step, &report, first_sparse_layer)?;
        let mut metrics = self.metrics_of(&report, learning_rate, spent, &priced);
        if let Some(exporter) = &self.exporter {
            exporter.price(self.energy.intensity());
            exporter.step(&metrics, &priced, &report.routing, self.setup.monitor.totals().resets);
        }
        let is_last = tokens >= config.run.max_tokens.get();
        let every = config.eval.every_steps as u64;
        if is_last || (every > 0 && step.is_multiple_of(every)) {
            metrics.val_loss = self.evaluate()?;
        }
        self.metrics.write(&metrics)?;
        self.metrics.flush()?;
        if let Some(board) = &mut self.board {
            board.step(&metrics)?;
        }
        self.progress.step(&metrics);
        self.last_step = Some(metrics);
        for alert in self.energy.alerts(&self.setup.monitor, step)? {
            self.progress.message(&format!("energy: {alert}"));
        }
        self.guard(&report, first_sample)
    }

    /// Ends the run when too many steps in a row were not finite.
    fn guard(&mut self, report: &StepReport, first_sample: u64) -> Result<(), TrainError> {
        if report.applied {
            self.nonfinite_in_a_row = 0;
            return Ok(());
        }
        self.nonfinite_in_a_row += 1;
        let step = self.setup.position.step;
        self.progress.message(&format!("step {step}: loss or gradient not finite, step skipped"));
        if self.nonfinite_in_a_row < self.setup.config.run.max_nonfinite_steps as u64 {
            return Ok(());
        }
        self.checkpoint()?;
        Err(TrainError::NotFinite {
            step,
            count: self.nonfinite_in_a_row,
            checkpoint: self.last_checkpoint.clone(),
            sample: first_sample,
        })
    }

    /// The held-out loss, or none without held-out data.
    fn evaluate(&mut self) -> Result<Option<f64>, TrainError> {
        let Some(held_out) = &self.setup.held_out else { return Ok(None) };
        let config = &self.setup.config;
        let micro_batch = config.optimizer.micro_batch_sequences();
        let sequence_length = config.data.sequence_length;
        let batch_tokens = (micro_batch * sequence_length) as u64;
        let num_batches = match config.eval.max_tokens.get() {
            0 => usize::MAX,
            max_tokens => max_tokens.div_ceil(batch_tokens) as usize,
        };
        let batches = evaluation_batches(held_out, sequence_length, micro_batch)?.take(num_batches);
        let evaluation = self.setup.learner.evaluate(batches)?;
        let priced = self.energy.close(
            &self.setup.monitor,
            WindowKind::Evaluation,
            self.setup.position.step,
            Some(evaluation.loss),
        )?;
        if let Some(exporter) = &self.exporter {
            exporter.evaluation(&priced, evaluation.loss);
        }
        Ok(Some(evaluation.loss))
    }

    fn checkpoint(&mut self) -> Result<(), TrainError> {
        self.metrics.sync()?;
        self.setup.position.seconds = self.seconds();
        self.last_checkpoint = snapshot::save(&self.setup)?;
        self.saved_step = self.setup.position.step;
        let step = self.setup.position.step;
        let priced = self.energy.close(&self.setup.monitor, WindowKind::Checkpoint, step, None)?;
        if let Some(exporter) = &self.exporter {
            exporter.window(&priced);
        }
        self.energy.flush()?;
        Ok(())
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    fn metrics_of(
        &self,
        report: &StepReport,
        learning_rate: f64,
        spent: Duration,
        priced: &Priced,
    ) -> StepMetrics {
        let seconds = spent.as_secs_f64();
        let tokens = report.num_tokens as f64;
        let routing = &report.routing;
        let layers = routing.len().max(1) as f64;
        let joules = priced.window.joules.map(|joules| joules.0);
        StepMetrics {
            step: self.setup.position.step,
            tokens: self.setup.position.tokens,
            time: self.seconds(),
            loss: report.losses.total(),
            ce_loss: report.losses.cross_entropy,
            balance_loss: report.losses.balance,
            z_loss: report.losses.z,
            grad_norm: report.gradient_norm,
            lr: learning_rate,
            batch_tokens: report.num_tokens,
            k_mean: self.setup.config.moe.as_ref().map_or(0.0, |moe| moe.top_k as f64),
            expert_load_cv: routing.iter().map(|layer| layer.load_cv).sum::<f64>() / layers,
            dropped_tokens: routing.iter().map(|layer| layer.dropped_tokens).sum(),
            skipped: !report.applied,
            tokens_per_second: tokens / seconds,
            mfu: self.setup.flops_per_token * tokens / seconds / self.setup.peak_flops,
            joules,
            joules_per_token: joules.map(|joules| joules / tokens),
            energy_source: self.energy.source_label().to_owned(),
            watts: priced.window.watts.map(|watts| watts.0),
            grams_co2e: priced.grams,
            grams_co2e_total: self.energy.grams_total(),
            phases: phases_of(&report.phases),
            phase_joules: joules_of(&priced.phases),
            val_loss: None,
        }
    }

    /// Closes the books whatever happened, and tells a person how it went.
    fn close(&mut self, result: &Result<Ended, TrainError>, options: &Options) -> Result<(), TrainError> {
        self.progress.finish();
        let totals = self.energy.finish(&self.setup.monitor, result.as_ref().ok().copied())?;
        if let (Ok(ended), false) = (result, options.quiet) {
            let summary = Summary {
                ended: *ended,
                setup: &mut self.setup,
                last_step: self.last_step.as_ref(),
                energy: &self.energy,
                totals: &totals,
            };
            summary.print()?;
        }
        Ok(())
    }
}

fn joules_of(split: &[PhaseEnergy]) -> Map<String, Value> {
    split.iter().map(|part| (part.phase.to_owned(), Value::from(part.microjoules.joules().0))).collect()
}

fn phases_of(split: &[(Phase, Duration)]) -> Map<String, Value> {
    split
        .iter()
        .filter(|(_, spent)| !spent.is_zero())
        .map(|(phase, spent)| (phase.name().to_owned(), Value::from(spent.as_secs_f64())))
        .collect()
}
