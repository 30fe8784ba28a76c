//! `wattle config show` and `wattle config schema`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::cli::{exit, print};
use crate::config::{Config, schema};

/// Flags of `wattle config`.
#[derive(Debug, Args)]
#[command(after_help = "Example: wattle config show configs/quickstart.toml")]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print every value with where it comes from
    #[command(after_help = "Example: wattle config show configs/quickstart.toml --set moe.top_k=1")]
    Show {
        /// A run's configuration
        config: PathBuf,
        /// Override a key; can be given several times
        #[arg(long = "set", value_name = "KEY=VALUE")]
        sets: Vec<String>,
    },
    /// Print the JSON Schema of the configuration
    #[command(after_help = "Example: wattle config schema > wattle.schema.json")]
    Schema,
}

/// Shows a configuration or the schema.
pub fn run(arguments: &Arguments) -> Result<u8> {
    match &arguments.action {
        Action::Show { config, sets } => print(&Config::load(config, sets)?.show()?)?,
        Action::Schema => print(&format!("{:#}\n", schema()))?,
    }
    Ok(exit::DONE)
}
