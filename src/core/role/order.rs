//! Directives: what an instance is to be, as desired state, not as an event (PROTOCOL.md B, D).
//!
//! An agent that reconnects gets the whole directive again. It persists the highest (epoch,
//! directive revision) before it acts and refuses anything lower (S4).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Position;
use super::set::SyncSet;
use crate::id::{Epoch, InstanceName, Revision};

/// A directive and its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directive {
    /// The service's epoch when it was given.
    pub epoch: Epoch,
    /// Revision of the entry that last changed it.
    pub revision: Revision,
    /// What to be.
    pub order: Order,
}

/// The number of a directive; the order of the fields is the order of comparison.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct DirectiveNumber {
    /// The service's epoch when it was given.
    pub epoch: Epoch,
    /// Revision of the entry that last changed it.
    pub revision: Revision,
}

/// What an instance is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Nothing yet: nobody has been granted anything. What runs may go on running as it lies on
    /// disk; nothing is started as a primary.
    Wait,
    /// Be primary under the directive's epoch, with these names; once a renewal that names the grant
    /// was acknowledged (C8).
    Lead {
        /// The present sync set.
        set: SyncSet,
    },
    /// Stream from this instance: as it is, after a rewind, or after a clone, whatever it takes.
    Follow {
        /// Who is primary.
        upstream: InstanceName,
    },
    /// D, detach: no upstream, on disk too; replay to the end; receipts `detached`, `recruited`.
    Detach {
        /// The fence that the receipts are for.
        fence: Revision,
    },
    /// D, fetch: stream from this recruit of the same fence; the pledge stands.
    Fetch {
        /// The fence that the pledge is for.
        fence: Revision,
        /// Who is ahead.
        from: InstanceName,
        /// How far that one holds: with this much the fetch is over.
        upto: Position,
    },
    /// D, stop: end every process of the data directory, lie closed on disk; receipt `stopped`.
    Stop {
        /// The fence that the receipt is for.
        fence: Revision,
    },
    /// D, planned: checkpoint, stop fast, lie closed on disk; receipt `resigned` names E.
    Resign {
        /// The fence that the receipt is for.
        fence: Revision,
    },
    /// Its disk went back, or a rewind was interrupted: no upstream, no role, until cloned anew.
    Quarantined,
}

impl Order {
    /// One word for people and metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Lead { .. } => "lead",
            Self::Follow { .. } => "follow",
            Self::Detach { .. } => "detach",
            Self::Fetch { .. } => "fetch",
            Self::Stop { .. } => "stop",
            Self::Resign { .. } => "resign",
            Self::Quarantined => "quarantined",
        }
    }

    /// The fence whose receipts it asks for.
    pub const fn fence(&self) -> Option<Revision> {
        match self {
            Self::Detach { fence }
            | Self::Fetch { fence, .. }
            | Self::Stop { fence }
            | Self::Resign { fence } => Some(*fence),
            Self::Wait | Self::Lead { .. } | Self::Follow { .. } | Self::Quarantined => None,
        }
    }
}

impl Directive {
    /// Its number.
    pub const fn number(&self) -> DirectiveNumber {
        DirectiveNumber { epoch: self.epoch, revision: self.revision }
    }
}

impl fmt::Display for Directive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (epoch {}, directive {})", self.order, self.epoch, self.revision)
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wait | Self::Quarantined => f.write_str(self.name()),
            Self::Lead { set } => write!(f, "lead with {set}"),
            Self::Follow { upstream } => write!(f, "follow {upstream}"),
            Self::Detach { fence } | Self::Stop { fence } | Self::Resign { fence } => {
                write!(f, "{} under fence {fence}", self.name())
            }
            Self::Fetch { fence, from, upto } => {
                write!(f, "fetch from {from} up to {} under fence {fence}", upto.end)
            }
        }
    }
}
