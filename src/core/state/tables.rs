//! The live rows and the indexes derived from them.
//!
//! Only the journal may call the `set_*` functions here: a write that it does not know of could be
//! neither rolled back nor checked nor hashed. Indexes are kept by the same functions, so that a
//! rollback restores them too; they are not in snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cluster::ClusterRow;
use super::election::Election;
use super::partition::Partition;
use super::role::holder::HolderRow;
use super::role::row::{Operation, ServiceRole};
use super::service::Service;
use super::session::{Marks, Session};
use super::snapshot::shared_map;
use super::{OperationKey, PartitionKey};
use crate::authz::Principal;
use crate::id::{ElectionName, PartitionName, Revision, ServiceName, SessionId};

/// All tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tables {
    cluster: ClusterRow,
    #[serde(with = "shared_map")]
    services: BTreeMap<ServiceName, Arc<Service>>,
    sessions: BTreeMap<SessionId, Session>,
    #[serde(with = "shared_map")]
    elections: BTreeMap<ElectionName, Arc<Election>>,
    #[serde(with = "shared_map")]
    partitions: BTreeMap<PartitionKey, Arc<Partition>>,
    #[serde(skip)]
    roles: BTreeMap<ServiceName, Arc<ServiceRole>>,
    #[serde(skip)]
    operations: BTreeMap<OperationKey, Arc<Operation>>,
    #[serde(skip)]
    holders: BTreeMap<ServiceName, Arc<HolderRow>>,
    #[serde(skip)]
    index: Index,
}

/// The tables of the second layout, as they lie in snapshots behind those of the first.
#[derive(Deserialize)]
pub(super) struct Roles {
    #[serde(with = "shared_map")]
    roles: BTreeMap<ServiceName, Arc<ServiceRole>>,
    #[serde(with = "shared_map")]
    operations: BTreeMap<OperationKey, Arc<Operation>>,
}

/// The same, borrowed.
#[derive(Serialize)]
pub(super) struct RolesRef<'a> {
    #[serde(serialize_with = "shared_map::serialize")]
    roles: &'a BTreeMap<ServiceName, Arc<ServiceRole>>,
    #[serde(serialize_with = "shared_map::serialize")]
    operations: &'a BTreeMap<OperationKey, Arc<Operation>>,
}

/// The table of the third layout.
#[derive(Deserialize)]
pub(super) struct Holders {
    #[serde(with = "shared_map")]
    holders: BTreeMap<ServiceName, Arc<HolderRow>>,
}

/// The same, borrowed.
#[derive(Serialize)]
pub(super) struct HoldersRef<'a> {
    #[serde(serialize_with = "shared_map::serialize")]
    holders: &'a BTreeMap<ServiceName, Arc<HolderRow>>,
}

/// What can be derived from the rows, kept because searching for it would be too slow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Index {
    /// Elections each session leads or waits in, in order of their names: a session that ends must
    /// find them without a search. Sorted vectors: most sessions have one or none.
    places: BTreeMap<SessionId, Vec<ElectionName>>,
    /// Elections whose holder has not yet named its grant (C8): the leader looks at them each tick.
    unconfirmed: BTreeSet<ElectionName>,
    /// Open sessions of each principal that has any.
    owned: BTreeMap<Principal, usize>,
    /// The service whose role each session is the lease of.
    leases: BTreeMap<SessionId, ServiceName>,
}

impl Tables {
    pub fn cluster(&self) -> &ClusterRow {
        &self.cluster
    }

    pub fn services(&self) -> &BTreeMap<ServiceName, Arc<Service>> {
        &self.services
    }

    pub fn sessions(&self) -> &BTreeMap<SessionId, Session> {
        &self.sessions
    }

    pub fn elections(&self) -> &BTreeMap<ElectionName, Arc<Election>> {
        &self.elections
    }

    pub fn partitions(&self) -> &BTreeMap<PartitionKey, Arc<Partition>> {
        &self.partitions
    }

    pub fn roles(&self) -> &BTreeMap<ServiceName, Arc<ServiceRole>> {
        &self.roles
    }

    pub fn holders(&self) -> &BTreeMap<ServiceName, Arc<HolderRow>> {
        &self.holders
    }

    pub fn operations(&self) -> &BTreeMap<OperationKey, Arc<Operation>> {
        &self.operations
    }

    pub fn unconfirmed(&self) -> &BTreeSet<ElectionName> {
        &self.index.unconfirmed
    }

