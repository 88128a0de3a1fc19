//! What a lab looks like on disk and as one object for other programs.
//!
//! `lab.json` is the lab: it is replaced whole (written beside, then renamed), so that a reader
//! never sees half of it, and it names every process that was started.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::databases::Databases;
use crate::network::Network;
use crate::process::Process;

/// Version of [`Lab`]'s form on disk.
pub const LAB_VERSION: u32 = 1;
const FILE: &str = "lab.json";

/// Which Raft profile the nodes run with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Zones of one region.
    #[default]
    Lan,
    /// One building.
    Fast,
    /// Regions.
    Wan,
}

impl Profile {
    /// As in a node's configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Fast => "fast",
            Self::Wan => "wan",
        }
    }
}

/// Everything a lab is, as kept in its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lab {
    /// [`LAB_VERSION`] of the writer.
    pub version: u32,
    /// Its directory, absolute.
    pub dir: PathBuf,
    /// Which binary its processes run.
    pub binary: PathBuf,
    /// The cluster's name.
    pub cluster: String,
    /// Trust domain of its certificates.
    pub trust_domain: String,
    /// Which Raft profile.
    pub profile: Profile,
    /// Its nodes.
    pub nodes: Vec<LabNode>,
    /// Its databases; `None`: coordinator nodes only.
    #[serde(default)]
    pub databases: Option<Databases>,
    /// Its own network; `None`: everything shares the machine's loopback.
    #[serde(default)]
    pub network: Option<Network>,
}

/// One node of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabNode {
    /// Its id.
    pub id: u64,
    /// Its zone: a, b, c, ...
    pub zone: String,
    /// `host:port` of its gRPC port.
    pub grpc: String,
    /// `host:port` of its HTTP port.
    pub http: String,
    /// Its data.
    pub data_dir: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
    /// Where its stdout and stderr go.
    pub log: PathBuf,
    /// The process that was started last; `None` before the first.
    pub process: Option<Process>,
}

impl LabNode {
    /// Its machine's name in the lab's network.
    pub fn machine(&self) -> String {
        format!("node-{}", self.id)
    }
}

/// Files of one identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// Everything an outside program needs to log in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificates {
    /// Trust domain of all of them.
    pub trust_domain: String,
    /// What every process trusts.
    pub ca: PathBuf,
    /// Everything a person may do.
    pub admin: Pair,
    /// Declares services, runs operations.
    pub operator: Pair,
    /// Campaigns and holds leases.
    pub client: Pair,
    /// Reads everything.
    pub auditor: Pair,
    /// Follows routes.
    pub router: Pair,
}

/// People and programs of a lab: role and name, in the order of [`Certificates`].
pub const IDENTITIES: [&str; 5] = ["admin", "operator", "client", "auditor", "router"];

/// Why a lab cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none.
    #[error("{} is no lab", dir.display())]
    None {
        /// Where.
        dir: PathBuf,
    },
    /// Its file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its file is not what it should be.
    #[error("{} is damaged, or of another version of Regent", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Lab {
    /// Reads the lab of a directory.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(OpenError::None { dir: dir.to_owned() });
            }
            Err(source) => return Err(OpenError::Read { path, source }),
        };
        serde_json::from_slice(&text).map_err(|source| OpenError::Content { path, source })
    }

    /// Whether a directory holds a lab.
    pub fn exists(dir: &Path) -> bool {
        dir.join(FILE).exists()
    }

    /// Writes the lab down, whole or not at all.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self) -> io::Result<()> {
        let path = self.dir.join(FILE);
        let beside = self.dir.join(format!("{FILE}.new"));
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        // For its owner alone: it may hold the password of the databases. What is left of a write
        // that was interrupted may not keep another mode.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&text)?;
        fs::rename(beside, path)
    }

    /// Where certificates are.
    pub fn pki_dir(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// The list of certificates that the nodes refuse; it does not exist until somebody writes it.
    pub fn revoked(&self) -> PathBuf {
        self.pki_dir().join("revoked")
    }

    /// The certificates of people and programs.
    pub fn certificates(&self) -> Certificates {
        let pki = self.pki_dir();
        let pair = |role: &str| Pair {
            cert: pki.join(format!("{role}-lab.crt")),
            key: pki.join(format!("{role}-lab.key")),
        };
        Certificates {
            trust_domain: self.trust_domain.clone(),
            ca: pki.join("bundle.crt"),
            admin: pair("admin"),
            operator: pair("operator"),
            client: pair("client"),
            auditor: pair("auditor"),
            router: pair("router"),
        }
    }

    /// gRPC endpoints of all nodes.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.grpc.clone()).collect()
    }

    /// The network namespace of one of its machines; `None`: the caller's.
    pub fn space(&self, machine: &str) -> Option<String> {
        self.network.as_ref().map(|network| network.space(machine))
    }

    /// The node with this id.
    pub fn node(&self, id: u64) -> Option<&LabNode> {
        self.nodes.iter().find(|node| node.id == id)
    }
}
