//! The pull exporter: the run's numbers for Prometheus, at `/metrics` of `telemetry.prometheus_address`.
//!
//! A step writes plain numbers under a short lock; a thread of its own copies them for whoever asks. Joules are
//! counters, so that no scrape interval loses energy, and what is unknown has no series instead of a 0. Labels are few
//! and bounded: the run and the step stand in exemplars.

mod catalogue;
mod exposition;
mod gather;
mod histogram;
mod negotiation;
mod server;
#[cfg(test)]
mod shipped;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wattle_energy::GridIntensity;
use wattle_router::RoutingStats;

use self::server::Server;
use self::state::State;
use crate::exit;
use crate::telemetry::{Priced, StepMetrics};

/// Most series in one scrape.
const MAX_SERIES: usize = 2000;

/// A running exporter; dropping it ends the endpoint.
#[derive(Debug)]
pub struct Exporter {
    state: Arc<Mutex<State>>,
    server: Server,
}

/// What a run is, beside its steps.
#[derive(Clone, Debug)]
pub struct RunFacts {
    /// The name of the run directory.
    pub run_id: String,
    /// The number of the first layer with experts.
    pub first_sparse_layer: usize,
    /// What its energy is priced with.
    pub intensity: GridIntensity,
}

/// The address cannot be served at.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.prometheus_address: cannot serve at {address}: {source}; {}", remedy(source))]
pub struct ExporterError {
    address: SocketAddr,
    source: io::Error,
}

impl Exporter {
    /// Listens at `address`; with port 0 at a free port.
    ///
    /// # Errors
    /// When the address is taken, not this machine's, or not permitted.
    pub fn start(address: SocketAddr) -> Result<Self, ExporterError> {
        let state = Arc::new(Mutex::new(State::new()));
        let server = Server::start(address, Arc::clone(&state));
        let server = server.map_err(|source| ExporterError { address, source })?;
        Ok(Exporter { state, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Says which run this is; its counters are known from here on.
    pub fn begin_run(&self, run: RunFacts) {
        lock(&self.state).begin_run(run);
    }

    /// From now on energy is priced with `intensity`.
    pub fn price(&self, intensity: &GridIntensity) {
        if let Some(run) = &mut lock(&self.state).run
            && run.intensity != *intensity
        {
            run.intensity = intensity.clone();
        }
    }

    /// Adds the energy of a window that is no step.
    pub fn window(&self, priced: &Priced) {
        lock(&self.state).window(priced);
    }

    /// Adds an evaluation with its held-out loss.
    pub fn evaluation(&self, priced: &Priced, loss: f64) {
        let mut state = lock(&self.state);
        state.window(priced);
        state.evaluated(loss);
    }

    /// Adds a step with its window: one scrape has all of it or nothing. `sensor_resets` are those of the whole
    /// process so far.
    pub fn step(&self, metrics: &StepMetrics, priced: &Priced, routing: &[RoutingStats], sensor_resets: u64) {
        lock(&self.state).step(metrics, priced, routing, sensor_resets);
    }
}

impl ExporterError {
    /// The exit code of a run that cannot be watched as it was told.
    pub fn exit_code(&self) -> u8 {
        match self.source.kind() {
            io::ErrorKind::PermissionDenied => exit::NOT_PERMITTED,
            _ => exit::INPUT_OUTPUT,
        }
    }
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => "give another port, or 0 to take a free one",
        io::ErrorKind::AddrNotAvailable => "give an address of this machine, such as 127.0.0.1 or 0.0.0.0",
        io::ErrorKind::PermissionDenied => "give a port of 1024 or more",
        _ => "give another address, or leave the key out to serve nothing",
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Numbers that a panic left half added are still numbers, and the run goes on.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
