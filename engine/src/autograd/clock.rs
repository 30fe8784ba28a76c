//! How the time of a step splits over its phases. Energy is attributed along the same lines.

use std::time::{Duration, Instant};

/// What part of a training step is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Reading and assembling the batch.
    Data,
    /// Embedding look-up, final norm, output projection and loss.
    Head,
    /// Attention blocks with their norms and projections.
    Attention,
    /// Dense feed-forward blocks and shared experts, with their norms.
    FeedForward,
    /// Router projection, scores, selection, balance losses.
    Router,
    /// Permuting tokens to experts and back.
    Dispatch,
    /// The routed experts' matrix products and activation.
    Experts,
    /// Gradient norm, clipping and the weight update.
    Optimizer,
}

impl Phase {
    /// Every phase, in the order they are shown.
    pub const ALL: [Phase; 8] = [
        Phase::Data,
        Phase::Head,
        Phase::Attention,
        Phase::FeedForward,
        Phase::Router,
        Phase::Dispatch,
        Phase::Experts,
        Phase::Optimizer,
    ];

    /// The name used in metrics and reports.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Data => "data",
            Phase::Head => "head",
            Phase::Attention => "attention",
            Phase::FeedForward => "feed_forward",
            Phase::Router => "router",
            Phase::Dispatch => "dispatch",
            Phase::Experts => "experts",
            Phase::Optimizer => "optimizer",
        }
    }
}

/// A stopwatch that is always in exactly one phase.
#[derive(Debug)]
pub struct PhaseClock {
    spent: [Duration; Phase::ALL.len()],
    current: Phase,
    since: Instant,
}

impl PhaseClock {
    /// Starts in `phase` with nothing spent.
    pub fn start(phase: Phase) -> Self {
        PhaseClock { spent: [Duration::ZERO; Phase::ALL.len()], current: phase, since: Instant::now() }
    }

    /// Charges the time since the last switch to the phase that ran, and goes on in `phase`.
    pub fn enter(&mut self, phase: Phase) {
        if phase == self.current {
            return;
        }
        let now = Instant::now();
        self.spent[self.current as usize] += now - self.since;
        (self.current, self.since) = (phase, now);
    }

    /// Moves time that was measured inside the current phase to another one.
    pub fn charge(&mut self, phase: Phase, spent: Duration) {
        if phase != self.current {
            self.spent[phase as usize] += spent;
            self.since += spent;
        }
    }

    /// The time spent per phase so far, the running phase included.
    pub fn split(&self) -> [(Phase, Duration); Phase::ALL.len()] {
        Phase::ALL.map(|phase| {
            let running = if phase == self.current { self.since.elapsed() } else { Duration::ZERO };
            (phase, self.spent[phase as usize] + running)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_time_is_in_some_phase_and_charging_moves_it() {
        let begin = Instant::now();
        let mut clock = PhaseClock::start(Phase::Data);
        clock.enter(Phase::Experts);
        std::thread::sleep(Duration::from_millis(5));
        clock.charge(Phase::Dispatch, Duration::from_millis(2));
        clock.enter(Phase::Optimizer);
        let total: Duration = clock.split().iter().map(|(_, spent)| *spent).sum();
        assert!(total <= begin.elapsed());
        assert_eq!(clock.split()[Phase::Dispatch as usize].1, Duration::from_millis(2));
        assert!(clock.split()[Phase::Experts as usize].1 >= Duration::from_millis(3));
    }
}
