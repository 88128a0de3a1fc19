//! Two marks about a data directory: that a rebuild was begun and not ended, and which copy it is.
//!
//! The first lies outside the directory, because a rewind removes there whatever the source lacks.

use std::path::PathBuf;

use super::durable::{self, Owner};
use super::options::Options;
use crate::error::DiskError;
use crate::facts::GenerationId;

fn incomplete(options: &Options) -> PathBuf {
    options.state_dir.join("regent.incomplete")
}

/// Says that `what` begins; on disk before it does.
pub(super) fn begin(options: &Options, what: &str, owner: Owner) -> Result<(), DiskError> {
    durable::make_dir(&options.state_dir, owner)?;
    durable::write(&incomplete(options), &format!("{what}\n"), owner)
}

/// Says that it ended well.
pub(super) fn end(options: &Options) -> Result<(), DiskError> {
    durable::remove(&incomplete(options))
}

/// What was begun and not ended.
pub(super) fn interrupted(options: &Options) -> Result<Option<String>, DiskError> {
    Ok(durable::read(&incomplete(options))?.map(|text| text.trim().to_owned()))
}

fn generation_file(data_dir: &std::path::Path) -> PathBuf {
    data_dir.join("regent.generation")
}

/// Gives the copy in `data_dir` a new identity.
pub(super) fn new_generation(
    data_dir: &std::path::Path,
    owner: Owner,
) -> Result<GenerationId, DiskError> {
    let id = GenerationId(rand::random());
    durable::write(&generation_file(data_dir), &format!("{id}\n"), owner)?;
    Ok(id)
}

/// The identity of the copy in `data_dir`.
pub(super) fn generation(data_dir: &std::path::Path) -> Result<Option<GenerationId>, DiskError> {
    let path = generation_file(data_dir);
    let Some(text) = durable::read(&path)? else { return Ok(None) };
    match u64::from_str_radix(text.trim(), 16) {
        Ok(id) => Ok(Some(GenerationId(id))),
        Err(_) => Err(DiskError::Unreadable { what: "the generation".to_owned(), path }),
    }
}
