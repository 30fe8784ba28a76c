//! One provider as a run uses it: when to ask, what is new, what to do while it gives nothing.
//!
//! The rungs of the ladder: a value of the present; else the last value, held within the stale limit and marked as an
//! estimate; else none, so that the caller goes back to the yearly figure. Waiting is done on the monotonic clock
//! alone, so a wall clock that jumps cannot cause a burst of requests.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::cache::{Cache, Cached};
use super::provider::{Failure, FailureKind, LOOK_BACK, Moment, Provider};
use super::{GridIntensity, Period};
use crate::ledger::Role;

/// A provider is never asked twice within this time.
const MIN_INTERVAL: Duration = Duration::from_secs(60);

/// When the value of the present is late.
const LATE: Duration = Duration::from_secs(300);

/// Corrections of long periods are looked for this often.
const MAX_INTERVAL: Duration = Duration::from_secs(3600);

/// Waiting after failures doubles up to this.
const MAX_BACKOFF: Duration = Duration::from_secs(1800);

/// When only a person can help; the person may have helped on the provider's side.
const UNUSABLE: Duration = Duration::from_secs(3600);

/// The longest that a provider can send us away.
const MAX_BUSY: Duration = Duration::from_secs(24 * 3600);

/// A provider with its schedule and its memory.
pub(super) struct Source {
    provider: Box<dyn Provider>,
    role: Role,
    cache: Option<Cache>,
    /// When to look next, in monotonic time.
    due: Duration,
    /// Failures since the last answer.
    num_failures: u32,
    /// What was said, by start of the period.
    known: BTreeMap<Timestamp, GridIntensity>,
    /// Only what ends after this concerns the run.
    since: Timestamp,
    stale_after: Duration,
    /// In monotonic time, until when the last value holds.
    holds_until: Duration,
    is_stale: bool,
    /// The end of the value that is being held.
    held: Option<Timestamp>,
    cache_failed: bool,
}

/// What came of a look.
#[derive(Debug, Default)]
pub(super) struct News {
    /// New and corrected values, in order of time.
    pub(super) values: Vec<GridIntensity>,
    /// What a person should hear.
    pub(super) alerts: Vec<String>,
}

impl Source {
    pub(super) fn new(
        provider: Box<dyn Provider>,
        role: Role,
        cache: Option<Cache>,
        stale_after: Duration,
        now: Moment,
    ) -> Self {
        Source {
            provider,
            role,
            cache,
            due: now.monotonic,
            num_failures: 0,
            known: BTreeMap::new(),
            since: now.wall,
            stale_after,
            holds_until: now.monotonic + stale_after,
            is_stale: false,
            held: None,
            cache_failed: false,
        }
    }

    /// Whether its values price the energy.
    pub(super) fn role(&self) -> Role {
        self.role
    }

    /// Until when, in monotonic time, its last value holds.
    pub(super) fn holds_until(&self) -> Duration {
        self.holds_until
    }

    /// When, in monotonic time, it wants to be looked after.
    pub(super) fn wake_at(&self) -> Duration {
        if self.is_stale { self.due } else { self.due.min(self.holds_until) }
    }

    /// Asks the provider if it is time, and tells what is new.
    pub(super) fn look(&mut self, now: Moment) -> News {
        let mut news = News::default();
        // A clock that was ahead at the start must not hide what comes after it was set right.
        self.since = self.since.min(now.wall);
        if now.monotonic >= self.due {
            if !self.take_from_cache(now, &mut news) {
                self.ask(now, &mut news);
            }
            self.hold(now, &mut news);
        }
        self.notice_stale(now, &mut news);
        news
    }

    /// Takes what this or another process was told before. True when the provider need not be asked now.
    fn take_from_cache(&mut self, now: Moment, news: &mut News) -> bool {
        let Some(cached) = self.cache.as_ref().and_then(Cache::load) else { return false };
        let of_present = |value: &GridIntensity| value.period.is_some_and(|period| period.contains(now.wall));
        let has_present = cached.values.iter().any(of_present);
        // A trace from the future is from before the wall clock was set back.
        let is_sane = cached.asked_at <= now.wall;
        self.enter(cached.values, now, news);
        if !is_sane {
            return false;
        }
        if has_present {
            self.recover(news);
            self.due = now.monotonic + self.wait_for_next(now);
            return true;
        }
        let wait = Duration::try_from(cached.not_before.duration_since(now.wall)).unwrap_or_default();
        self.due = now.monotonic + wait.min(MAX_BUSY);
        !wait.is_zero()
    }

    fn ask(&mut self, now: Moment, news: &mut News) {
        match self.provider.recent(now) {
            Ok(answer) => {
                self.recover(news);
                news.alerts.extend(answer.note);
                self.enter(answer.values.clone(), now, news);
                let rest = answer.busy.unwrap_or_default().clamp(MIN_INTERVAL, MAX_BUSY);
                self.due = now.monotonic + self.wait_for_next(now).max(rest);
                self.store(now, rest, answer.values, news);
            }
            Err(failure) => {
                if self.num_failures == 0 {
                    news.alerts.push(failure.to_string());
                }
                self.num_failures = self.num_failures.saturating_add(1);
                let wait = wait_after(&failure, self.num_failures);
                self.due = now.monotonic + wait;
                // Whoever mends what only a person can mend, and starts again, must not have to wait.
                if !matches!(failure.kind, FailureKind::Unauthorised | FailureKind::Unusable) {
                    self.store(now, wait, Vec::new(), news);
                }
            }
        }
    }

