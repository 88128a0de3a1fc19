//! Who this disk belongs to: cluster, node, disk id, and how often it was started.
//!
//! It must never be invented beside data that is already there, and the count of starts must be
//! durable before anybody is told: a disk that went back in time is found out by it (PROTOCOL.md B).

use std::io;
use std::path::{Path, PathBuf};

use regent_core::id::NodeId;

use super::vfs::{OpenMode, Vfs};
use super::{LOG_DIR, SNAPSHOT_DIR, segment, snapshot};

/// What the disk says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// The node id, never given to another disk.
    pub node: NodeId,
    /// Random, made once with the directory.
    pub disk: u64,
    /// Starts so far, this one included; durable before it is told to anybody.
    pub boots: u64,
    /// How far its log has come.
    pub log: LogState,
}

/// How far the log of a directory has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogState {
    /// None was made yet.
    None,
    /// A restore is writing a new life here. Until it is done nothing may start: what lies here is
    /// less than was restored, and beside it a new empty cluster would begin.
    Making,
    /// It was made: from then on, a start that finds none has forgotten its votes.
    Made,
}

impl Identity {
    /// The identity of a directory that never started.
    pub fn new(cluster: &str, node: NodeId, disk: u64) -> Self {
        Self { cluster: cluster.to_string(), node, disk, boots: 0, log: LogState::None }
    }
}

