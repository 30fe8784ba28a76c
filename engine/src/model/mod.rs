//! (to come)
pub mod config;
pub mod presets;
