//! The training engine: tape, models, data, optimizer, trainer, checkpoints, telemetry and command line.

pub mod autograd;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod exit;
pub mod files;
pub mod interop;
pub mod model;
pub mod optim;
pub mod telemetry;
pub mod train;
