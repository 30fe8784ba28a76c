//! The sums of a report: by kind of window, phase, expert, domain, reason and week.

use jiff::civil::Date;

use crate::attribution::add_each;
use crate::carbon::{Accounting, Basis};
use crate::meter::Provenance;
use crate::units::{Grams, Joules, MicroJoules, Seconds, Watts};
use crate::window::sum_and_measured_share;

/// Sums of one run or of many.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// How many runs it sums.
    pub runs: u64,
    /// Time inside windows; of ranks that run side by side, one.
    pub duration: Seconds,
    /// Steps in the model: those done again count once.
    pub steps: u64,
    /// Tokens in the model.
    pub tokens: u64,
    /// Energy at the computer, all of it.
    pub energy: MicroJoules,
    /// The part of it spent on steps that were done again after a resume.
    pub superseded: MicroJoules,
    /// All energy of runs that ended with an error.
    pub failed: MicroJoules,
    /// All energy of runs that were killed and never taken up again.
    pub aborted: MicroJoules,
    /// Energy of the building: each segment's energy times its PUE.
    pub facility: Joules,
    /// Emissions of the building's energy.
    pub grams: Grams,
    /// Energy at the computer that was priced with a provider's estimate or forecast.
    pub priced_by_estimates: MicroJoules,
    /// What the intensities count and for whom, each once.
    pub bases: Vec<(Basis, Accounting)>,
    /// Water of the computers' energy; `None`: not declared for all of it.
    pub water_liters: Option<f64>,
    /// The share of the hardware's making that falls on the time inside windows; `None`: not declared for all of it.
    pub embodied: Option<Grams>,
    /// Windows in which a sensor could not be read.
    pub incomplete_windows: u64,
    /// The largest error bound of a window. What one window has too much its neighbour has too little: in sums the
    /// bounds of inner edges cancel.
    pub window_error_bound: Option<Joules>,
    /// How the sensors did.
    pub sensors: SensorHealth,
    /// What it was spent on.
    pub kinds: Vec<KindAccount>,
    /// What the steps were spent on; adds up to the kind `step`.
    pub phases: Vec<PhaseAccount>,
    /// Work of the steps that taught the model nothing: a look across, no part of the sums.
    pub waste: Vec<WasteAccount>,
    /// What drew it, and how that is known.
    pub domains: Vec<DomainAccount>,
}

/// How the sensors did, and what asking them cost. Known of segments that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SensorHealth {
    /// Counters that started anew.
    pub resets: u64,
    /// Implausible jumps, left out.
    pub spikes: u64,
    /// Time for which the energy of a domain is unknown.
    pub gap: Seconds,
    /// CPU time that counting energy took.
    pub overhead: Seconds,
    /// Segments that have not told: they have not ended, or were kept without a monitor.
    pub untold: u64,
}

/// Sums of one ISO week, Monday to Sunday in UTC.
#[derive(Clone, Debug, PartialEq)]
pub struct WeekAccount {
    /// Its Monday.
    pub monday: Date,
    /// Runs that had a window end in it.
    pub runs: u64,
    /// Steps in the model.
    pub steps: u64,
    /// Tokens in the model.
    pub tokens: u64,
    /// Energy at the computer; `None`: no sensor was read.
    pub energy: Option<MicroJoules>,
    /// Emissions of the building's energy.
    pub grams: Grams,
}

/// Sums of one phase of the steps.
#[derive(Clone, Debug, PartialEq)]
pub struct PhaseAccount {
    /// `router`, `experts`, `attention`, ...
    pub phase: String,
    /// Its time.
    pub duration: Seconds,
    /// Its energy.
    pub energy: MicroJoules,
}

/// Sums of one expert.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertAccount {
    /// Of the model, from 0.
    pub layer: u64,
    /// Of the layer, from 0.
    pub expert: u64,
    /// Assignments it computed.
    pub tokens: u64,
    /// Its energy.
    pub energy: MicroJoules,
}

/// Sums of one kind of work in vain.
#[derive(Clone, Debug, PartialEq)]
pub struct WasteAccount {
    /// `padding`, `dropped`, `skipped`.
    pub reason: String,
    /// Padded tokens, dropped assignments, skipped steps.
    pub count: u64,
    /// Its energy.
    pub energy: MicroJoules,
}

/// Sums of one kind of window.
#[derive(Clone, Debug, PartialEq)]
pub struct KindAccount {
    /// `step`, `evaluation`, ...
    pub kind: String,
    /// Number of windows.
    pub windows: u64,
    /// Their time.
    pub duration: Seconds,
    /// Their energy.
    pub energy: MicroJoules,
}

/// Sums of one domain by the way they were obtained.
#[derive(Clone, Debug, PartialEq)]
pub struct DomainAccount {
    /// `package-0`, `gpu-0`, ...
    pub domain: String,
    /// `rapl`, `nvml`, `model`.
    pub sensor: String,
    /// How the joules came about.
    pub source: Provenance,
    /// The energy.
    pub energy: MicroJoules,
}

