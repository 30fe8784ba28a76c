//! Carbon intensities while a run goes on: one thread asks, the run takes what there is and never waits.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;

use super::GridIntensity;
use super::cache::Cache;
use super::provider::{self, Environment, Moment, TIMEOUT, environment};
use super::source::{News, Source};
use crate::clock::Clock;
use crate::config::{CarbonConfig, ProviderKind};
use crate::error::{Error, Result};
use crate::ledger::Role;

/// Most values and messages that wait to be taken; beyond that the oldest are dropped.
const MAX_WAITING: usize = 10_000;

/// The longest sleep of the thread.
const MAX_SLEEP: Duration = Duration::from_secs(3600);

/// The configured providers of a run. Dropping it ends its thread, without waiting for a request in flight.
pub struct CarbonFeed {
    shared: Arc<Shared>,
    clock: Clock,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    news: Vec<(Role, GridIntensity)>,
    alerts: Vec<String>,
    /// Until when, in monotonic time, the last value of the pricing provider holds; `None` without one.
    priced_until: Option<Duration>,
    stop: bool,
}

impl CarbonFeed {
    /// Starts to ask the providers of a configuration. Without any there is no thread and no news. With a directory,
    /// values are kept on disk, so that a restart within their period does not ask again.
    ///
    /// # Errors
    /// What a person must mend before it can work: a setting, a token or a file is missing or wrong. Nothing is asked
    /// yet, so a provider that is down is no error here or later.
    pub fn start(config: &CarbonConfig, cache_directory: Option<&Path>) -> Result<CarbonFeed> {
        Self::start_with(config, cache_directory, &environment)
    }

    fn start_with(
        config: &CarbonConfig,
        cache_directory: Option<&Path>,
        environment: Environment,
    ) -> Result<CarbonFeed> {
        let clock = Clock::system();
        let sources = sources(config, cache_directory, environment, moment(&clock))?;
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        if let Some(first) = sources.first() {
            shared.lock().priced_until = Some(first.holds_until());
            let (shared, clock) = (Arc::clone(&shared), clock.clone());
            thread::Builder::new()
                .name("carbon".into())
                .spawn(move || shared.run(sources, &clock))
                .map_err(|error| Error::Thread { what: "carbon", reason: error.to_string() })?;
        }
        Ok(CarbonFeed { shared, clock })
    }

    /// Every new or corrected value since the last call, to be entered into the ledger in this order. The first
    /// provider's price the energy, the others' are recorded beside.
    pub fn take_news(&self) -> Vec<(Role, GridIntensity)> {
        std::mem::take(&mut self.shared.lock().news)
    }

    /// True when the first provider has given nothing for longer than its stale limit: pricing goes back to the figure
    /// of the location.
    pub fn is_stale(&self) -> bool {
        self.shared.lock().priced_until.is_some_and(|until| self.clock.now() >= until)
    }

    /// What a person should hear: a failure once for each stretch of them, and its end.
    pub fn take_alerts(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().alerts)
    }
}

impl Drop for CarbonFeed {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn run(&self, mut sources: Vec<Source>, clock: &Clock) {
        loop {
            let mut wake_at = clock.now() + MAX_SLEEP;
            for source in &mut sources {
                let news = source.look(moment(clock));
                wake_at = wake_at.min(source.wake_at());
                if !self.publish(source, news) {
                    return;
                }
            }
            let mut state = self.lock();
            while !state.stop && clock.now() < wake_at {
                let sleep = wake_at.saturating_sub(clock.now());
                state = self.changed.wait_timeout(state, sleep).unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.stop {
                return;
            }
        }
    }

    /// Puts news where the run finds them. False when nobody will take them any more.
    fn publish(&self, source: &Source, news: News) -> bool {
        let mut state = self.lock();
        state.news.extend(news.values.into_iter().map(|value| (source.role(), value)));
        state.alerts.extend(news.alerts);
        if source.role() == Role::Priced {
            state.priced_until = Some(source.holds_until());
        }
        drop_oldest(&mut state.news);
        drop_oldest(&mut state.alerts);
        !state.stop
    }

    /// Nothing that holds this lock can wait or fail, so nobody waits for it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drop_oldest<T>(waiting: &mut Vec<T>) {
    let excess = waiting.len().saturating_sub(MAX_WAITING);
    waiting.drain(..excess);
}

fn moment(clock: &Clock) -> Moment {
    Moment { monotonic: clock.now(), wall: Timestamp::now() }
}

fn sources(
    config: &CarbonConfig,
    cache_directory: Option<&Path>,
    environment: Environment,
    now: Moment,
) -> Result<Vec<Source>> {
    let source = |(index, config): (usize, &crate::config::ProviderConfig)| {
        let key = format!("carbon.providers[{index}]");
        let provider = provider::open(config, &key, environment, TIMEOUT)?;
        let role = if index == 0 { Role::Priced } else { Role::Beside };
        let cached = config.kind != ProviderKind::File;
        let cache = cache_directory.filter(|_| cached).map(|directory| Cache::new(directory, config));
        let stale_after = Duration::from_secs(60 * config.stale_after_minutes);
        Ok(Source::new(provider, role, cache, stale_after, now))
    };
    config.providers.iter().enumerate().map(source).collect()
}

#[cfg(test)]
mod tests;
