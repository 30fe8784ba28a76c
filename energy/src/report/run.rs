//! A run and its segments, as a report shows them.

use std::path::PathBuf;

use jiff::Timestamp;

use super::account::{Account, ExpertAccount, WeekAccount};
use crate::carbon::GridIntensity;
use crate::config::EmbodiedConfig;
use crate::ledger::{Role, RunStatus};
use crate::units::{Grams, MicroJoules, Seconds};

/// The account of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunReport {
    /// The ledger it was read from; that of the lowest rank where each rank has its own.
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
    /// The last moment it is known to have run.
    pub alive_at: Option<Timestamp>,
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
    /// The balance by week.
    pub weeks: Vec<WeekAccount>,
    /// The loss of the last step that counts, in nats.
    pub final_loss: Option<f64>,
}

/// One process lifetime of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentReport {
    /// The ledger it was read from.
    pub ledger: PathBuf,
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
