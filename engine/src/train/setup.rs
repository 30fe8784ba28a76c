//! Everything a run needs before its first step: directory, text, model, and the checkpoint it goes on from.

use std::path::PathBuf;
use std::sync::Arc;

use wattle_energy::EnergyMonitor;
use wattle_kernels::DType;

use crate::checkpoint;
use crate::config::{ComputePrecision, Config, Resolved};
use crate::data::{CorpusSummary, Dataset, TokenCorpus, TokenStream, Tokenizer};
use crate::files;
use crate::telemetry::{format, message};
use crate::train::resume::{self, Start};
use crate::train::snapshot::{self, Position};
use crate::train::{Learner, Options, Resume, RunDirectory, TrainError, flops_per_token, start_threads};

/// A run that is ready to train.
pub(super) struct Setup {
    pub(super) config: Arc<Config>,
    /// The resolved configuration as text, as in the run directory.
    pub(super) config_toml: String,
    pub(super) run: RunDirectory,
    pub(super) learner: Learner,
    pub(super) tokenizer: Tokenizer,
    pub(super) data: Dataset,
    /// None when nothing is held out.
    pub(super) held_out: Option<TokenStream>,
    pub(super) position: Position,
    /// The checkpoint the run goes on from.
    pub(super) resumed_from: Option<PathBuf>,
    pub(super) monitor: EnergyMonitor,
    pub(super) flops_per_token: f64,
    pub(super) peak_flops: f64,
    quiet: bool,
}

impl Setup {
    /// Opens the run directory, reads and tokenises the text, builds or restores the model.
    pub(super) fn open(resolved: &Resolved, options: &Options) -> Result<Self, TrainError> {
        let config = Arc::new(resolved.config.clone());
        // First of all, so that the energy of setting up is counted too.
        let monitor = EnergyMonitor::from_config(&config.energy)?;
        start_threads(config.device.threads)?;
        let config_toml = resume::config_text(resolved)?;
        let Start { run, checkpoint, origin, messages } = resume::choose(resolved, options)?;
        let say = |text: &str| {
            if !options.quiet {
                message(text);
            }
        };
        messages.iter().for_each(|message| say(message));
        files::write_atomically(&run.config(), config_toml.as_bytes())?;

        let tokenizer = match &checkpoint {
            // One made anew might not be the one that the weights know.
            Some(_) => {
                Tokenizer::from_file(&tokenizer_file(&run, origin).unwrap_or_else(|| run.tokenizer()))?
            }
            None => Tokenizer::from_config(&config.tokenizer, &config.data, config.run.seed)?,
        };
        if checkpoint.is_none() || !run.tokenizer().exists() {
            tokenizer.save(&run.tokenizer())?;
        }
        let corpus = TokenCorpus::load(&config.data, &tokenizer, config.run.seed)?;
        describe(&corpus, &tokenizer).iter().for_each(|line| say(line));
        let text = corpus.fingerprint();
        let sequence_length = config.data.sequence_length;
        let data =
            Dataset::new(Arc::new(corpus.train), sequence_length, config.data.shuffle, config.run.seed)?;
        let held_out = match corpus.held_out.len() {
            0 | 1 => None,
            _ => Some(corpus.held_out),
        };

        let compute = match config.precision.compute {
            ComputePrecision::F32 => DType::F32,
            ComputePrecision::Bf16 => DType::Bf16,
            ComputePrecision::Auto if wattle_kernels::bf16_is_fast() => DType::Bf16,
            ComputePrecision::Auto => DType::F32,
        };
        let vocab_size = config.model.vocab_size.unwrap_or(tokenizer.vocab_size());
        tokenizer.check_rows(vocab_size)?;
        let seed = checkpoint.is_none().then_some(config.run.seed);
        let mut learner = Learner::new(
            &config.model,
            config.moe.as_ref(),
            vocab_size,
            sequence_length,
            compute,
            config.optimizer.clone(),
            seed,
        )?;
        let (position, resumed_from) = match checkpoint {
            None => (Position::default(), None),
            Some((path, state)) => (snapshot::restore(&mut learner, state, &path)?, Some(path)),
        };
        if !position.text.is_empty() && position.text != text {
            return Err(TrainError::TextChanged { run: run.path().to_owned(), step: position.step });
        }
        let position = Position { text, ..position };
        if let Resume::From(_) = options.resume {
            // The line of training that this one leaves; a kill before the next save must not lead back to it.
            checkpoint::remove_after(&run.checkpoints(), position.step)?;
        }
        files::trim_jsonl_after(&run.metrics(), |object| {
            object.get("step").and_then(serde_json::Value::as_u64).is_some_and(|step| step <= position.step)
        })?;
        say(&format!(
            "model of {} parameters, {} on {} CPU threads",
            format::count(learner.store.num_weights() as u64),
            compute,
            rayon::current_num_threads(),
        ));
        match &resumed_from {
            Some(path) => say(&format!(
                "going on from {} (step {}); --resume never starts anew",
                path.display(),
                position.step
            )),
            None => say(&format!("run directory {}", run.path().display())),
        }
        let moe = config.moe.as_ref();
        let flops = flops_per_token(&config.model, moe, vocab_size, sequence_length);
        Ok(Setup {
            config_toml,
            run,
            learner,
            tokenizer,
            data,
            held_out,
            position,
            resumed_from,
            monitor,
            flops_per_token: flops,
            peak_flops: wattle_kernels::peak::measure_flops(compute),
            quiet: options.quiet,
            config,
        })
    }

    /// Prints a line for a person, unless the run is quiet.
    pub(super) fn say(&self, text: &str) {
        if !self.quiet {
            message(text);
        }
    }
}

/// The tokenizer of this run, or else of the run it goes on from.
fn tokenizer_file(run: &RunDirectory, origin: Option<PathBuf>) -> Option<PathBuf> {
    let origin = origin.map(|path| RunDirectory::at(&path).tokenizer());
    [Some(run.tokenizer()), origin].into_iter().flatten().find(|path| path.exists())
}

/// What was read, and what was not.
fn describe(corpus: &TokenCorpus, tokenizer: &Tokenizer) -> Vec<String> {
    let mut lines = vec![format!(
        "{} documents, {}: {} tokens to train on, {} held out, vocabulary {}",
        format::count(corpus.summary.num_documents),
        format::bytes(corpus.summary.num_bytes as usize),
        format::count(corpus.train.len() as u64),
        format::count(corpus.held_out.len() as u64),
        format::count(tokenizer.vocab_size() as u64),
    )];
    let summaries = [Some(&corpus.summary), corpus.validation_summary.as_ref()];
    lines.extend(summaries.into_iter().flatten().filter_map(skipped));
    lines
}

fn skipped(summary: &CorpusSummary) -> Option<String> {
    let first = summary.skipped.first()?;
    Some(format!(
        "{} files skipped; the first is {}: {}",
        summary.skipped.len(),
        first.path.display(),
        first.reason
    ))
}
