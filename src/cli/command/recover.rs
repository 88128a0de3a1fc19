//! `regent recover`.

use super::Context;
use crate::error::{CliError, Outcome};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs it.
pub async fn run(_context: &Context, _args: Args) -> Outcome {
    Err(CliError::internal("not built yet"))
}
