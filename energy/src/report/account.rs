//! The accounts of a report: runs, their segments, and sums by kind, phase, expert and domain.

use std::path::PathBuf;

use jiff::Timestamp;

use crate::attribution::add_each;
use crate::carbon::GridIntensity;
use crate::config::EmbodiedConfig;
use crate::ledger::{Role, RunStatus};
use crate::meter::Provenance;
use crate::units::{Grams, Joules, MicroJoules, Seconds, Watts};
use crate::window::sum_and_measured_share;

/// The account of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunReport {
    /// The ledger it was read from.
    pub ledger: PathBuf,
    /// Random; tells two runs of one name apart.
    pub uid: String,
    /// The run's lasting name.
    pub run_id: String,
    /// Its name for people.
    pub name: String,
    /// The configuration's hash.
    pub config_hash: String,
    /// How it stands.
    pub status: RunStatus,
    /// When its first process began.
    pub started_at: Timestamp,
    /// `None` while it runs or when it was killed.
    pub ended_at: Option<Timestamp>,
    /// Its process lifetimes.
    pub segments: Vec<SegmentReport>,
    /// Every expert that computed something, by layer and number.
    pub experts: Vec<ExpertAccount>,
    /// What happened, in order of time.
    pub marks: Vec<MarkRecord>,
    /// The balance.
    pub account: Account,
    /// The loss of the last step that counts, in nats.
    pub final_loss: Option<f64>,
}

/// One process lifetime of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentReport {
    /// Random; the same segment in two ledgers has the same.
    pub uid: String,
    /// Which process of the run, from 0.
    pub rank: u32,
    /// All processes of the run at the time.
    pub world_size: u32,
    /// Within the run and rank, from 0.
    pub number: u64,
    /// How it ended.
    pub status: RunStatus,
    /// The step it went on from.
    pub resumed_from_step: Option<u64>,
    /// Where it ran.
    pub host: String,
    /// The version of the program that wrote it.
    pub version: String,
    /// When it began.
    pub started_at: Timestamp,
    /// `None` while it runs or when it was killed.
    pub ended_at: Option<Timestamp>,
    /// Time inside its windows.
    pub duration: Seconds,
    /// The intensity it began with, or the other place asked for.
    pub intensity: GridIntensity,
    /// Every intensity it learned, corrections and those beside included, in order.
    pub intensities: Vec<IntensityRecord>,
    /// The PUE its grams are counted with, after overrides.
    pub pue: f64,
    /// Litres of water per kilowatt-hour at the computer; `None`: not declared.
    pub wue_l_per_kwh: Option<f64>,
    /// Emissions of making the hardware; `None`: not declared.
    pub embodied: Option<EmbodiedConfig>,
    /// Energy at the computer.
    pub energy: MicroJoules,
    /// Emissions of the building's energy.
    pub grams: Grams,
    /// Counters that started anew, implausible jumps, and seconds without a reading; `None` until it has ended.
    pub sensor_health: Option<(u64, u64, f64)>,
    /// CPU time that counting energy took; `None` until it has ended.
    pub overhead: Option<Seconds>,
}

/// A carbon intensity as the ledger has it.
#[derive(Clone, Debug, PartialEq)]
pub struct IntensityRecord {
    /// Number within the segment, from 0.
    pub number: i64,
    /// Whether energy is priced with it, or it is only shown beside.
    pub role: Role,
    /// The figure.
    pub intensity: GridIntensity,
    /// When it was learned.
    pub learned_at: Timestamp,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct MarkRecord {
    /// When.
    pub at: Timestamp,
    /// At which step.
    pub step: Option<u64>,
    /// `sensor`, `carbon`, `controller`.
    pub kind: String,
    /// What.
    pub text: String,
}

/// Sums of one run or of many.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    /// Time inside windows.
    pub duration: Seconds,
    /// Steps in the model: those done again count once.
    pub steps: u64,
    /// Tokens in the model.
    pub tokens: u64,
    /// Energy at the computer, all of it.
    pub energy: MicroJoules,
    /// The part of it spent on steps that were done again after a resume.
    pub superseded: MicroJoules,
    /// Energy of the building: each segment's energy times its PUE.
    pub facility: Joules,
    /// Emissions of the building's energy.
    pub grams: Grams,
    /// Windows in which a sensor could not be read.
    pub incomplete_windows: u64,
    /// What it was spent on.
    pub kinds: Vec<KindAccount>,
    /// What the steps were spent on; adds up to the kind `step`.
    pub phases: Vec<PhaseAccount>,
    /// Work of the steps that taught the model nothing: a look across, no part of the sums.
    pub waste: Vec<WasteAccount>,
    /// What drew it, and how that is known.
    pub domains: Vec<DomainAccount>,
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

    pub(super) fn add(&mut self, other: &Account) {
        self.duration += other.duration;
        self.steps += other.steps;
        self.tokens += other.tokens;
        self.energy += other.energy;
        self.superseded += other.superseded;
        self.facility = self.facility + other.facility;
        self.grams += other.grams;
        self.incomplete_windows += other.incomplete_windows;
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
    }
}
