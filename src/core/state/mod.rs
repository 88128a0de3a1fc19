//! The replicated state machine: `apply(entry) -> Applied`, total and deterministic.
//!
//! It must never read a clock, randomness, the environment, or anything else that two replicas
//! could see differently: replicas that applied the same entries are byte-equal (S9). For the same
//! reason the texts inside rejections and rows are part of the state: a release that words one
//! differently must switch on the feature level ([`version`]).
//!
//! ```text
//! bytes -> version -> envelope -> lane -> body -> handler(Draft) -> invariants -> stands
//!            |           |         |       |            |               |          audit, hash,
//!            refused    poison  as before poison   refused (clean)   poison:       revision,
//!                                                                   rolled back    effects
//! ```
//!
//! # Map
//!
//! - `tables` the rows and their indexes; `journal` the only way to write them, and to undo.
//! - [`cluster`], [`service`], [`partition`], [`session`], [`election`]: a row each, and its
//!   handlers.
//! - `apply` the way of one entry; [`invariants`] what must be true after it; `hash` the rolling
//!   hash.
//! - `lanes` replies for retries; [`audit`] the chain, `refusals` what keeps it bounded.
//! - [`snapshot`] the state as bytes; [`version`] which entries and snapshots may be read.

mod apply;
pub mod audit;
pub mod cluster;
mod describe;
pub mod election;
mod hash;
pub mod invariants;
mod journal;
mod lanes;
pub mod partition;
mod refusals;
pub mod role;
pub mod service;
pub mod session;
pub mod snapshot;
mod tables;
#[cfg(test)]
mod tests;
pub mod version;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use crate::id::{ElectionName, Incarnation, PartitionName, Revision, ServiceName, SessionId};
use crate::spec::Policy;
use crate::time::WallMs;

use self::audit::AuditLog;
use self::cluster::ClusterRow;
use self::election::Election;
use self::hash::Mixer;
use self::invariants::Broken;
use self::lanes::Lanes;
use self::partition::Partition;
use self::refusals::Refusals;
use self::role::holder::HolderRow;
use self::role::row::{Operation, ServiceRole};
use self::service::Service;
use self::session::Session;
use self::tables::Tables;
use self::version::{Barrier, FEATURE_LEVEL};

/// Key of the partitions table.
pub type PartitionKey = (ServiceName, PartitionName);

/// Key of the operations table: the service and the revision that began the operation.
pub type OperationKey = (ServiceName, Revision);

/// The whole replicated state of a cluster at one revision.
#[derive(Clone, Debug, Default)]
pub struct State {
    revision: Revision,
    hash: [u8; 16],
    /// Wall clock of the newest entry, for records of entries that carry none.
    at: WallMs,
    tables: Tables,
    lanes: Lanes,
    audit: AuditLog,
    refusals: Refusals,
    mixer: Mixer,
}

impl State {
    /// Revision of the last entry applied; 0 when there was none.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Which life the cluster is in; counter 0 before `Bootstrap`.
    pub fn incarnation(&self) -> Incarnation {
        self.tables.cluster().incarnation
    }

    /// The cluster row.
    pub fn cluster(&self) -> &ClusterRow {
        self.tables.cluster()
    }

    /// Declared services.
    pub fn services(&self) -> &BTreeMap<ServiceName, Arc<Service>> {
        self.tables.services()
    }

    /// Open sessions.
    pub fn sessions(&self) -> &BTreeMap<SessionId, Session> {
        self.tables.sessions()
    }

    /// The longest ttl of an open session, in milliseconds; 0 without any.
    pub fn longest_ttl_ms(&self) -> u64 {
        self.sessions().values().map(|session| session.ttl_ms).max().unwrap_or(0)
    }

    /// In a new life: grants wait for leases of the life before with a ttl of so many milliseconds; 0:
    /// they do not.
    pub fn grants_held_ms(&self) -> u64 {
        self.cluster().grants_held_ms
    }

    /// How long a ttl, in milliseconds, a new life that begins with this state waits out by default
    /// before it grants anything.
    pub fn hold_for_next_life_ms(&self) -> u64 {
        cluster::hold_for(&self.tables)
    }

