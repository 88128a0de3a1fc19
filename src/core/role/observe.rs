//! Hot facts: what an agent sees of its own instance and of its neighbours. They are not log
//! entries; the leader keeps the newest of each in memory and decides by them (DESIGN.md 3).

use crate::id::{Epoch, InstanceName, Revision};
use crate::role::{DirectiveNumber, Lsn, Position};

/// What runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Run {
    /// No process of the data directory.
    #[default]
    Down,
    /// It comes up and takes no query yet.
    Starting,
    /// In recovery.
    Standby,
    /// Out of recovery.
    Primary,
    /// On its way down.
    Stopping,
    /// Being rewound or cloned.
    Rebuilding,
}

impl Run {
    /// One word for people and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Starting => "starting",
            Self::Standby => "standby",
            Self::Primary => "primary",
            Self::Stopping => "stopping",
            Self::Rebuilding => "rebuilding",
        }
    }
}

/// What an agent reports, every 200 ms by default and at once when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// What runs.
    pub run: Run,
    /// With nothing running: whether it was shut down in order, and not by us.
    pub stopped_in_order: bool,
    /// How far its flushed WAL reaches, as far as it is known.
    pub position: Option<Position>,
    /// Received and not yet replayed.
    pub replay_lag_bytes: u64,
    /// The walreceiver, if there is one.
    pub receiver: Option<Receiver>,
    /// Who streams from here.
    pub senders: Vec<Sender>,
    /// A query on a fresh connection.
    pub probe: Probe,
    /// The last own synchronous commit, on a primary.
    pub canary: Option<Canary>,
    /// The sync set whose names were confirmed to be in force, on a primary.
    pub set_in_force: Option<Revision>,
    /// A transaction begun after that set was in force has returned under it.
    pub covered: Option<Revision>,
    /// The switchover for which it has checkpointed, in this run of it.
    pub prepared: Option<Revision>,
    /// The epoch it serves writes under; [`Epoch::NONE`]: it serves none.
    pub serving: Epoch,
    /// What is known of the neighbours by trying to reach them.
    pub sights: Vec<Sight>,
    /// Highest directive obeyed.
    pub seen: DirectiveNumber,
    /// Which step it is at, for people; empty: at rest.
    pub doing: String,
    /// What keeps it from doing what it is told; empty: nothing.
    pub problem: String,
    /// While logins fail: its first process works all the same, so that they are only slow. One that is
    /// frozen, or waits for a dead disk, does nothing.
    pub works: bool,
    /// How somebody lowered synchronous commit or changed the names; empty: nobody did.
    pub tampered: String,
    /// Room on the disk of the data directory.
    pub disk_free_bytes: u64,
    /// What guards it.
    pub guard: Guarded,
    /// `host:port` where its agent answers health checks; without a host: that of the instance's
    /// declared address. Empty: it does not say.
    pub check: String,
}

/// A fencer, as its agent knows it; for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guarded {
    /// The slowest end of everything, in milliseconds; 0: none was measured.
    pub slowest_fence_ms: u64,
    /// What is set aside for one (C6), in milliseconds.
    pub fence_budget_ms: u64,
    /// Timeout of the watchdog that it feeds (A3), in milliseconds; 0: it feeds none.
    pub watchdog_ms: u64,
}

/// A standby's end of streaming.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receiver {
    /// From whom, if the address is a declared one.
    pub from: Option<InstanceName>,
    /// Whether it says that it streams. A dead host sends no FIN: see `silent_ms`.
    pub streams: bool,
    /// Since the last message of the sender, in milliseconds.
    pub silent_ms: u64,
}

/// A primary's end of streaming.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// To whom.
    pub to: InstanceName,
    /// Whether it streams, and not only catches up.
    pub streams: bool,
    /// Whether PostgreSQL counts it for the names in force.
    pub is_sync: bool,
    /// How far it has flushed.
    pub flushed: Lsn,
}

/// A query on a fresh connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// None was tried yet.
    #[default]
    Unknown,
    /// It was answered, after so many milliseconds.
    Answered(u64),
    /// It was not; since so many milliseconds none was.
    Failed {
        /// Since the first of the failures in a row.
        since_ms: u64,
        /// The last one's reason.
        why: String,
    },
}

/// An own synchronous commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// Since it was begun, in milliseconds.
    pub age_ms: u64,
    /// Whether it returned without a warning; `None`: it still waits.
    pub returned: Option<bool>,
}

/// A neighbour, tried directly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Who.
    pub instance: InstanceName,
    /// Since it last answered anything, in milliseconds; `None`: never.
    pub answered_ms: Option<u64>,
    /// Its address refused the connection: the host lives and nothing listens.
    pub refused: bool,
    /// Since it was last tried, in milliseconds.
    pub tried_ms: u64,
}

impl Probe {
    /// Whether it is worth anything as a sign of life.
    pub const fn is_answered(&self) -> bool {
        matches!(self, Self::Answered(_))
    }
}
