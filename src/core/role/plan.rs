//! What a role change is asked to do, and the proofs that a grant names.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{InstanceName, Revision};

/// Why the primary changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FenceKind {
    /// Unplanned: stop the holder, detach the standbys.
    Failover {
        /// What was seen, in one word: the verdict's name, or `operator`.
        verdict: String,
        /// Who people wish for; `None`: whoever is best. A wish, no proof: COMPLETE is judged all the
        /// same.
        to: Option<InstanceName>,
    },
    /// Planned: the holder checkpoints, stops fast and resigns; then the standbys are detached.
    Switchover {
        /// Who is to be primary; `None`: whoever is best.
        to: Option<InstanceName>,
    },
}

impl FenceKind {
    /// Whether the holder is asked to resign.
    pub const fn is_planned(&self) -> bool {
        matches!(self, Self::Switchover { .. })
    }

    /// Who is wished for.
    pub const fn wanted(&self) -> Option<&InstanceName> {
        match self {
            Self::Failover { to, .. } | Self::Switchover { to } => to.as_ref(),
        }
    }

    /// One word for people and metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Failover { .. } => "failover",
            Self::Switchover { .. } => "switchover",
        }
    }
}

/// Why the old holder cannot acknowledge any more (PROTOCOL.md D, OUT). `apply` finds the proof
/// itself; this is what it found, for the audit chain and the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OutProof {
    /// There was no holder.
    NoHolder,
    /// (a) its `stopped` receipt, proven.
    Stopped,
    /// (b) an armed lease lapsed; lease mode or degraded.
    Lapsed,
    /// C8: it never confirmed its grant, so it never acted.
    NeverActed,
    /// (c) the replication quorum of every set in A was revoked.
    QuorumRevoked,
    /// (e) an approval named the unproven fence.
    Approved,
    /// (f) it resigned.
    Resigned,
}

impl OutProof {
    /// One phrase for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoHolder => "there was no holder",
            Self::Stopped => "it stopped (receipt)",
            Self::Lapsed => "its armed lease lapsed",
            Self::NeverActed => "it never acted on its grant",
            Self::QuorumRevoked => "its replication quorum was revoked",
            Self::Approved => "an approval named the unproven fence",
            Self::Resigned => "it resigned (receipt)",
        }
    }
}

impl fmt::Display for OutProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why the candidate holds everything that may have been acknowledged (PROTOCOL.md D, COMPLETE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CompleteProof {
    /// The first grant of a service: there was nothing to hold.
    First,
    /// It holds the end of the old holder's shutdown.
    HoldsResign,
    /// It is the last holder itself.
    LastHolder,
    /// It holds the maximum of enough recruits of every set in C.
    Recruits,
    /// The loss is within the policy's bound (lease mode).
    WithinBound,
    /// The loss is within what an approval allows.
    Approved,
}

impl CompleteProof {
    /// One phrase for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "nothing was written before",
            Self::HoldsResign => "it holds the end of the old primary's shutdown",
            Self::LastHolder => "it is the last primary itself",
            Self::Recruits => "it holds the maximum of enough recruits",
            Self::WithinBound => "the loss bound is within the policy",
            Self::Approved => "an approval allows the loss",
        }
    }
}

impl fmt::Display for CompleteProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a promotion could lose (PROTOCOL.md H).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Milliseconds of acknowledged writes, a guarantee under A1; `None`: not known.
    pub ms: Option<u64>,
    /// Bytes of WAL, an estimate; `None`: not known.
    pub bytes: Option<u64>,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: Option<u64>| value.map_or("unknown".to_owned(), |v| v.to_string());
        write!(f, "{} ms and about {} bytes", show(self.ms), show(self.bytes))
    }
}

/// Consent of people to go on with less than the proofs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consent {
    /// The approval, by the revision that opened it.
    pub approval: Revision,
}

/// Where an operation stands. Committed before the phase's action starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// The old primary is being fenced, the standbys detached and recruited.
    Fence,
    /// People are asked.
    Approval,
    /// The new epoch is granted; the new primary renews, promotes, verifies.
    Promote,
    /// The write route is open; standbys are brought back.
    Repair,
    /// Over: the service is as redundant as declared, or as it can be.
    Done,
    /// Given up before the grant, the old primary is primary again.
    GivenUp,
    /// A switchover before its fence: the primary serves, and writes out what a stop would have to
    /// write. Here, because a phase's place is its number in the log.
    Prepare,
    /// A switchover before its fence: the primary has prepared, serves those whose sessions are open, and
    /// is in no route any more; routers are waited for.
    Drain,
}

impl Phase {
    /// One word for people and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fence => "fence",
            Self::Approval => "approval",
            Self::Promote => "promote",
            Self::Repair => "repair",
            Self::Done => "done",
            Self::GivenUp => "given-up",
            Self::Prepare => "prepare",
            Self::Drain => "drain",
        }
    }

    /// Whether it is announced and has no fence yet.
    pub const fn is_before_fence(self) -> bool {
        matches!(self, Self::Prepare | Self::Drain)
    }

    /// Whether nothing more will happen.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::GivenUp)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