    /// Whether this state has passed the entry that opened `session`: then, without a row in
    /// [`Self::sessions`], it is closed for good, since ids are revisions and never come back.
    pub fn has_seen(&self, session: SessionId) -> bool {
        session.0 <= self.revision.0
    }

    /// Elections.
    pub fn elections(&self) -> &BTreeMap<ElectionName, Arc<Election>> {
        self.tables.elections()
    }

    /// Elections whose names begin with `prefix` and are above `after`, in order of their names.
    pub fn elections_named<'a>(
        &'a self,
        prefix: &'a str,
        after: &str,
    ) -> impl Iterator<Item = (&'a ElectionName, &'a Election)> {
        let from = if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
        self.elections()
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(move |(name, _)| name.as_str().starts_with(prefix))
            .map(|(name, row)| (name, row.as_ref()))
    }

    /// Partitions of active-active services.
    pub fn partitions(&self) -> &BTreeMap<PartitionKey, Arc<Partition>> {
        self.tables.partitions()
    }

    /// The partitions of one service, in order of their names.
    pub fn partitions_of<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = (&'a PartitionName, &'a Arc<Partition>)> {
        self.tables.partitions_of(service)
    }

    /// The roles of services that have ever had an agent.
    pub fn roles(&self) -> &BTreeMap<ServiceName, Arc<ServiceRole>> {
        self.tables.roles()
    }

    /// What the holders of roles said last, and the policies they have not taken up yet.
    pub fn holders(&self) -> &BTreeMap<ServiceName, Arc<HolderRow>> {
        self.tables.holders()
    }

    /// The longest ttl that renewals of the role whose lease is `session` have named in its epoch, in
    /// milliseconds; `None`: it is the lease of none, or none was named.
    pub fn longest_ttl_of_lease(&self, session: SessionId) -> Option<u64> {
        let service = self.tables.lease_of(session)?;
        let last = self.holders().get(service)?.renewal.as_ref()?;
        (last.epoch == self.roles().get(service)?.epoch).then_some(last.ttl_ms)
    }

    /// The policy that binds a service (C7).
    pub fn policy_in_force(&self, service: &ServiceName) -> Option<Policy> {
        let declared = &self.services().get(service)?.spec.policy;
        let said = self.holders().get(service);
        Some(said.map_or(*declared, |said| said.policy_in_force(declared)))
    }

    /// Operations, the newest of each service.
    pub fn operations(&self) -> &BTreeMap<OperationKey, Arc<Operation>> {
        self.tables.operations()
    }

    /// Elections that `session` leads or waits in, in order of their names.
    pub fn elections_of(&self, session: SessionId) -> &[ElectionName] {
        self.tables.places_of(session)
    }

    /// Elections whose holder has not yet named its grant (C8); the candidates for `ExpireGrants`.
    pub fn unconfirmed(&self) -> &BTreeSet<ElectionName> {
        self.tables.unconfirmed()
    }

    /// How many client lanes are remembered.
    pub fn client_lanes(&self) -> usize {
        self.lanes.len()
    }

    /// The newest audit records and the end of their chain.
    pub fn audit(&self) -> &AuditLog {
        &self.audit
    }

    /// Hash over everything applied so far; equal on replicas at the same revision (S9).
    pub fn rolling_hash(&self) -> [u8; 16] {
        self.hash
    }

    /// Hash over the whole state, made anew: for tests and for a deep comparison of nodes.
    pub fn full_hash(&self) -> [u8; 16] {
        xxhash_rust::xxh3::xxh3_128(&self.encode_snapshot()).to_le_bytes()
    }

    /// Says that this binary is too old to apply anything more; see [`version`]. The shell must
    /// look after every entry and after every snapshot, and stop the node.
    pub fn barrier(&self) -> Option<Barrier> {
        let cluster = self.cluster().feature_level;
        (cluster > FEATURE_LEVEL).then_some(Barrier { cluster, binary: FEATURE_LEVEL })
    }

    /// Checks every invariant of every row. Costs a pass over everything and a copy of it: for
    /// tests, the simulator, and a node that is asked to check itself.
    ///
    /// # Errors
    /// [`Broken`] names the rule and the row.
    pub fn check(&self) -> Result<(), Broken> {
        invariants::check_all(&self.tables)
    }
}
