//! The types openraft is instantiated with, once for production and simulator alike.
//!
//! Leader ids are openraft's "advanced" ones, ordered by (term, node): two candidates of one term
//! do not split the vote, the higher id wins at once. Leases must survive a change of leader
//! (PROTOCOL.md C6), and a split vote is the longest thing that can happen in one. So the unit of
//! leadership is the leader id, not the term alone.

use std::fmt;

use bytes::Bytes;
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf};
use regent_core::id::Revision;
use regent_core::reply::Reply;
use serde::{Deserialize, Serialize};

use crate::api::Member;
use crate::machine::{Machine, SnapshotData};
use crate::runtime::Rt;

/// One encoded `regent_core::command::Entry`; opaque here.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Payload(pub Bytes);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What applying an entry answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer(pub Reply);

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

openraft::declare_raft_types!(
    /// Regent's instance of openraft.
    pub(crate) Types:
        D = Payload,
        R = Answer,
        NodeId = u64,
        Node = Member,
        AsyncRuntime = Rt,
);

pub(crate) type Entry = EntryOf<Types>;
pub(crate) type LogId = LogIdOf<Types>;
pub(crate) type Vote = VoteOf<Types>;
pub(crate) type Membership = StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = SnapshotMetaOf<Types>;
pub(crate) type Snapshot = SnapshotOf<Types, SnapshotData>;
pub(crate) type Raft = openraft::Raft<Types, Machine>;

/// The revision of the entry at a log index. The log begins at index 0, revisions at 1, so that
/// revision 0 always means "nothing".
pub(crate) fn revision(index: u64) -> Revision {
    Revision(index + 1)
}

/// The revision of a log id; 0 for none.
pub(crate) fn revision_of(id: Option<LogId>) -> Revision {
    id.map_or(Revision(0), |id| revision(id.index()))
}
