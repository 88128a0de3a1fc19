//! `regent completions SHELL`: a completion script on stdout.

use clap::CommandFactory;
use clap_complete::Shell;

use super::Context;
use crate::args::Cli;
use crate::error::Outcome;

/// Options of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  regent completions bash > /etc/bash_completion.d/regent\n")]
pub struct Args {
    /// Which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the script.
pub fn run(_context: &Context, args: &Args) -> Outcome {
    clap_complete::generate(args.shell, &mut Cli::command(), "regent", &mut std::io::stdout());
    Ok(())
}
