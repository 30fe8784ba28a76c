//! Signals as flags: TERM and INT ask for an end at the step border, a second one ends at once, USR1 asks for a
//! checkpoint.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

/// What the outside asked for.
#[derive(Debug, Default)]
pub struct Signals {
    stop: Arc<AtomicBool>,
    checkpoint: Arc<AtomicBool>,
}

impl Signals {
    /// Starts listening.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn listen() -> io::Result<Self> {
        let signals = Signals::default();
        for signal in [SIGTERM, SIGINT] {
            // Registered first, so that it sees the flag of the signal before: the second one ends the process.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&signals.stop))?;
            flag::register(signal, Arc::clone(&signals.stop))?;
        }
        flag::register(SIGUSR1, Arc::clone(&signals.checkpoint))?;
        Ok(signals)
    }

    /// Whether to write a checkpoint and end.
    pub fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether a checkpoint was asked for since the last call.
    pub fn take_checkpoint(&self) -> bool {
        self.checkpoint.swap(false, Ordering::Relaxed)
    }
}
