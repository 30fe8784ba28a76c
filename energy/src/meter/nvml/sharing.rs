//! What of a board's energy is ours while other processes compute on it too (without MIG).
//!
//! As long as no process but this one and its descendants is on the board, all of its energy is ours. When others
//! are, NVML tells for each process the share of the time in which it had work on the board, and the board's energy
//! goes by it: work of others is theirs, time in which nobody had work is a residual that is nobody's, and where
//! more than all the time was used at once (MPS), the processes share it in proportion. Who left between two looks at
//! the list (a second apart) is missed; who drew more than another in the same time is not told apart.
//!
//! The driver samples the use once or a few times a second and keeps a ring of samples, so energy waits for the
//! samples of its time, at most two seconds. What still waits when the run ends is not counted.
//!
//! Where it cannot be told who uses the board or how much (no permission, no support, process numbers that a
//! container hides), all of the energy is counted and marked [`Undivided`](CounterEvent::Undivided): an upper bound.
//! In a container with process numbers of its own, a single process is taken for ours.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::driver::{Driver, Use};
use super::family::Family;
use crate::meter::CounterEvent;
use crate::meter::apportion::{BoardEnergy, Tenant, apportion};
use crate::units::MicroJoules;

/// Time between two looks at who is on the board.
const LIST_PERIOD: Duration = Duration::from_secs(1);

/// No driver samples more slowly than once a second: without a sample for longer, nobody had work on the board.
const IDLE_AFTER: Duration = Duration::from_secs(2);

/// The energy of a whole board, divided between this process and others.
#[derive(Debug)]
pub(super) struct Sharing {
    family: Family,
    company: Company,
    listed_at: Option<Duration>,
    /// Processes of ours that were seen on the board since others are; samples of one that has ended still come.
    ours: BTreeSet<u32>,
    /// The newest sample seen, where energy is waiting for later ones.
    newest_us: Option<u64>,
    divided_at: Duration,
    /// What the board had drawn at the last look.
    seen: MicroJoules,
    pub(super) shares: Shares,
}

/// Who is on the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Company {
    /// Nobody but us.
    Alone,
    /// Others too.
    Others,
    /// It cannot be told.
    Unknown,
}

/// All energy that has been divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shares {
    /// This process's and its descendants'.
    pub(super) ours: MicroJoules,
    /// Other processes'.
    pub(super) others: MicroJoules,
    /// Nobody's.
    pub(super) residual: MicroJoules,
}

impl Sharing {
    /// Nothing is known yet of who is on the board.
    pub(super) fn new(family: Family) -> Self {
        Sharing {
            family,
            company: Company::Alone,
            listed_at: None,
            ours: BTreeSet::new(),
            newest_us: None,
            divided_at: Duration::ZERO,
            seen: MicroJoules(0),
            shares: Shares::default(),
        }
    }

    /// Divides the energy of the board `uuid` up to `total`, as far as its use is known at `now`. Tells when not all of
    /// it is counted, or more than is ours.
    pub(super) fn advance(
        &mut self,
        driver: &dyn Driver,
        uuid: &str,
        now: Duration,
        total: MicroJoules,
    ) -> Option<CounterEvent> {
        if self.listed_at.is_none_or(|at| now.saturating_sub(at) >= LIST_PERIOD) {
            self.listed_at = Some(now);
            self.company = driver.processes(uuid).map_or(Company::Unknown, |listed| self.company(&listed));
        }
        let before = (std::mem::replace(&mut self.seen, total), self.shares);
        let event = self.settle(driver, uuid, now);
        // A counter that stands still is no less strange because the board is shared.
        event.filter(|event| *event != CounterEvent::Apportioned || (total, self.shares) != before)
    }

