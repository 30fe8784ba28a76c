//! `wattle completions` and `wattle man`: generated from the same definitions that parse the flags.

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::{Cli, exit};

/// Flags of `wattle completions`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: wattle completions bash > ~/.local/share/bash-completion/completions/wattle"
)]
pub struct CompletionArguments {
    /// The shell to complete for
    shell: Shell,
}

/// Prints a completion script.
pub fn completions(arguments: &CompletionArguments) -> Result<u8> {
    clap_complete::generate(arguments.shell, &mut Cli::command(), "wattle", &mut std::io::stdout());
    Ok(exit::DONE)
}

/// Prints the manual page, one section per command.
pub fn page() -> Result<u8> {
    let mut command = Cli::command();
    command.build();
    let mut out = std::io::stdout();
    clap_mangen::Man::new(command.clone()).render(&mut out)?;
    for sub in command.get_subcommands() {
        clap_mangen::Man::new(sub.clone()).render(&mut out)?;
    }
    Ok(exit::DONE)
}
