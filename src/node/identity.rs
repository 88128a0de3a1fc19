//! This start of this node: its disk, the boot counter, a nonce, and the lock that keeps a second
//! process off the directory (PROTOCOL.md B).
//!
//! What lies on disk, and what is refused, is [`regent_raft::store::identity`]: the counter is
//! durable before anything else starts, so that peers can tell a disk that went back in time (a
//! restored image, a clone) from one that only restarted.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use regent_core::id::{NodeId, Nonce};
use regent_raft::store::identity::{self as disk, LogState, open_identity, write_identity};
use regent_raft::store::quarantine;
use regent_raft::store::real_disk::RealDisk;
use regent_raft::store::vfs::Vfs as _;

use crate::config::RAFT_DIR;

/// Name of the lock file in the data directory.
pub const LOCK: &str = "lock";

/// This start of this node.
#[derive(Debug)]
pub struct Identity {
    /// Random id of the disk.
    pub disk: u64,
    /// This start's number, 1 for the first.
    pub boot: u64,
    /// Random, new at each start.
    pub nonce: Nonce,
    record: disk::Identity,
    dir: PathBuf,
    /// Held for as long as the node lives: two processes on one directory would vote twice.
    _lock: File,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The lock file could not be used.
    #[error("cannot {doing} {path}", path = .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("another process uses the data directory {dir}; stop it first", dir = .0.display())]
    InUse(PathBuf),
    /// What lies there is not this node's, or not whole.
    #[error(transparent)]
    Disk(#[from] disk::IdentityError),
}

/// Takes the lock of `dir`, which outlives the call in the returned file.
///
/// # Errors
/// [`IdentityError::InUse`] when another process has it.
pub fn lock(dir: &Path) -> Result<File, IdentityError> {
    let path = dir.join(LOCK);
    let error = |doing, source| IdentityError::Io { doing, path: path.clone(), source };
    // Durable with its parents: what is written into it must not vanish with its name.
    RealDisk.create_dir_all(dir).map_err(|source| error("create the directory of", source))?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| error("open", source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(IdentityError::InUse(dir.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(error("lock", source)),
    }
}

impl Identity {
    /// Locks `dir`, the data directory, counts this start and makes it durable.
    ///
    /// # Errors
    /// [`IdentityError`]; nothing may start then.
    pub fn open(dir: &Path, node: NodeId, cluster: &str) -> Result<Self, IdentityError> {
        let lock = lock(dir)?;
        let log = dir.join(RAFT_DIR);
        let record = open_identity(&RealDisk, dir, &log, cluster, node, random())?;
        Ok(Self {
            disk: record.disk,
            boot: record.boots,
            nonce: Nonce(random()),
            record,
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    /// Why this disk is in quarantine since an earlier start; `None` when it is not.
    ///
    /// # Errors
    /// What the disk said; the node must not go on then.
    pub fn quarantined(&self) -> Result<Option<String>, IdentityError> {
        Ok(quarantine::read(&RealDisk, &self.dir)?)
    }

    /// Whether the log was there at an earlier start.
    pub fn has_log(&self) -> bool {
        self.record.log == LogState::Made
    }

    /// Notes that the log is there, before the node may vote: from now on a start without it is
    /// refused.
    ///
    /// # Errors
    /// What the disk said; the node must not go on then.
    pub fn note_log(&mut self) -> Result<(), IdentityError> {
        if !self.has_log() {
            self.record.log = LogState::Made;
            write_identity(&RealDisk, &self.dir, &self.record)?;
        }
        Ok(())
    }
}

/// Notes on disk that the data directory `dir` is in quarantine, for all starts to come.
///
/// # Errors
/// What the disk said.
pub fn mark_quarantined(dir: &Path, why: &str) -> Result<(), IdentityError> {
    Ok(quarantine::mark(&RealDisk, dir, why)?)
}

/// A random number that is not 0 (0 means "none" in the protocol).
pub fn random() -> u64 {
    loop {
        let number = rand::random::<u64>();
        if number != 0 {
            return number;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn each_start_counts_one_more_on_the_same_disk() {
        let dir = TempDir::new("identity");
        let one = Identity::open(dir.path(), NodeId(3), "c").unwrap();
        let (disk, nonce) = (one.disk, one.nonce);
        assert_eq!(one.boot, 1);
        drop(one);
        let two = Identity::open(dir.path(), NodeId(3), "c").unwrap();
        assert_eq!((two.boot, two.disk), (2, disk));
        assert_ne!(two.nonce, nonce);
    }

    #[test]
    fn a_directory_in_use_or_of_another_node_is_refused() {
        let dir = TempDir::new("identity");
        let held = Identity::open(dir.path(), NodeId(3), "c").unwrap();
        let second = Identity::open(dir.path(), NodeId(3), "c");
        assert!(matches!(second, Err(IdentityError::InUse(_))));
        drop(held);
        let other = Identity::open(dir.path(), NodeId(4), "c").unwrap_err();
        assert!(other.to_string().contains("belongs to node 3"), "{other}");
    }

    #[test]
    fn a_node_that_lost_its_log_is_refused() {
        let dir = TempDir::new("identity");
        Identity::open(dir.path(), NodeId(3), "c").unwrap().note_log().unwrap();
        let error = Identity::open(dir.path(), NodeId(3), "c").unwrap_err();
        assert!(error.to_string().contains("the log is missing"), "{error}");
    }
}
