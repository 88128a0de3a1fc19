//! `regent internal ...`: what Regent's own build and tests ask of the binary.

use super::Context;
use crate::error::Outcome;
use crate::reference;

/// The hidden verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Print the reference of the command line as Markdown
    CliDocs,
}

/// Runs one of them.
pub fn run(_context: &Context, verb: &Verb) -> Outcome {
    match verb {
        Verb::CliDocs => print!("{}", reference::markdown()),
    }
    Ok(())
}