    /// Gives what was drawn and is not divided yet to whom it belongs, as far as that is known.
    fn settle(&mut self, driver: &dyn Driver, uuid: &str, now: Duration) -> Option<CounterEvent> {
        let waiting = MicroJoules(self.seen.0 - self.shares.sum().0);
        let event = match (self.company, self.newest_us) {
            (Company::Unknown, _) => Some(CounterEvent::Undivided),
            (Company::Alone, None) => None,
            (Company::Others, None) => match driver.uses(uuid, 0) {
                Ok(uses) => {
                    // The samples so far are of a time whose energy has been divided.
                    self.newest_us = Some(claims(uses, 0).newest_us);
                    self.divided_at = now;
                    return Some(CounterEvent::Apportioned);
                }
                Err(_) => Some(CounterEvent::Undivided),
            },
            (_, Some(newest_us)) => match driver.uses(uuid, newest_us) {
                Ok(uses) => {
                    self.divide(waiting, uses, newest_us, now);
                    return Some(CounterEvent::Apportioned);
                }
                Err(_) => Some(CounterEvent::Undivided),
            },
        };
        self.newest_us = None;
        self.shares.ours += waiting;
        event
    }

    /// Who is on the board by NVML's list of processes.
    fn company(&mut self, listed: &[u32]) -> Company {
        if self.family.hidden {
            return if listed.len() > 1 { Company::Unknown } else { Company::Alone };
        }
        if self.newest_us.is_none() {
            self.ours.clear();
        }
        let mut company = Company::Alone;
        for pid in listed {
            if self.family.has(*pid) {
                self.ours.insert(*pid);
            } else {
                self.ours.remove(pid);
                company = Company::Others;
            }
        }
        company
    }

    /// Gives the waiting energy to those who used the board meanwhile, if samples of that time are there.
    fn divide(&mut self, waiting: MicroJoules, uses: Vec<Use>, newest_us: u64, now: Duration) {
        let claims = claims(uses, newest_us);
        if claims.num_samples == 0 && now.saturating_sub(self.divided_at) < IDLE_AFTER {
            return;
        }
        let is_ours = |pid: u32| self.ours.contains(&pid) || self.family.has(pid);
        let (ours, others): (Vec<_>, Vec<_>) =
            claims.percents.into_iter().partition(|(pid, _)| is_ours(*pid));
        let tenant = |claims: Vec<(u32, u32)>| Tenant {
            slices: claims.iter().map(|(_, percents)| percents).sum(),
            activity: None,
        };
        let slices = 100 * claims.num_samples.max(1);
        let board = BoardEnergy { total: waiting, idle: MicroJoules(0), slices };
        let divided = apportion(board, &[tenant(ours), tenant(others)]);
        self.shares.ours += divided.tenants[0];
        self.shares.others += divided.tenants[1];
        self.shares.residual += divided.residual;
        self.divided_at = now;
        // Without samples the time stamps may have gone back with the clock: begin anew. So too once we are alone.
        let goes_on = claims.num_samples > 0 && self.company == Company::Others;
        self.newest_us = goes_on.then_some(claims.newest_us);
    }
}

impl Shares {
    fn sum(self) -> MicroJoules {
        [self.ours, self.others, self.residual].into_iter().sum()
    }
}

/// How much of the board each process used.
struct Claims {
    /// Sums over the samples of each process, in percent of the time.
    percents: BTreeMap<u32, u32>,
    /// The most samples of one process: all of the time is a hundred times as much.
    num_samples: u32,
    newest_us: u64,
}

/// What the samples after `newest_us` say. The driver tells one sample of a process or several, again those that it
/// told before, and now and then garbage: each time of a process counts once, and no use is above 100 %.
fn claims(mut uses: Vec<Use>, newest_us: u64) -> Claims {
    uses.retain(|sample| sample.at_us > newest_us && sample.percent <= 100);
    uses.sort_unstable_by_key(|sample| (sample.pid, sample.at_us));
    uses.dedup_by_key(|sample| (sample.pid, sample.at_us));
    let num_samples = uses.chunk_by(|a, b| a.pid == b.pid).map(<[Use]>::len).max().unwrap_or(0);
    let newest_us = uses.iter().map(|sample| sample.at_us).max().unwrap_or(newest_us);
    let mut percents = BTreeMap::new();
    for sample in uses {
        *percents.entry(sample.pid).or_default() += sample.percent;
    }
    Claims { percents, num_samples: u32::try_from(num_samples).unwrap_or(u32::MAX / 100), newest_us }
}