impl Account {
    /// The energy at the computer; `None` when no sensor was ever read, which is not the same as none used.
    pub fn joules(&self) -> Option<Joules> {
        (!self.domains.is_empty()).then(|| self.energy.joules())
    }

    /// The emissions of the building's energy; `None` when the energy is unknown, or when the sum would mix marginal
    /// with average figures, or the grid's with those of contracts.
    pub fn emissions(&self) -> Option<Grams> {
        (self.joules().is_some() && !self.mixes_bases()).then_some(self.grams)
    }

    /// Whether its grams are of kinds that must not be summed.
    pub fn mixes_bases(&self) -> bool {
        let same = |one: &(Basis, Accounting), other: &(Basis, Accounting)| {
            (one.0 == Basis::Marginal) == (other.0 == Basis::Marginal) && one.1 == other.1
        };
        self.bases.iter().any(|basis| !same(basis, &self.bases[0]))
    }

    /// Share of the joules that was measured, 0 to 1; the rest was modelled.
    pub fn measured_share(&self) -> f64 {
        sum_and_measured_share(self.domains.iter().map(|domain| (domain.source, domain.energy))).1
    }

    /// All energy, superseded and other work included, for each token in the model.
    pub fn joules_per_token(&self) -> Option<f64> {
        self.joules().filter(|_| self.tokens > 0).map(|joules| joules.0 / self.tokens as f64)
    }

    /// Mean power over the time inside windows.
    pub fn average_power(&self) -> Option<Watts> {
        self.joules()?.over(self.duration)
    }

    /// Adds the sums of other work.
    pub(super) fn add(&mut self, other: &Account) {
        self.runs += other.runs;
        self.duration += other.duration;
        self.steps += other.steps;
        self.tokens += other.tokens;
        self.add_energy(other);
    }

    /// Adds the sums of the same work by another rank: its time, steps and tokens are those that are counted already.
    pub(super) fn add_energy(&mut self, other: &Account) {
        // What an account without windows has not declared is nothing that is missing.
        let empty = (self.kinds.is_empty(), other.kinds.is_empty());
        let declared = |own: Option<f64>, new: Option<f64>| match empty {
            (true, _) => new,
            (_, true) => own,
            _ => Some(own? + new?),
        };
        self.water_liters = declared(self.water_liters, other.water_liters);
        self.embodied =
            declared(self.embodied.map(|grams| grams.0), other.embodied.map(|grams| grams.0)).map(Grams);
        self.energy += other.energy;
        self.superseded += other.superseded;
        self.failed += other.failed;
        self.aborted += other.aborted;
        self.facility = self.facility + other.facility;
        self.grams += other.grams;
        self.priced_by_estimates += other.priced_by_estimates;
        self.incomplete_windows += other.incomplete_windows;
        let larger = |own: Joules, new: Joules| Joules(own.0.max(new.0));
        self.window_error_bound = match (self.window_error_bound, other.window_error_bound) {
            (Some(own), Some(new)) => Some(larger(own, new)),
            (own, new) => own.or(new),
        };
        self.sensors.add(&other.sensors);
        add_each(&mut self.bases, &other.bases, PartialEq::eq, |_, _| {});
        self.add_parts(other);
    }

    fn add_parts(&mut self, other: &Account) {
        add_each(
            &mut self.kinds,
            &other.kinds,
            |own, new| own.kind == new.kind,
            |own, new| {
                own.windows += new.windows;
                own.duration += new.duration;
                own.energy += new.energy;
            },
        );
        add_each(
            &mut self.phases,
            &other.phases,
            |own, new| own.phase == new.phase,
            |own, new| {
                own.duration += new.duration;
                own.energy += new.energy;
            },
        );
        add_each(
            &mut self.waste,
            &other.waste,
            |own, new| own.reason == new.reason,
            |own, new| {
                own.count += new.count;
                own.energy += new.energy;
            },
        );
        add_each(
            &mut self.domains,
            &other.domains,
            |own, new| (&own.domain, &own.sensor, own.source) == (&new.domain, &new.sensor, new.source),
            |own, new| own.energy += new.energy,
        );
        self.sort();
    }

    /// The largest first, then by name.
    pub(super) fn sort(&mut self) {
        self.kinds.sort_by(|a, b| b.energy.cmp(&a.energy).then_with(|| a.kind.cmp(&b.kind)));
        self.phases.sort_by(|a, b| b.energy.cmp(&a.energy).then_with(|| a.phase.cmp(&b.phase)));
        self.waste.sort_by(|a, b| b.energy.cmp(&a.energy).then_with(|| a.reason.cmp(&b.reason)));
        self.domains.sort_by(|a, b| b.energy.cmp(&a.energy).then_with(|| a.domain.cmp(&b.domain)));
    }
}

impl SensorHealth {
    fn add(&mut self, other: &SensorHealth) {
        self.resets += other.resets;
        self.spikes += other.spikes;
        self.gap += other.gap;
        self.overhead += other.overhead;
        self.untold += other.untold;
    }
}
