//! The replicated state machine: `apply(entry) -> Applied`, total and deterministic.
//!
//! It must never read a clock, randomness, the environment, or anything that two replicas could see
//! differently: replicas that applied the same entries are byte-equal (S9).

pub mod audit;
pub mod cluster;
pub mod election;
pub mod partition;
pub mod service;
pub mod session;
pub mod snapshot;
pub mod version;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::effect::Applied;
use crate::id::{
    ElectionName, Incarnation, NodeId, PartitionName, Revision, ServiceName, SessionId,
};
use crate::reply::{Rejection, Reply};

use self::audit::AuditLog;
use self::cluster::ClusterRow;
use self::election::Election;
use self::partition::Partition;
use self::service::Service;
use self::session::Session;
use self::snapshot::SnapshotError;
use self::version::{Barrier, FEATURE_LEVEL};

/// Key of the partitions table.
pub type PartitionKey = (ServiceName, PartitionName);

/// The whole replicated state of a cluster at one revision.
#[derive(Clone, Debug, Default)]
pub struct State {
    revision: Revision,
    hash: [u8; 16],
    cluster: ClusterRow,
    services: BTreeMap<ServiceName, Arc<Service>>,
    sessions: BTreeMap<SessionId, Session>,
    elections: BTreeMap<ElectionName, Arc<Election>>,
    partitions: BTreeMap<PartitionKey, Arc<Partition>>,
    audit: AuditLog,
}

impl State {
    /// Applies one entry. Total: whatever the bytes, it returns, and replicas return the same.
    pub fn apply(&mut self, revision: Revision, _entry: &[u8]) -> Applied {
        self.revision = revision;
        Applied {
            revision,
            reply: Reply::Rejected(Rejection::Poisoned { why: "no handlers yet".into() }),
            changes: Vec::new(),
            clocks: Vec::new(),
            audit: Vec::new(),
        }
    }

    /// Applies a membership entry: recorded in the audit chain.
    pub fn apply_membership(
        &mut self,
        revision: Revision,
        _voters: &[NodeId],
        _learners: &[NodeId],
    ) -> Applied {
        self.apply_blank(revision)
    }

    /// Applies an empty entry, as a new leader writes it.
    pub fn apply_blank(&mut self, revision: Revision) -> Applied {
        self.revision = revision;
        Applied {
            revision,
            reply: Reply::Done { revision },
            changes: Vec::new(),
            clocks: Vec::new(),
            audit: Vec::new(),
        }
    }

    /// Revision of the last entry applied.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Which life the cluster is in.
    pub fn incarnation(&self) -> Incarnation {
        self.cluster.incarnation
    }

    /// The cluster row.
    pub fn cluster(&self) -> &ClusterRow {
        &self.cluster
    }

    /// Declared services.
    pub fn services(&self) -> &BTreeMap<ServiceName, Arc<Service>> {
        &self.services
    }

    /// Open sessions.
    pub fn sessions(&self) -> &BTreeMap<SessionId, Session> {
        &self.sessions
    }

    /// Elections.
    pub fn elections(&self) -> &BTreeMap<ElectionName, Arc<Election>> {
        &self.elections
    }

    /// Partitions of active-active services.
    pub fn partitions(&self) -> &BTreeMap<PartitionKey, Arc<Partition>> {
        &self.partitions
    }

    /// Hash over everything applied so far; equal on replicas at the same revision (S9).
    pub fn rolling_hash(&self) -> [u8; 16] {
        self.hash
    }

    /// The newest audit records and the end of their chain.
    pub fn audit(&self) -> &AuditLog {
        &self.audit
    }

    /// Hash over the whole state, made anew: for tests and for a deep comparison of nodes.
    pub fn full_hash(&self) -> [u8; 16] {
        xxhash_rust::xxh3::xxh3_128(&self.encode_snapshot()).to_le_bytes()
    }

    /// The whole state, versioned and checksummed.
    pub fn encode_snapshot(&self) -> Vec<u8> {
        snapshot::seal(self.cluster.feature_level, &[])
    }

    /// Reads a state back.
    ///
    /// # Errors
    /// [`SnapshotError`] says why the bytes are no snapshot for this binary.
    pub fn decode_snapshot(bytes: &[u8]) -> Result<Self, SnapshotError> {
        snapshot::open(bytes).map(|_| Self::default())
    }

    /// Says that this binary is too old to apply anything more; see [`version`].
    pub fn barrier(&self) -> Option<Barrier> {
        let cluster = self.cluster.feature_level;
        (cluster > FEATURE_LEVEL).then_some(Barrier { cluster, binary: FEATURE_LEVEL })
    }
}
