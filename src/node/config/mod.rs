//! `regent server`'s configuration: one TOML file, checked whole before anything starts.
//!
//! Every problem is reported at once, with the field and the fix; an unknown key is an error with a
//! suggestion, because a misspelt limit that silently keeps its default is found at 3 a.m.

mod check;
mod dns;
mod keys;

pub use dns::Dns;

use std::path::{Path, PathBuf};

use regent_core::id::{Locality, NodeId};
use regent_core::spec::Problem;
use regent_core::timing::Timing;
use serde::{Deserialize, Serialize};

/// Folder of the Raft log and snapshots inside the data directory.
pub const RAFT_DIR: &str = "raft";
/// Folder of the applied history inside the data directory.
pub const HISTORY_DIR: &str = "history";

/// Everything a node is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// This node's id: in `initial_members`, or as `regent members add` gave it out.
    pub node_id: NodeId,
    /// The cluster's name; nodes of another one are refused.
    pub cluster: String,
    /// Where log, snapshots and history live.
    pub data_dir: PathBuf,
    /// What it listens on.
    pub listen: Listen,
    /// What others dial, where it differs from `listen`. This, `locality` and `label` are for a node
    /// that joins or is restored; they must not contradict the member's row (see
    /// [`crate::announced`]).
    #[serde(default)]
    pub advertise: Advertise,
    /// Where it runs.
    #[serde(default)]
    pub locality: Place,
    /// For people.
    #[serde(default)]
    pub label: String,
    /// Certificates.
    pub tls: Tls,
    /// Which Raft profile.
    #[serde(default)]
    pub profile: Profile,
    /// The figures of profile `custom`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timing: Option<TimingTable>,
    /// `true`: the node was added to a running cluster and waits until that one speaks to it.
    #[serde(default)]
    pub join: bool,
    /// Who begins the cluster; the same list on each of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub initial_members: Vec<InitialMember>,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
    /// Logging.
    #[serde(default)]
    pub log: Log,
    /// Where traces go; none by default.
    #[serde(default)]
    pub otlp: Otlp,
    /// Answers of DNS; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

/// What a node listens on, as `host:port`; port 0 lets the system choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// gRPC, for clients and nodes alike.
    pub grpc: String,
    /// Metrics and health.
    pub http: String,
    /// `true`: the HTTP port speaks no TLS; allowed on loopback only.
    #[serde(default)]
    pub http_plaintext: bool,
}

/// What others dial; empty: as `listen`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Advertise {
    /// `host:port` of the gRPC port.
    pub grpc: String,
    /// `host:port` of the HTTP port.
    pub http: String,
}

/// Where something runs; empty parts mean "not said".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Place {
    /// What a disaster takes whole.
    pub region: String,
    /// What one power feed or switch takes.
    pub zone: String,
    /// One machine.
    pub host: String,
}

impl From<Place> for Locality {
    fn from(place: Place) -> Self {
        Self { region: place.region, zone: place.zone, host: place.host }
    }
}

/// Certificates; all files are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Certificate chain (PEM) of this node: URI SAN `spiffe://<trust_domain>/node/<node_id>`.
    pub cert: PathBuf,
    /// Its key (PEM).
    pub key: PathBuf,
    /// Accepted authorities (PEM), one or several.
    pub ca: PathBuf,
    /// The trust domain of every certificate of this cluster.
    pub trust_domain: String,
    /// What is no longer accepted: one serial number (hex), `serial:<hex>`, `sha256:<hex>` or
    /// `spiffe://...` per line; optional.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<PathBuf>,
}

/// Which Raft profile.
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
    /// The table `[timing]`.
    Custom,
}

/// The figures of profile `custom`, in milliseconds; what is missing is as in `lan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimingTable {
    /// Heartbeat of the leader.
    pub heartbeat_ms: u64,
    /// Shortest random election timeout.
    pub election_min_ms: u64,
    /// Longest random election timeout.
    pub election_max_ms: u64,
    /// Renewals are committed once per tick.
    pub commit_tick_ms: u64,
    /// One round trip and flush among a majority.
    pub round_ms: u64,
    /// Dialing another node, TLS included.
    pub dial_ms: u64,
}

