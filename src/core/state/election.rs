//! The elections table: one holder, a queue, a value.
//!
//! The next holder is the waiting candidate with the highest priority; among equals one in the
//! preferred locality; among those the one that waited longest.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, Locality, Revision, SessionId};

/// One election.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Election {
    /// Highest epoch ever granted here (S3), whether or not its holder is still there.
    pub epoch: Epoch,
    /// The present leader.
    pub holder: Option<Holder>,
    /// Those who wait, in order of arrival.
    pub queue: Vec<Candidate>,
    /// Where the leader should rather be; empty parts do not matter.
    pub preferred: Locality,
    /// Revision of the first campaign or `PutElection`.
    pub created: Revision,
    /// Revision of the last change.
    pub changed: Revision,
}

/// The leader of an election.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Whose lease it is.
    pub session: SessionId,
    /// Its fencing token.
    pub epoch: Epoch,
    /// What it proclaimed last; at first what it campaigned with.
    pub value: Vec<u8>,
    /// Revision of the last proclamation.
    pub proclaimed: Revision,
    /// As it campaigned.
    pub priority: i32,
    /// As it campaigned.
    pub locality: Locality,
}

/// One who waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its session.
    pub session: SessionId,
    /// Higher goes first.
    pub priority: i32,
    /// Where it is.
    pub locality: Locality,
    /// Revision of its campaign: its place in the queue.
    pub since: Revision,
    /// What it will proclaim when it is granted.
    pub value: Vec<u8>,
}