    /// Open sessions of `owner`.
    pub fn sessions_of(&self, owner: &Principal) -> usize {
        self.index.owned.get(owner).copied().unwrap_or(0)
    }

    /// Elections that `session` leads or waits in, by name.
    pub fn places_of(&self, session: SessionId) -> &[ElectionName] {
        self.index.places.get(&session).map_or(&[], Vec::as_slice)
    }

    /// The service whose role `session` is the lease of.
    pub fn lease_of(&self, session: SessionId) -> Option<&ServiceName> {
        self.index.leases.get(&session)
    }

    /// The operations of one service, oldest first.
    pub fn operations_of<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl DoubleEndedIterator<Item = (Revision, &'a Arc<Operation>)> {
        let key = |revision| (service.clone(), Revision(revision));
        self.operations.range(key(0)..=key(u64::MAX)).map(|((_, id), row)| (*id, row))
    }

    /// Sessions that have a place anywhere.
    pub fn placed_sessions(&self) -> impl Iterator<Item = SessionId> {
        self.index.places.keys().copied()
    }

    /// The partitions of one service, in order of their names.
    pub fn partitions_of<'a>(
        &'a self,
        service: &'a ServiceName,
    ) -> impl Iterator<Item = (&'a PartitionName, &'a Arc<Partition>)> {
        // A partition's name cannot be empty, so no range has a least key to begin with but the
        // shortest, least text that is a name.
        let least = PartitionName::parse("0").expect("\"0\" is a name");
        self.partitions
            .range((service.clone(), least)..)
            .take_while(move |((owner, _), _)| owner == service)
            .map(|((_, partition), row)| (partition, row))
    }

    pub(super) fn set_cluster(&mut self, row: ClusterRow) -> ClusterRow {
        std::mem::replace(&mut self.cluster, row)
    }

    pub(super) fn set_service(
        &mut self,
        name: &ServiceName,
        row: Option<Arc<Service>>,
    ) -> Option<Arc<Service>> {
        put(&mut self.services, name, row)
    }

    pub(super) fn set_partition(
        &mut self,
        key: &PartitionKey,
        row: Option<Arc<Partition>>,
    ) -> Option<Arc<Partition>> {
        put(&mut self.partitions, key, row)
    }

    pub(super) fn set_role(
        &mut self,
        name: &ServiceName,
        row: Option<Arc<ServiceRole>>,
    ) -> Option<Arc<ServiceRole>> {
        let leased = |row: Option<&ServiceRole>| Some(row?.lease.as_ref()?.session);
        let new = leased(row.as_deref());
        let old = put(&mut self.roles, name, row);
        if let Some(session) = leased(old.as_deref()) {
            self.index.leases.remove(&session);
        }
        if let Some(session) = new {
            self.index.leases.insert(session, name.clone());
        }
        old
    }

    pub(super) fn set_operation(
        &mut self,
        key: &OperationKey,
        row: Option<Arc<Operation>>,
    ) -> Option<Arc<Operation>> {
        put(&mut self.operations, key, row)
    }

    pub(super) fn set_holder(
        &mut self,
        name: &ServiceName,
        row: Option<Arc<HolderRow>>,
    ) -> Option<Arc<HolderRow>> {
        put(&mut self.holders, name, row)
    }

    pub(super) fn set_holders(&mut self, holders: Holders) {
        self.holders = holders.holders;
    }

    pub(super) fn holders_ref(&self) -> HoldersRef<'_> {
        HoldersRef { holders: &self.holders }
    }

    /// Takes over the tables that snapshots of the first layout have not.
    pub(super) fn set_roles(&mut self, roles: Roles) {
        self.roles = roles.roles;
        self.operations = roles.operations;
    }

    pub(super) fn roles_ref(&self) -> RolesRef<'_> {
        RolesRef { roles: &self.roles, operations: &self.operations }
    }

    /// Writes an election; gives back the row before and the sessions that joined or left it.
    pub(super) fn set_election(
        &mut self,
        name: &ElectionName,
        row: Option<Arc<Election>>,
    ) -> (Option<Arc<Election>>, Vec<SessionId>) {
        let new = row.clone();
        let old = put(&mut self.elections, name, row);
        let moved = moved(old.as_deref(), new.as_deref());
        for session in &moved {
            let stays = new.as_deref().is_some_and(|row| row.has(*session));
            self.index.note_place(*session, name, stays);
        }
        self.refresh(name);
        (old, moved)
    }

    pub(super) fn set_session(&mut self, id: SessionId, row: Option<Session>) -> Option<Session> {
        if let Some(row) = &row {
            self.index.count_owned(&row.owner);
        }
        let old = match row {
            Some(row) => self.sessions.insert(id, row),
            None => self.sessions.remove(&id),
        };
        if let Some(old) = &old {
            self.index.discount_owned(&old.owner);
        }
        self.refresh_all_of(id);
        old
    }

    /// Changes what renewals and grants change of a session; `None` if there is no such session.
    pub(super) fn set_marks(&mut self, id: SessionId, marks: Marks) -> Option<Marks> {
        let row = self.sessions.get_mut(&id)?;
        let old = row.marks();
        row.set_marks(marks);
        if old.known_grant != marks.known_grant {
            self.refresh_all_of(id);
        }
        Some(old)
    }

    pub(super) fn swap_sessions(
        &mut self,
        rows: BTreeMap<SessionId, Session>,
    ) -> BTreeMap<SessionId, Session> {
        let old = std::mem::replace(&mut self.sessions, rows);
        self.count_all_owned();
        let names: Vec<_> = self.elections.keys().cloned().collect();
        for name in &names {
            self.refresh(name);
        }
        old
    }

    /// Makes the indexes anew from the rows, after a snapshot was read.
    pub(super) fn rebuild(&mut self) {
        self.index = Index::default();
        self.count_all_owned();
        self.note_leases();
        let names: Vec<_> = self.elections.keys().cloned().collect();
        for name in &names {
            let row = self.elections.get(name).cloned();
            for session in moved(None, row.as_deref()) {
                self.index.note_place(session, name, true);
            }
            self.refresh(name);
        }
    }

    fn note_leases(&mut self) {
        let leases = self.roles.iter().filter_map(|(name, row)| {
            row.lease.as_ref().map(|lease| (lease.session, name.clone()))
        });
        self.index.leases = leases.collect();
    }

    fn count_all_owned(&mut self) {
        self.index.owned.clear();
        for row in self.sessions.values() {
            self.index.count_owned(&row.owner);
        }
    }

    fn refresh_all_of(&mut self, session: SessionId) {
        if !self.index.places.contains_key(&session) {
            return;
        }
        let names = self.places_of(session).to_vec();
        for name in &names {
            self.refresh(name);
        }
    }

    fn refresh(&mut self, name: &ElectionName) {
        let holder = self.elections.get(name).and_then(|row| row.holder.as_ref());
        let open = holder.is_some_and(|holder| {
            let session = self.sessions.get(&holder.session);
            session.is_none_or(|session| session.known_grant < holder.epoch.revision)
        });
        if open {
            self.index.unconfirmed.insert(name.clone());
        } else if !self.index.unconfirmed.is_empty() {
            self.index.unconfirmed.remove(name);
        }
    }
}

