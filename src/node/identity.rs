//! Who this node's disk is: a random disk id, a boot counter and a nonce (PROTOCOL.md B).
//!
//! The counter is on disk, fsynced, before anything else starts, so that peers can tell a disk that
//! went back in time (a restored image, a clone) from one that only restarted. It must never be
//! guessed or repaired: a log without its identity file is refused, because such a directory may
//! already have voted under a counter that nobody knows any more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use regent_core::id::{NodeId, Nonce};
use serde::{Deserialize, Serialize};

/// Name of the identity file in the data directory.
pub const FILE: &str = "identity.toml";
/// Name of the lock file in the data directory.
pub const LOCK: &str = "lock";
/// Longest identity file ever written; more is not ours.
const MAX_FILE_BYTES: u64 = 4096;

/// What the identity file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRecord {
    /// The node this directory belongs to.
    pub node: NodeId,
    /// The cluster this directory belongs to.
    pub cluster: String,
    /// Random, as 16 hex digits, made with the directory; another one is another disk.
    disk: String,
    /// Starts so far, this one included.
    pub boot: u64,
}

impl DiskRecord {
    /// A record for a new directory.
    pub fn new(node: NodeId, cluster: &str) -> Self {
        Self { node, cluster: cluster.to_owned(), disk: hex(random()), boot: 0 }
    }

    /// The disk id as a number.
    pub fn disk(&self) -> u64 {
        u64::from_str_radix(&self.disk, 16).unwrap_or(0)
    }
}

/// This start of this node.
#[derive(Debug)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// Random id of the disk.
    pub disk: u64,
    /// This start's number, 1 for the first.
    pub boot: u64,
    /// Random, new at each start.
    pub nonce: Nonce,
    /// Held for as long as the node lives: two processes on one directory would vote twice.
    _lock: File,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system said no.
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
    /// The directory belongs to another node or cluster.
    #[error(
        "data directory {dir} belongs to node {node} of cluster {cluster:?}; \
         point data_dir elsewhere, or correct node_id and cluster",
        dir = .dir.display()
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        node: NodeId,
        /// Of which cluster.
        cluster: String,
    },
    /// The identity file cannot be read as one.
    #[error(
        "{path} is damaged ({problem}); this disk may have forgotten votes: add the node again \
         under a new id, with an empty data directory",
        path = .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A log without an identity.
    #[error(
        "{dir} has a log but no {FILE}; this disk may have forgotten votes: add the node again \
         under a new id, with an empty data directory",
        dir = .0.display()
    )]
    Orphaned(PathBuf),
}

/// Takes the lock of `dir`, which outlives the call in the returned file.
///
/// # Errors
/// [`IdentityError::InUse`] when another process has it.
pub fn lock(dir: &Path) -> Result<File, IdentityError> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| io_error("open", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(IdentityError::InUse(dir.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(io_error("lock", &path, source)),
    }
}

/// Reads the identity file; `None` when there is none.
///
/// # Errors
/// When it cannot be read or is damaged.
pub fn read(dir: &Path) -> Result<Option<DiskRecord>, IdentityError> {
    let path = dir.join(FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error("read", &path, source)),
    };
    let damaged = |problem: String| IdentityError::Damaged { path: path.clone(), problem };
    let mut text = String::new();
    file.take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(|source| io_error("read", &path, source))?;
    let record: DiskRecord = toml::from_str(&text).map_err(|e| damaged(e.message().to_owned()))?;
    if record.disk() == 0 {
        return Err(damaged("disk is not a number".into()));
    }
    Ok(Some(record))
}

/// Writes the identity file so that a power cut leaves the old or the new one, never half of it.
///
/// # Errors
/// What the file system said; the caller must not start then.
pub fn write(dir: &Path, record: &DiskRecord) -> Result<(), IdentityError> {
    let path = dir.join(FILE);
    let fresh = dir.join(format!("{FILE}.new"));
    let text = toml::to_string(record).expect("three plain fields are always TOML");
    let mut file = File::create(&fresh).map_err(|e| io_error("create", &fresh, e))?;
    file.write_all(text.as_bytes()).map_err(|e| io_error("write", &fresh, e))?;
    file.sync_all().map_err(|e| io_error("fsync", &fresh, e))?;
    fs::rename(&fresh, &path).map_err(|e| io_error("rename", &path, e))?;
    let folder = File::open(dir).map_err(|e| io_error("open", dir, e))?;
    folder.sync_all().map_err(|e| io_error("fsync", dir, e))
}

impl Identity {
    /// Locks `dir`, counts this start and makes it durable.
    ///
    /// # Errors
    /// [`IdentityError`]; nothing may start then.
    pub fn open(dir: &Path, node: NodeId, cluster: &str) -> Result<Self, IdentityError> {
        fs::create_dir_all(dir).map_err(|e| io_error("create", dir, e))?;
        let lock = lock(dir)?;
        let mut record = match read(dir)? {
            Some(record) => record,
            None if has_log(dir)? => return Err(IdentityError::Orphaned(dir.to_owned())),
            None => DiskRecord::new(node, cluster),
        };
        if record.node != node || record.cluster != cluster {
            return Err(IdentityError::Foreign {
                dir: dir.to_owned(),
                node: record.node,
                cluster: record.cluster,
            });
        }
        record.boot += 1;
        write(dir, &record)?;
        Ok(Self {
            node,
            disk: record.disk(),
            boot: record.boot,
            nonce: Nonce(random()),
            _lock: lock,
        })
    }
}

/// Whether the directory holds a Raft log already.
fn has_log(dir: &Path) -> Result<bool, IdentityError> {
    let raft = dir.join(crate::config::RAFT_DIR);
    match fs::read_dir(&raft) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(io_error("read", &raft, source)),
    }
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> IdentityError {
    IdentityError::Io { doing, path: path.to_owned(), source }
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

fn hex(number: u64) -> String {
    format!("{number:016x}")
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
        let other = Identity::open(dir.path(), NodeId(4), "c");
        assert!(matches!(other, Err(IdentityError::Foreign { node: NodeId(3), .. })));
    }

    #[test]
    fn a_log_without_its_identity_is_refused() {
        let dir = TempDir::new("identity");
        fs::create_dir_all(dir.path().join(crate::config::RAFT_DIR)).unwrap();
        fs::write(dir.path().join(crate::config::RAFT_DIR).join("x"), b"x").unwrap();
        let got = Identity::open(dir.path(), NodeId(3), "c");
        assert!(matches!(got, Err(IdentityError::Orphaned(_))));
    }

    #[test]
    fn a_damaged_identity_is_refused_and_says_what_to_do() {
        let dir = TempDir::new("identity");
        fs::write(dir.path().join(FILE), b"node = 3\nboot").unwrap();
        let got = Identity::open(dir.path(), NodeId(3), "c").unwrap_err();
        assert!(got.to_string().contains("under a new id"), "{got}");
    }
}
