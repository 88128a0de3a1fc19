//! Receipts: what an instance has proved about itself under a fence; each is a pledge (PROTOCOL.md
//! D), fsynced by the agent before it is sent.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::position::Position;
use crate::id::{InstanceName, Nonce, Revision};

/// What a receipt says. A later one of the list says more about the same fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Proof {
    /// No upstream on disk, no walreceiver: it acknowledges nothing for anybody.
    Detached,
    /// And everything it has received is flushed and replayed: its position stands.
    Recruited,
    /// No process of the data directory, closed on disk.
    Stopped,
    /// Stopped in order by a switchover; the position is the end of the shutdown record.
    Resigned,
}

impl Proof {
    /// One word for people and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Detached => "detached",
            Self::Recruited => "recruited",
            Self::Stopped => "stopped",
            Self::Resigned => "resigned",
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Whose.
    pub instance: InstanceName,
    /// For which fence.
    pub fence: Revision,
    /// What it proves.
    pub proof: Proof,
    /// How far its flushed WAL reaches. Not known of an instance that is down.
    pub position: Option<Position>,
    /// The start in which it was sent: boot counter and nonce that the log accepted (B, as
    /// docs/adr/0010 corrects it). A receipt of another start does not count.
    pub boot: u64,
    /// The nonce of that start.
    pub nonce: Nonce,
    /// Data generation: positions of two generations are not compared.
    pub generation: u64,
    /// For `Stopped` and `Resigned`: whether the end of every process was seen by namespace or
    /// cgroup, and not only looked for.
    pub is_proven: bool,
}