/// Why the identity could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The directory belongs to somebody else.
    #[error("{path} belongs to {found}, but this node is configured as {expected}")]
    Foreign {
        /// The identity file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What was configured.
        expected: String,
    },
    /// Damaged, or log and identity are not both there.
    #[error("{path}: {what}")]
    Corrupt {
        /// The identity file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
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

/// Name of the file in the data directory.
pub const NAME: &str = "identity";
const TITLE: &str = "regent node identity 1";

/// What to do with a disk that cannot be trusted.
const START_OVER: &str = "Keep the directory for analysis, remove the node from the cluster, and add \
                          it again empty under a new node id";

/// Reads the identity in the data directory `dir` and counts this start; makes one with
/// `fresh_disk` if the directory is new. `log` is where the log and the snapshots lie. A log
/// or a snapshot without an identity is refused, because whose data it holds is unknown; an identity
/// that had a log and lost it as well, because this node has forgotten how it voted: a snapshot
/// holds no votes. Call it once per start,
/// while nobody else has the directory.
///
/// # Errors
/// [`IdentityError`]; nothing may start then.
pub fn open_identity(
    vfs: &dyn Vfs,
    dir: &Path,
    log: &Path,
    cluster: &str,
    node: NodeId,
    fresh_disk: u64,
) -> Result<Identity, IdentityError> {
    vfs.create_dir_all(dir).map_err(cannot("make", dir))?;
    let parts = Parts::find(vfs, log)?;
    let mut identity = match read_identity(vfs, dir)? {
        Some(identity) => identity,
        None if parts.log || parts.snapshots => {
            return Err(corrupt(
                &dir.join(NAME),
                format!(
                    "the file is missing, but {} holds a log or a snapshot: whose data this is \
                     cannot be told. Bring the file back, or start with an empty directory under a \
                     new node id",
                    log.display()
                ),
            ));
        }
        None => Identity::new(cluster, node, fresh_disk),
    };
    belongs(&identity, &dir.join(NAME), cluster, node)?;
    if identity.log == LogState::Made && !parts.log {
        return Err(corrupt(
            log,
            format!(
                "the log is missing, but this node had one, and its votes with it. Put it back if \
                 it was moved, mount its file system if that is missing. Otherwise: {START_OVER}"
            ),
        ));
    }
    identity.boots += 1;
    write_identity(vfs, dir, &identity)?;
    Ok(identity)
}

/// Reads the identity in `dir`, counting nothing; `None` when there is none.
///
/// # Errors
/// When it cannot be read, or is damaged.
pub fn read_identity(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Identity>, IdentityError> {
    let path = dir.join(NAME);
    match vfs.read(&path) {
        Ok(bytes) => {
            decode(&bytes).map(Some).map_err(|what| corrupt(&path, format!("{what}. {START_OVER}")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(cannot("read", &path)(error)),
    }
}

/// Refuses an identity of another cluster or node, and one whose restore was interrupted.
///
/// # Errors
/// [`IdentityError::Foreign`], [`IdentityError::Corrupt`].
pub fn belongs(
    identity: &Identity,
    path: &Path,
    cluster: &str,
    node: NodeId,
) -> Result<(), IdentityError> {
    if identity.log == LogState::Making {
        let what = "a restore into this directory was interrupted, and nothing in it was ever used. \
                    Empty the directory and restore again";
        return Err(corrupt(path, what.to_string()));
    }
    if identity.cluster == cluster && identity.node == node {
        return Ok(());
    }
    Err(IdentityError::Foreign {
        path: path.to_path_buf(),
        found: format!("node {} of cluster {:?}", identity.node.0, identity.cluster),
        expected: format!("node {} of cluster {cluster:?}", node.0),
    })
}

/// What lies below the directory of log and snapshots. Locks and half-made files do not count: a
/// directory that lost everything else still holds them.
struct Parts {
    log: bool,
    snapshots: bool,
}

impl Parts {
    fn find(vfs: &dyn Vfs, log: &Path) -> Result<Self, IdentityError> {
        let (segments, snapshots) = (log.join(LOG_DIR), log.join(SNAPSHOT_DIR));
        Ok(Self {
            log: segment::any(vfs, &segments).map_err(cannot("list", &segments))?,
            snapshots: snapshot::any(vfs, &snapshots).map_err(cannot("list", &snapshots))?,
        })
    }
}

fn corrupt(path: &Path, what: String) -> IdentityError {
    IdentityError::Corrupt { path: path.to_path_buf(), what }
}

/// Writes the identity so that a power cut leaves the old or the new one, never half of it.
///
/// # Errors
/// What the disk said; the caller must not go on then.
pub fn write_identity(vfs: &dyn Vfs, dir: &Path, identity: &Identity) -> Result<(), IdentityError> {
    replace(vfs, dir, NAME, encode(identity).as_bytes())
}

/// Writes the file `name` in `dir`: a power cut leaves the old one (or none) or this one.
pub(super) fn replace(
    vfs: &dyn Vfs,
    dir: &Path,
    name: &str,
    bytes: &[u8],
) -> Result<(), IdentityError> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.tmp"));
    let work = || -> io::Result<()> {
        let mut file = vfs.open(&temporary, OpenMode::Create)?;
        file.write_all_at(bytes, 0)?;
        file.sync_data()?;
        vfs.rename(&temporary, &path)?;
        vfs.sync_dir(dir)
    };
    work().map_err(cannot("write", &path))
}

pub(super) fn cannot<'a>(
    doing: &'static str,
    path: &'a Path,
) -> impl Fn(io::Error) -> IdentityError + 'a {
    move |source| IdentityError::Io { doing, path: path.to_path_buf(), source }
}

/// Text, so that it can be read at 3 a.m.; the checksum keeps it from being edited in passing.
fn encode(identity: &Identity) -> String {
    let Identity { cluster, node, disk, boots, log } = identity;
    let log = match log {
        LogState::None => "none",
        LogState::Making => "making",
        LogState::Made => "made",
    };
    let body = format!(
        "{TITLE}\ncluster {cluster}\nnode {}\ndisk {disk:016x}\nboots {boots}\nlog {log}\n",
        node.0
    );
    let crc = crc32c::crc32c(body.as_bytes());
    format!("{body}crc32c {crc:08x}\n")
}

fn decode(bytes: &[u8]) -> Result<Identity, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "this is not text".to_string())?;
    let (body, crc) = text.split_once("crc32c ").ok_or("the checksum is missing")?;
    if crc.trim_end() != format!("{:08x}", crc32c::crc32c(body.as_bytes())) {
        return Err("the checksum is wrong".to_string());
    }
    let mut lines = body.lines();
    if lines.next() != Some(TITLE) {
        return Err("written by a version that this one does not know".to_string());
    }
    let mut field = |name: &str| -> Result<String, String> {
        lines
            .next()
            .and_then(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .map(str::to_string)
            .ok_or(format!("the line {name:?} is missing"))
    };
    let number = |name: &str, text: &str| {
        text.parse::<u64>().map_err(|_| format!("{name} is not a number: {text:?}"))
    };
    let cluster = field("cluster")?;
    let node = NodeId(number("node", &field("node")?)?);
    let disk = u64::from_str_radix(&field("disk")?, 16)
        .ok()
        .filter(|disk| *disk != 0)
        .ok_or("the disk id is not a number in hex")?;
    let boots = number("boots", &field("boots")?)?;
    let log = match field("log")?.as_str() {
        "none" => LogState::None,
        "making" => LogState::Making,
        "made" => LogState::Made,
        other => return Err(format!("log is not none, making or made: {other:?}")),
    };
    Ok(Identity { cluster, node, disk, boots, log })
}
