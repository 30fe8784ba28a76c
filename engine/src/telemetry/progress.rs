//! The live bar on a terminal, plain lines elsewhere; all on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::telemetry::{StepMetrics, format, message};

/// Shows a person how the run goes.
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    log_every_steps: u64,
    max_tokens: u64,
    started: Instant,
    tokens_at_start: u64,
    /// Smoothed over steps, so that the line can be read.
    shown: Option<Shown>,
}

#[derive(Clone, Copy)]
struct Shown {
    loss: f64,
    tokens_per_second: f64,
    watts: Option<f64>,
    joules_per_token: Option<f64>,
}

impl Progress {
    /// Starts at `tokens` of `max_tokens`. A bar where stderr is a terminal, else a line every so many steps.
    pub fn start(tokens: u64, max_tokens: u64, log_every_steps: usize, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(max_tokens), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{bar:20} {percent:>3}%  {msg}") {
                bar.set_style(style.progress_chars("━╸ "));
            }
            bar.set_position(tokens);
            bar
        });
        Progress {
            bar,
            quiet,
            log_every_steps: log_every_steps.max(1) as u64,
            max_tokens,
            started: Instant::now(),
            tokens_at_start: tokens,
            shown: None,
        }
    }

    /// Shows a finished step.
    pub fn step(&mut self, metrics: &StepMetrics) {
        let shown = self.smooth(metrics);
        if let Some(bar) = &self.bar {
            bar.set_position(metrics.tokens.min(self.max_tokens));
            bar.set_message(self.line(metrics, shown));
        } else if !self.quiet
            && (metrics.step.is_multiple_of(self.log_every_steps) || metrics.tokens >= self.max_tokens)
        {
            message(format_args!("step {:>6}  {}", metrics.step, self.line(metrics, shown)));
        }
    }

    /// Prints a line without tearing the bar.
    pub fn message(&self, text: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.suspend(|| message(text)),
            None => message(text),
        }
    }

    /// Leaves the last state on the screen.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }

    fn line(&self, metrics: &StepMetrics, shown: Shown) -> String {
        let done = metrics.tokens.saturating_sub(self.tokens_at_start);
        let left = self.max_tokens.saturating_sub(metrics.tokens);
        let eta = self.started.elapsed().as_secs_f64() * left as f64 / done.max(1) as f64;
        let held_out = metrics.val_loss.map_or(String::new(), |loss| format!("  held-out {loss:.3}"));
        format!(
            "loss {:.3}  {} tokens/s  {}  {}  {}  ETA {}{held_out}",
            shown.loss,
            format::count(shown.tokens_per_second as u64),
            shown.watts.map_or("? W".to_owned(), |watts| format!("{watts:.1} W")),
            shown.joules_per_token.map_or("? J/token".to_owned(), |joules| format!("{joules:.4} J/token")),
            format::grams_co2e(metrics.grams_co2e_total),
            // A budget of ages has no time that could be shown.
            format::duration(Duration::try_from_secs_f64(eta).unwrap_or(Duration::MAX)),
        )
    }

    fn smooth(&mut self, metrics: &StepMetrics) -> Shown {
        let now = Shown {
            loss: metrics.ce_loss,
            tokens_per_second: metrics.tokens_per_second,
            watts: metrics.watts,
            joules_per_token: metrics.joules_per_token,
        };
        let before = self.shown.unwrap_or(now);
        let mix = |before: f64, now: f64| if now.is_finite() { 0.8 * before + 0.2 * now } else { before };
        let mix_known = |before: Option<f64>, now: Option<f64>| match (before, now) {
            (Some(before), Some(now)) => Some(mix(before, now)),
            (before, now) => now.or(before),
        };
        let shown = Shown {
            loss: mix(before.loss, now.loss),
            tokens_per_second: mix(before.tokens_per_second, now.tokens_per_second),
            watts: mix_known(before.watts, now.watts),
            joules_per_token: mix_known(before.joules_per_token, now.joules_per_token),
        };
        self.shown = Some(shown);
        shown
    }
}
