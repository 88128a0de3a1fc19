//! `regent bench`.

use super::Context;
use crate::error::{CliError, Outcome};

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// List
    List,
}

/// Runs one of them.
pub async fn run(_context: &Context, _verb: Verb) -> Outcome {
    Err(CliError::internal("not built yet"))
}
