//! What a ledger is told beside energy: whose it is, what a window was for, how it ended.

use crate::carbon::GridIntensity;
use crate::config::EmbodiedConfig;
use crate::units::{Grams, MicroJoules};

/// What a ledger says about the run it belongs to, and how its energy is priced.
#[derive(Clone, Debug, PartialEq)]
pub struct RunInfo {
    /// Names the run for good; the same in every restart.
    pub run_id: String,
    /// For people.
    pub name: String,
    /// Names the configuration.
    pub config_hash: String,
    /// The step of the checkpoint this process goes on from; `None` when it begins at the beginning.
    pub resumed_from_step: Option<u64>,
    /// This process among all of the run, from 0.
    pub rank: u32,
    /// All processes of the run.
    pub world_size: u32,
    /// The carbon intensity to count with until a better one is learned.
    pub intensity: GridIntensity,
    /// Power usage effectiveness of the building.
    pub pue: f64,
    /// Water usage effectiveness, litres per kilowatt-hour at the computers; `None`: not declared.
    pub wue_l_per_kwh: Option<f64>,
    /// Emissions of making the hardware; `None`: not declared.
    pub embodied: Option<EmbodiedConfig>,
}

impl RunInfo {
    /// A run of one process that begins, in a building without losses.
    pub fn new(run_id: &str, intensity: GridIntensity) -> Self {
        RunInfo {
            run_id: run_id.into(),
            name: run_id.into(),
            config_hash: String::new(),
            resumed_from_step: None,
            rank: 0,
            world_size: 1,
            intensity,
            pue: 1.0,
            wue_l_per_kwh: None,
            embodied: None,
        }
    }
}

/// What a window was for, beside its energy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WindowTags {
    /// The last finished step at the window's end: the step itself for a step window.
    pub step: Option<u64>,
    /// Tokens trained on.
    pub tokens: u64,
    /// The step's loss, in nats.
    pub loss: Option<f64>,
}

/// Energy at the computer and the emissions counted for it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// The energy.
    pub energy: MicroJoules,
    /// The emissions.
    pub grams: Grams,
}

/// How a run or a segment of it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunStatus {
    /// Not ended, or killed and not yet found out.
    Running,
    /// Reached its goal.
    Completed,
    /// Stopped by a signal with a durable checkpoint.
    Interrupted,
    /// Stopped by an error.
    Failed,
    /// Found without an end by the process after it.
    Crashed,
}

impl RunStatus {
    /// The name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            RunStatus::Running => "running",
            RunStatus::Completed => "completed",
            RunStatus::Interrupted => "interrupted",
            RunStatus::Failed => "failed",
            RunStatus::Crashed => "crashed",
        }
    }

    /// The status of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        use RunStatus::*;
        [Running, Completed, Interrupted, Failed, Crashed].into_iter().find(|status| status.as_str() == name)
    }
}

/// What an intensity is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Energy is priced with it.
    Priced,
    /// Recorded to be shown beside, never summed.
    Beside,
}

impl Role {
    /// The name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Priced => "priced",
            Role::Beside => "beside",
        }
    }

    /// The role of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Role::Priced, Role::Beside].into_iter().find(|role| role.as_str() == name)
    }
}

/// What a mark in the ledger tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkKind {
    /// A sensor failed or came back.
    Sensor,
    /// A source of carbon intensities failed or came back.
    Carbon,
    /// The controller changed something.
    Controller,
}

impl MarkKind {
    /// The name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            MarkKind::Sensor => "sensor",
            MarkKind::Carbon => "carbon",
            MarkKind::Controller => "controller",
        }
    }
}
