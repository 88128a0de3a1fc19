//! The roles table: PROTOCOL.md D as `apply` judges it, from the log alone.

pub mod judge;
pub mod row;

use super::journal::Draft;
use crate::command::Command;
use crate::reply::{Rejection, Reply};

/// Runs a command of a role.
pub(super) fn run(draft: &mut Draft<'_>, command: Command) -> Result<Reply, Rejection> {
    let _ = command;
    let have = draft.rows().cluster().feature_level;
    Err(Rejection::FeatureLevel { need: 2, have })
}