    /// Ends a stretch of failures.
    fn recover(&mut self, news: &mut News) {
        if self.num_failures > 0 {
            news.alerts.push(format!("{} answers again", self.provider.whom()));
        }
        self.num_failures = 0;
    }

    /// Time until there should be something new.
    fn wait_for_next(&self, now: Moment) -> Duration {
        let present = self.known.range(..=now.wall).next_back().and_then(|(_, value)| value.period);
        let left = present.filter(|period| period.contains(now.wall)).map(|period| until(period.until, now));
        let wait = left.map_or(LATE, |left| left.min(MAX_INTERVAL) + self.provider.delay());
        wait.max(MIN_INTERVAL) + MIN_INTERVAL.mul_f64(0.2 * random())
    }

    /// Remembers values and tells those that are new, changed or measured in place of estimated.
    fn enter(&mut self, values: Vec<GridIntensity>, now: Moment, news: &mut News) {
        let mut newest: Option<Period> = None;
        for value in values {
            let Some(period) = value.period.filter(|period| period.from <= now.wall) else { continue };
            if newest.is_none_or(|newest| newest.until < period.until) {
                newest = Some(period);
            }
            let is_news = self.known.get(&period.from).is_none_or(|known| {
                let worse = value.estimated && !known.estimated && known.period == value.period;
                !worse && *known != value
            });
            if is_news {
                if period.until > self.since {
                    news.values.push(value.clone());
                }
                self.known.insert(period.from, value);
            }
        }
        news.values.sort_by_key(|value| value.period.map(|period| period.from));
        if let Some(newest) = newest {
            let age = Duration::try_from(now.wall.duration_since(newest.until)).unwrap_or_default();
            self.holds_until =
                (now.monotonic + until(newest.until, now) + self.stale_after).saturating_sub(age);
            if let Ok(oldest) = newest.from.checked_sub(LOOK_BACK * 2) {
                self.known = self.known.split_off(&oldest);
            }
        }
    }

    /// Lets the last value go on, as an estimate, when there is none of the present.
    fn hold(&mut self, now: Moment, news: &mut News) {
        let Some(last) = self.known.range(..=now.wall).next_back().map(|(_, value)| value) else { return };
        let Some(ended) = last.period.map(|period| period.until).filter(|until| *until <= now.wall) else {
            return;
        };
        let Ok(until) = ended.checked_add(self.stale_after) else { return };
        if now.wall >= until || now.monotonic >= self.holds_until || self.held == Some(ended) {
            return;
        }
        self.held = Some(ended);
        news.values.push(GridIntensity {
            period: Some(Period { from: ended, until }),
            estimated: true,
            source: format!("{}, last value held", last.source).into(),
            ..last.clone()
        });
    }

    fn notice_stale(&mut self, now: Moment, news: &mut News) {
        let is_stale = now.monotonic >= self.holds_until;
        if is_stale && !self.is_stale {
            let whom = self.provider.whom();
            let minutes = self.stale_after.as_secs() / 60;
            let then = match self.role {
                Role::Priced => "; energy is priced with the figure of carbon.location",
                Role::Beside => "",
            };
            news.alerts.push(format!("{whom} has given no value for {minutes} minutes{then}"));
        }
        if !is_stale && self.is_stale {
            news.alerts.push(format!("{} gives values again", self.provider.whom()));
        }
        self.is_stale = is_stale;
    }

    /// Keeps the values on disk, and when the provider may be asked again.
    fn store(&mut self, now: Moment, min_wait: Duration, values: Vec<GridIntensity>, news: &mut News) {
        let Some(cache) = &self.cache else { return };
        let asked_at = now.wall;
        let not_before = asked_at.checked_add(min_wait).unwrap_or(asked_at);
        if let Err(error) = cache.store(Cached { asked_at, not_before, values })
            && !self.cache_failed
        {
            self.cache_failed = true;
            news.alerts.push(format!(
                "{}: its values cannot be kept on disk: {error}; a restart will ask for them again",
                self.provider.whom()
            ));
        }
    }
}

/// Time from now until a moment; zero when it has passed.
fn until(at: Timestamp, now: Moment) -> Duration {
    Duration::try_from(at.duration_since(now.wall).max(SignedDuration::ZERO)).unwrap_or_default()
}

/// How long to leave a provider alone after it has failed the `num_failures`-th time in a row.
fn wait_after(failure: &Failure, num_failures: u32) -> Duration {
    match failure.kind {
        FailureKind::Unauthorised | FailureKind::Unusable => UNUSABLE,
        FailureKind::Busy(wait) => wait.clamp(MIN_INTERVAL, MAX_BUSY),
        FailureKind::Passing => {
            let doubled = MIN_INTERVAL * 2u32.saturating_pow(num_failures.saturating_sub(1).min(10));
            // Never shorter than the minimum, and no two processes in step.
            doubled.min(MAX_BACKOFF).mul_f64(1.0 + 0.5 * random())
        }
    }
}

/// From 0 to 1, different in each process and call.
fn random() -> f64 {
    RandomState::new().hash_one(0u8) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests;
