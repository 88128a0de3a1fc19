//! What an applied entry means for the shells: rows that changed (for watches and routes),
//! sessions whose clocks start anew, audit records to keep.
//!
//! Effects never flow back into the state; losing them costs a shell a re-read, not correctness.

use std::sync::Arc;

use crate::id::{ElectionName, PartitionName, Revision, ServiceName, SessionId};
use crate::reply::Reply;
use crate::state::audit::AuditRecord;
use crate::state::election::Election;
use crate::state::partition::Partition;
use crate::state::role::row::{Operation, ServiceRole};
use crate::state::service::Service;

/// Everything one applied entry did.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The entry's index.
    pub revision: Revision,
    /// What the proposer is told.
    pub reply: Reply,
    /// Rows that changed, each once with its final value, by table and key.
    pub changes: Vec<Change>,
    /// What happened to session clocks.
    pub clocks: Vec<ClockEffect>,
    /// Records appended to the audit chain.
    pub audit: Vec<Arc<AuditRecord>>,
}

/// One row's new value; `None` when it is gone.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A service.
    Service(ServiceName, Option<Arc<Service>>),
    /// An election: its holder, value or queue.
    Election(ElectionName, Option<Arc<Election>>),
    /// A partition of a service.
    Partition(ServiceName, PartitionName, Option<Arc<Partition>>),
    /// A service's role: its primary, sets, fence, instances.
    Role(ServiceName, Option<Arc<ServiceRole>>),
    /// An operation of a service; its id is the revision that began it.
    Operation(ServiceName, Revision, Option<Arc<Operation>>),
    /// The cluster row: incarnation, timing, feature level, members' boots.
    Cluster,
    /// A new incarnation: every watch, session and lease of before is void.
    Incarnation,
}

/// What a node's lease clocks must know (C2, C3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockEffect {
    /// The session was opened or renewed by this entry: its time starts anew.
    Renewed(SessionId),
    /// The session is gone.
    Ended(SessionId),
    /// Everything is void.
    Reset,
}
