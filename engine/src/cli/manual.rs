//! `wattle completions` and `wattle man`: generated from the same definitions that parse the flags.

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::{Cli, exit, print};

/// Flags of `wattle completions`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: wattle completions bash > ~/.local/share/bash-completion/completions/wattle"
)]
pub struct CompletionArguments {
    /// The shell to complete for
    shell: Shell,
}

/// Flags of `wattle man`.
#[derive(Debug, Args)]
#[command(after_help = "Example: wattle man | man -l -")]
pub struct PageArguments {}

/// Prints a completion script.
pub fn completions(arguments: &CompletionArguments) -> Result<u8> {
    // Into memory first: the generator panics on an output that fails.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "wattle", &mut script);
    print(&String::from_utf8(script)?)?;
    Ok(exit::DONE)
}

/// Prints the manual page, one section per command.
pub fn page(_: &PageArguments) -> Result<u8> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for sub in command.get_subcommands() {
        clap_mangen::Man::new(sub.clone()).render(&mut page)?;
    }
    print(&String::from_utf8(page)?)?;
    Ok(exit::DONE)
}
