//! What an engine reports about a data directory and a running server.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use regent_core::agent::{Lowered, LoweredSession, Override};
use regent_core::role::{Lsn, Position};

/// Which copy of the data this is; new at each clone and rewind. Positions of two generations are
/// not compared (PROTOCOL.md B).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GenerationId(pub u64);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What lies in the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// Nothing: init or clone.
    Empty,
    /// A cluster that can be started.
    Cluster(Box<Cluster>),
    /// A rewind was interrupted: part old, part new. Only a clone helps.
    Quarantined {
        /// What was under way.
        interrupted: String,
    },
    /// Another cluster than the one this service is.
    Foreign {
        /// Its system identifier.
        found: u64,
        /// The one that was expected.
        wanted: u64,
    },
    /// The directory belongs to another user, or others may read it.
    Unsafe {
        /// What is wrong, for a person.
        why: String,
    },
}

/// A cluster on disk, from its control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Names the cluster; the same on all its instances.
    pub system_identifier: u64,
    /// Major version, 13 to 18.
    pub version: u32,
    /// How it was left.
    pub state: ClusterState,
    /// Timeline of the last checkpoint.
    pub timeline: u32,
    /// Where the last checkpoint record begins.
    pub checkpoint: Lsn,
    /// Where recovery from it begins.
    pub redo: Lsn,
    /// A standby is consistent from here on; 0 on a primary.
    pub min_recovery_end: Lsn,
    /// Timeline of `min_recovery_end`.
    pub min_recovery_timeline: u32,
    /// Whether a rewind is possible: hint bits are logged, or pages have checksums.
    pub can_rewind: bool,
    /// Size of a WAL segment, bytes.
    pub segment_bytes: u64,
    /// Which copy of the data this is; none before Regent managed it.
    pub generation: Option<GenerationId>,
    /// The process that `postmaster.pid` names, as seen inside its own namespace. It may be dead.
    pub pid_file: Option<i32>,
    /// Whether it would come up in recovery.
    pub standby_signal: bool,
}

/// The control file's word for how the server was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// Stopped in order, as a primary.
    ShutDown,
    /// Stopped in order, as a standby.
    ShutDownInRecovery,
    /// Running as a primary, or it crashed as one.
    InProduction,
    /// Running as a standby, or it crashed as one.
    InArchiveRecovery,
    /// Anything else, such as in crash recovery.
    Other,
}

/// An orderly stop of a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanStop {
    /// E of PROTOCOL.md D: the end of the shutdown record.
    pub end: Lsn,
    /// Its timeline.
    pub timeline: u32,
}

/// A running server, as its monitoring connection saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// Flushed end, with the epoch that the WAL carries as far as it is replayed.
    pub position: Position,
    /// End of the WAL that is replayed; a primary's own end.
    pub replayed: Lsn,
    /// The same on all instances of a cluster.
    pub system_identifier: u64,
    /// A standby's stream.
    pub receiver: Option<Receiver>,
    /// Streams to others.
    pub senders: Vec<Sender>,
    /// Replication slots.
    pub slots: Vec<Slot>,
    /// `synchronous_standby_names` as a new session has them.
    pub sync_names: String,
    /// `synchronous_commit` as the agent's own session has it.
    pub sync_commit: String,
    /// What lowers `synchronous_commit` for a role or a database.
    pub overrides: Vec<Override>,
    /// Sessions of clients, Regent's own left out.
    pub client_count: u32,
    /// Whether replay is paused, or is asked to.
    pub replay_paused: bool,
    /// Free bytes of the file system that the data is on.
    pub disk_free_bytes: u64,
}

impl Observation {
    /// WAL that is flushed and not replayed, bytes.
    pub fn replay_lag_bytes(&self) -> u64 {
        self.position.end.0.saturating_sub(self.replayed.0)
    }
}

/// A standby's stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Receiver {
    /// Process, as the server numbers it.
    pub pid: i32,
    /// `streaming`, `waiting`, ...
    pub status: String,
    /// Where it streams from.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Age of the last message from the sender. A dead host sends no end of the connection, so a
    /// receiver is a sign of life only while this is small.
    pub last_message_age: Option<Duration>,
    /// Timeline of what it received.
    pub timeline: u32,
}

/// A stream to another instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Sender {
    /// Process, as the server numbers it.
    pub pid: i32,
    /// Role that it logged in as.
    pub user: String,
    /// Name under which the other replicates.
    pub name: String,
    /// Its address; none over a socket.
    pub address: Option<String>,
    /// `streaming`, `catchup`, `backup`, ...
    pub state: String,
    /// `async`, `quorum`, `sync`, `potential`.
    pub sync_state: String,
    /// What the other has flushed; none before its first answer.
    pub flushed: Option<Lsn>,
    /// Age of the stream.
    pub age: Duration,
}

/// A replication slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name at the server.
    pub name: String,
    /// Whether somebody uses it.
    pub active: bool,
    /// WAL kept for it; none when it has reserved nothing yet or lost what it needs.
    pub retained_bytes: Option<u64>,
}

/// A finished promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The new timeline.
    pub timeline: u32,
    /// Where it leaves the old one.
    pub at: Lsn,
}

/// One ancestor in a timeline history: `timeline` ended at `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// An ancestor.
    pub timeline: u32,
    /// Where its successor leaves it.
    pub end: Lsn,
}

/// A timeline history file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFile {
    /// The timeline whose ancestors it lists.
    pub timeline: u32,
    /// Its text, as the server wrote it.
    pub text: String,
}

/// What another instance writes, asked of it while it is a primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLine {
    /// The same on all instances of a cluster.
    pub system_identifier: u64,
    /// Its timeline and the history of that.
    pub history: HistoryFile,
    /// The oldest WAL segment it still has, without its timeline.
    pub oldest_segment: String,
}

/// How this directory relates to another instance's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// It can follow as it is.
    Follows,
    /// It has WAL that the other does not have.
    Diverged,
    /// It could follow, but the other has removed the WAL from there on.
    WalGone {
        /// Where this one's WAL ends.
        from: Lsn,
    },
    /// It is no copy of the other at all.
    OtherCluster {
        /// System identifier here.
        found: u64,
        /// The other's.
        wanted: u64,
    },
}

/// Transactions that a rewind throws away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LostTransactions {
    /// How many there are.
    pub count: u64,
    /// The first of them, at most 1000.
    pub listed: Vec<LostTransaction>,
    /// From where this instance's WAL differs.
    pub from: Lsn,
    /// Up to where it reaches.
    pub to: Lsn,
    /// Where a copy of that WAL lies.
    pub kept_in: Option<PathBuf>,
    /// Whether the copy was cut short by its size limit, or WAL that is gone could not be counted.
    pub cut_short: bool,
}

/// A commit that only this instance has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostTransaction {
    /// Transaction number.
    pub xid: u32,
    /// Where its commit record begins.
    pub at: Lsn,
    /// When it committed, as the server prints it.
    pub time: String,
}