impl Default for TimingTable {
    fn default() -> Self {
        let lan = Timing::LAN;
        Self {
            heartbeat_ms: lan.heartbeat_ms,
            election_min_ms: lan.election_min_ms,
            election_max_ms: lan.election_max_ms,
            commit_tick_ms: lan.commit_tick_ms,
            round_ms: lan.round_ms,
            dial_ms: lan.dial_ms,
        }
    }
}

impl From<TimingTable> for Timing {
    fn from(table: TimingTable) -> Self {
        Self {
            heartbeat_ms: table.heartbeat_ms,
            election_min_ms: table.election_min_ms,
            election_max_ms: table.election_max_ms,
            commit_tick_ms: table.commit_tick_ms,
            round_ms: table.round_ms,
            dial_ms: table.dial_ms,
        }
    }
}

/// A node that begins the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitialMember {
    /// Its id.
    pub id: NodeId,
    /// `host:port` of its gRPC port.
    pub address: String,
    /// `host:port` of its HTTP port.
    #[serde(default)]
    pub http_address: String,
    /// Where it runs.
    #[serde(default)]
    pub locality: Place,
    /// For people.
    #[serde(default)]
    pub label: String,
}

/// Bounds of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Open connections; more are closed at once, and the last 64 (or half) are for nodes alone. A
    /// connection costs about 60 KiB.
    pub max_connections: u32,
    /// Calls and streams at a time on one connection (HTTP/2 SETTINGS).
    pub max_streams_per_connection: u32,
    /// Largest request, in bytes; one log entry is at most 1 MiB.
    pub max_request_bytes: u32,
    /// Requests under way on this node; more are answered RESOURCE_EXHAUSTED.
    pub max_inflight: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_streams_per_connection: 1024,
            max_request_bytes: 2 * 1024 * 1024,
            max_inflight: 8192,
        }
    }
}

/// Logging.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// For people, or one JSON object per line.
    pub format: LogFormat,
    /// The least important level that is written.
    pub level: LogLevel,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: LogLevel::Info }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Which log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Somebody must be woken.
    Error,
    /// Look tomorrow.
    Warn,
    /// What an operator wants to know.
    #[default]
    Info,
    /// Every request.
    Debug,
    /// Everything.
    Trace,
}

/// Traces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Otlp {
    /// `http://host:port` of an OTLP/gRPC collector; empty: no traces.
    pub endpoint: String,
}

/// Why a configuration is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}", path = .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML, or a value has the wrong type.
    #[error("{0}")]
    Syntax(String),
    /// It says something that cannot be; all problems at once.
    #[error("{}", list(.0))]
    Problems(Vec<Problem>),
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl NodeConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], with every problem found.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Reads and checks a text.
    ///
    /// # Errors
    /// [`ConfigError`], with every problem found.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let table: toml::Table =
            toml::from_str(text).map_err(|e| ConfigError::Syntax(e.to_string()))?;
        let unknown = keys::unknown(&table);
        if !unknown.is_empty() {
            return Err(ConfigError::Problems(unknown));
        }
        // From the text, not the table: the error then shows the line.
        let config: Self = toml::from_str(text).map_err(|e| ConfigError::Syntax(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// The text of this configuration.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("plain tables and values are always TOML")
    }

    /// The timing of the chosen profile.
    pub fn timing(&self) -> Timing {
        match self.profile {
            Profile::Lan => Timing::LAN,
            Profile::Fast => Timing::FAST,
            Profile::Wan => Timing::WAN,
            Profile::Custom => self.timing.unwrap_or_default().into(),
        }
    }

    /// Where the Raft log lives.
    pub fn raft_dir(&self) -> PathBuf {
        self.data_dir.join(RAFT_DIR)
    }

    /// Where the history lives.
    pub fn history_dir(&self) -> PathBuf {
        self.data_dir.join(HISTORY_DIR)
    }
}
