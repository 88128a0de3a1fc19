//! Who this disk belongs to: cluster, node, disk id, and how often it was started.
//!
//! It must never be invented beside data that is already there, and the count of starts must be
//! durable before anybody is told: a disk that went back in time is found out by it (PROTOCOL.md B).

use std::io;
use std::path::{Path, PathBuf};

use regent_core::id::NodeId;

use super::vfs::{OpenMode, Vfs};
use super::{LOG_DIR, SNAPSHOT_DIR};

/// What the disk says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// The node id, never given to another disk.
    pub node: NodeId,
    /// Random, made once with the directory.
    pub disk_id: [u8; 16],
    /// Starts so far, this one included; durable before it is told to anybody.
    pub boots: u64,
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
    /// Damaged, or missing beside a log.
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

const NAME: &str = "identity";
const TEMPORARY_NAME: &str = "identity.tmp";
const TITLE: &str = "regent node identity 1";

/// Reads the identity in the data directory `dir` and counts this start; makes one with
/// `fresh_disk_id` if the directory is new. A log or snapshots without an identity are refused:
/// whose votes they hold is unknown. Call it once per start, while nobody else has the directory.
pub fn open_identity(
    vfs: &dyn Vfs,
    dir: &Path,
    cluster: &str,
    node: NodeId,
    fresh_disk_id: [u8; 16],
) -> Result<Identity, IdentityError> {
    let path = dir.join(NAME);
    vfs.create_dir_all(dir).map_err(cannot("make", dir))?;
    let mut identity = match vfs.read(&path) {
        Ok(bytes) => decode(&bytes).map_err(|what| IdentityError::Corrupt {
            path: path.clone(),
            what: format!(
                "{what}. Keep the directory for analysis, remove the node from the cluster, and \
                 add it again empty under a new node id"
            ),
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            refuse_orphans(vfs, dir, &path)?;
            Identity { cluster: cluster.to_string(), node, disk_id: fresh_disk_id, boots: 0 }
        }
        Err(error) => return Err(cannot("read", &path)(error)),
    };
    if identity.cluster != cluster || identity.node != node {
        return Err(IdentityError::Foreign {
            path,
            found: format!("node {} of cluster {:?}", identity.node.0, identity.cluster),
            expected: format!("node {} of cluster {cluster:?}", node.0),
        });
    }
    identity.boots += 1;
    write(vfs, dir, &path, &identity)?;
    Ok(identity)
}

fn refuse_orphans(vfs: &dyn Vfs, dir: &Path, path: &Path) -> Result<(), IdentityError> {
    for name in [LOG_DIR, SNAPSHOT_DIR] {
        let part = dir.join(name);
        let names = match vfs.list(&part) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(cannot("list", &part)(error)),
        };
        if !names.is_empty() {
            return Err(IdentityError::Corrupt {
                path: path.to_path_buf(),
                what: format!(
                    "the file is missing, but {} is not empty: whose data this is cannot be told. \
                     Bring the file back, or start with an empty directory under a new node id",
                    part.display()
                ),
            });
        }
    }
    Ok(())
}

fn write(vfs: &dyn Vfs, dir: &Path, path: &Path, identity: &Identity) -> Result<(), IdentityError> {
    let temporary = dir.join(TEMPORARY_NAME);
    let work = || -> io::Result<()> {
        let mut file = vfs.open(&temporary, OpenMode::Create)?;
        file.write_all_at(encode(identity).as_bytes(), 0)?;
        file.sync_data()?;
        vfs.rename(&temporary, path)?;
        vfs.sync_dir(dir)
    };
    work().map_err(cannot("write", path))
}

fn cannot<'a>(doing: &'static str, path: &'a Path) -> impl Fn(io::Error) -> IdentityError + 'a {
    move |source| IdentityError::Io { doing, path: path.to_path_buf(), source }
}

/// Text, so that it can be read at 3 a.m.; the checksum keeps it from being edited in passing.
fn encode(identity: &Identity) -> String {
    let disk: String = identity.disk_id.iter().map(|b| format!("{b:02x}")).collect();
    let body = format!(
        "{TITLE}\ncluster {}\nnode {}\ndisk {disk}\nboots {}\n",
        identity.cluster, identity.node.0, identity.boots
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
    let disk_id = parse_disk_id(&field("disk")?).ok_or("the disk id is not 32 hex digits")?;
    let boots = number("boots", &field("boots")?)?;
    Ok(Identity { cluster, node, disk_id, boots })
}

fn parse_disk_id(hex: &str) -> Option<[u8; 16]> {
    if hex.len() != 32 || !hex.is_ascii() {
        return None;
    }
    u128::from_str_radix(hex, 16).ok().map(u128::to_be_bytes)
}
