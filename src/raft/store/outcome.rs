//! What the log is told and what it answers: settings, what was read back, and why not.
//!
//! The messages are written for the person who has to act on them.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;

/// Settings of a log.
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// Size of a segment file in bytes; a larger group gets a larger segment.
    pub segment_bytes: u64,
    /// Mixed into every checksum, so that bytes of another log, or bytes that a client made up,
    /// are never read as records. Random in production; fixed in a simulation.
    pub salt: u64,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self { segment_bytes: 64 * 1024 * 1024, salt: 0 }
    }
}

/// What a log held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The newest vote.
    pub vote: Option<Bytes>,
    /// The newest committed mark.
    pub committed: Option<Bytes>,
    /// The newest purge mark: index and the log id given with it.
    pub purged: Option<(u64, Bytes)>,
    /// The entries above the purge mark, in order, without holes.
    pub entries: Vec<(u64, Bytes)>,
    /// Bytes of an unfinished group that were cut from the end; no acknowledged record was there.
    pub cut_bytes: u64,
    /// There was no log; an empty one was made. Never so where [`super::wal::Presence::Required`].
    pub created: bool,
}

/// Why a log did not open. None of these may be worked around by starting empty: the node might
/// vote twice in one term.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Acknowledged records are damaged or missing.
    #[error(
        "the log is corrupt: {file} at byte {offset}: {what}. This node must not vote with it. \
         Keep the directory for analysis, remove the node from the cluster, and add it again \
         empty under a new node id"
    )]
    Corrupt {
        /// The damaged file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What was found, and what was expected.
        what: String,
    },
    /// Written by a version that this one does not know.
    #[error("{file} has log format {found}, this version reads up to {known}: upgrade it first")]
    Version {
        /// The file.
        file: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that this version reads.
        known: u32,
    },
    /// There is no log where one must be. Making an empty one would forget how this node voted.
    #[error(
        "there is no log in {dir}, but this node had one, and its votes with it. If its file system \
         is not mounted, or it was moved, bring it back and start again. If it is lost: keep the \
         directory for analysis, remove the node from the cluster, and add it again empty under a \
         new node id"
    )]
    Missing {
        /// Where it should be.
        dir: PathBuf,
    },
    /// Another process has the directory open.
    #[error("{dir} is in use by another process")]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// The disk did not answer.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the disk said.
        #[source]
        source: io::Error,
    },
}

/// Why an append was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WalError {
    /// No space. Nothing of the append is durable or visible; the same append may be tried again.
    #[error("no space left for the log: {0}")]
    Full(String),
    /// The caller broke the order of entries (a hole, or an index twice). Nothing was written.
    #[error("refused by the log: {0}")]
    Invalid(String),
    /// The disk failed. What is durable is unknown; the log refuses everything from now on.
    #[error("the log has failed: {0}")]
    Fatal(String),
}