impl Index {
    fn count_owned(&mut self, owner: &Principal) {
        match self.owned.get_mut(owner) {
            Some(count) => *count += 1,
            None => drop(self.owned.insert(owner.clone(), 1)),
        }
    }

    fn discount_owned(&mut self, owner: &Principal) {
        if let Some(count) = self.owned.get_mut(owner) {
            *count -= 1;
            if *count == 0 {
                self.owned.remove(owner);
            }
        }
    }

    fn note_place(&mut self, session: SessionId, election: &ElectionName, has: bool) {
        if has {
            let names = self.places.entry(session).or_default();
            if let Err(at) = names.binary_search(election) {
                names.insert(at, election.clone());
            }
        } else if let Some(names) = self.places.get_mut(&session) {
            if let Ok(at) = names.binary_search(election) {
                names.remove(at);
            }
            if names.is_empty() {
                self.places.remove(&session);
            }
        }
    }
}

fn put<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>, key: &K, row: Option<V>) -> Option<V> {
    match (row, map.get_mut(key)) {
        (None, _) => map.remove(key),
        (Some(row), Some(slot)) => Some(std::mem::replace(slot, row)),
        (Some(row), None) => map.insert(key.clone(), row),
    }
}

/// The sessions that have a place in one of the two rows only, each once, in order.
fn moved(old: Option<&Election>, new: Option<&Election>) -> Vec<SessionId> {
    if let (Some(old), Some(new)) = (old, new)
        && old.same_places(new)
    {
        return Vec::new();
    }
    let sessions = |row: Option<&Election>| -> BTreeSet<SessionId> {
        row.map(|row| row.sessions().collect()).unwrap_or_default()
    };
    sessions(old).symmetric_difference(&sessions(new)).copied().collect()
}
