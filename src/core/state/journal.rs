//! The only way to write: every row write of an entry goes through a [`Draft`] into its
//! [`Journal`].
//!
//! The journal keeps each touched row as it was before the entry. That one list serves four ends:
//! rolling back an entry that broke an invariant, checking what was touched, telling watchers what
//! changed, and hashing what came out. Nothing of an entry is visible elsewhere before it stands.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::audit::Note;
use super::cluster::ClusterRow;
use super::election::Election;
use super::partition::Partition;
use super::role::holder::HolderRow;
use super::role::row::{Operation, ServiceRole};
use super::service::Service;
use super::session::{Marks, Session};
use super::tables::Tables;
use super::{OperationKey, PartitionKey};
use crate::authz::Principal;
use crate::effect::{Change, ClockEffect};
use crate::id::{ElectionName, Epoch, Revision, ServiceName, SessionId};
use crate::reply::Rejection;
use crate::time::WallMs;

/// What an entry has done so far.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pub cluster: Option<ClusterRow>,
    pub services: BTreeMap<ServiceName, Option<Arc<Service>>>,
    pub elections: BTreeMap<ElectionName, Option<Arc<Election>>>,
    pub partitions: BTreeMap<PartitionKey, Option<Arc<Partition>>>,
    pub roles: BTreeMap<ServiceName, Option<Arc<ServiceRole>>>,
    pub operations: BTreeMap<OperationKey, Option<Arc<Operation>>>,
    pub holders: BTreeMap<ServiceName, Option<Arc<HolderRow>>>,
    /// In the order of the writes; a session may stand here several times.
    pub sessions: Vec<SessionWas>,
    /// All sessions of before, when they were made void together.
    pub voided: Option<BTreeMap<SessionId, Session>>,
    pub notes: Vec<Note>,
    /// Refused attempts: the record, the rule that refused, how often.
    pub refused: Vec<(Note, String, u64)>,
    pub clocks: Vec<ClockEffect>,
}

/// A session before a write.
#[derive(Debug)]
pub(super) enum SessionWas {
    /// The whole row; `None` when the entry opened it.
    Row(SessionId, Option<Box<Session>>),
    /// Only its marks changed.
    Marks(SessionId, Marks),
}

impl SessionWas {
    pub fn id(&self) -> SessionId {
        match self {
            Self::Row(id, _) | Self::Marks(id, _) => *id,
        }
    }
}

impl Journal {
    /// Whether any row was written.
    pub fn is_clean(&self) -> bool {
        self.cluster.is_none()
            && self.services.is_empty()
            && self.elections.is_empty()
            && self.partitions.is_empty()
            && self.roles.is_empty()
            && self.operations.is_empty()
            && self.holders.is_empty()
            && self.sessions.is_empty()
            && self.voided.is_none()
    }

    /// Puts every row back as it was before the entry.
    pub fn roll_back(self, tables: &mut Tables) {
        if let Some(row) = self.cluster {
            tables.set_cluster(row);
        }
        for (name, row) in self.services {
            tables.set_service(&name, row);
        }
        for (key, row) in self.partitions {
            tables.set_partition(&key, row);
        }
        for (name, row) in self.roles {
            tables.set_role(&name, row);
        }
        for (key, row) in self.operations {
            tables.set_operation(&key, row);
        }
        for (name, row) in self.holders {
            tables.set_holder(&name, row);
        }
        for (name, row) in self.elections {
            tables.set_election(&name, row);
        }
        // Voiding is the last write to sessions in an entry, so it is the first to be undone.
        if let Some(rows) = self.voided {
            tables.swap_sessions(rows);
        }
        for was in self.sessions.into_iter().rev() {
            match was {
                SessionWas::Row(id, row) => drop(tables.set_session(id, row.map(|row| *row))),
                SessionWas::Marks(id, marks) => drop(tables.set_marks(id, marks)),
            }
        }
    }

    /// What watchers are told.
    pub fn changes(&self, tables: &Tables) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.voided.is_some() {
            changes.push(Change::Incarnation);
        }
        if self.cluster.is_some() {
            changes.push(Change::Cluster);
        }
        for name in self.services.keys() {
            changes.push(Change::Service(name.clone(), tables.services().get(name).cloned()));
        }
        for key in self.partitions.keys() {
            let row = tables.partitions().get(key).cloned();
            changes.push(Change::Partition(key.0.clone(), key.1.clone(), row));
        }
        for name in self.roles.keys() {
            changes.push(Change::Role(name.clone(), tables.roles().get(name).cloned()));
        }
        for key in self.operations.keys() {
            let row = tables.operations().get(key).cloned();
            changes.push(Change::Operation(key.0.clone(), key.1, row));
        }
        for name in self.elections.keys() {
            changes.push(Change::Election(name.clone(), tables.elections().get(name).cloned()));
        }
        changes
    }
}

/// One entry at work: the rows as they are now, and the only functions that write them.
pub(super) struct Draft<'a> {
    tables: &'a mut Tables,
    journal: &'a mut Journal,
    /// The entry's index.
    pub revision: Revision,
    /// Who asked.
    pub by: &'a Principal,
    /// The proposer's wall clock, for people and for flap control.
    pub at: WallMs,
}

impl<'a> Draft<'a> {
    pub fn new(
        tables: &'a mut Tables,
        journal: &'a mut Journal,
        revision: Revision,
        by: &'a Principal,
        at: WallMs,
    ) -> Self {
        Self { tables, journal, revision, by, at }
    }

    /// The rows, with what this entry has written so far.
    pub fn rows(&self) -> &Tables {
        self.tables
    }

    /// The epoch of everything this entry grants.
    pub fn epoch(&self) -> Epoch {
        let incarnation = self.tables.cluster().incarnation.counter;
        Epoch { incarnation, revision: self.revision }
    }

    /// Refuses what makes no sense before the cluster knows who it is.
    pub fn bootstrapped(&self) -> Result<(), Rejection> {
        if self.tables.cluster().is_bootstrapped() {
            return Ok(());
        }
        let name = "not bootstrapped yet".to_owned();
        Err(Rejection::NotFound { what: "cluster".to_owned(), name })
    }

    pub fn set_cluster(&mut self, row: ClusterRow) {
        let old = self.tables.set_cluster(row);
        self.journal.cluster.get_or_insert(old);
    }

    pub fn set_service(&mut self, name: &ServiceName, row: Option<Service>) {
        let old = self.tables.set_service(name, row.map(Arc::new));
        if !self.journal.services.contains_key(name) {
            self.journal.services.insert(name.clone(), old);
        }
    }

    pub fn set_partition(&mut self, key: &PartitionKey, row: Option<Partition>) {
        let old = self.tables.set_partition(key, row.map(Arc::new));
        if !self.journal.partitions.contains_key(key) {
            self.journal.partitions.insert(key.clone(), old);
        }
    }

    pub fn set_role(&mut self, name: &ServiceName, row: Option<ServiceRole>) {
        let old = self.tables.set_role(name, row.map(Arc::new));
        if !self.journal.roles.contains_key(name) {
            self.journal.roles.insert(name.clone(), old);
        }
    }

    pub fn set_operation(&mut self, key: &OperationKey, row: Option<Operation>) {
        let old = self.tables.set_operation(key, row.map(Arc::new));
        if !self.journal.operations.contains_key(key) {
            self.journal.operations.insert(key.clone(), old);
        }
    }

    /// Watchers are not told of these: a row changes with each renewal, and holds nothing for them.
    pub fn set_holder(&mut self, name: &ServiceName, row: Option<HolderRow>) {
        let old = self.tables.set_holder(name, row.map(Arc::new));
        if !self.journal.holders.contains_key(name) {
            self.journal.holders.insert(name.clone(), old);
        }
    }

    /// Writes an election and counts the places of the sessions that joined or left it.
    pub fn set_election(&mut self, name: &ElectionName, row: Option<Election>) {
        let (old, moved) = self.tables.set_election(name, row.map(Arc::new));
        if !self.journal.elections.contains_key(name) {
            self.journal.elections.insert(name.clone(), old);
        }
        for session in moved {
            let places = u32::try_from(self.tables.places_of(session).len()).unwrap_or(u32::MAX);
            if let Some(row) = self.tables.sessions().get(&session) {
                self.mark_session(session, Marks { places, ..row.marks() });
            }
        }
    }

    pub fn open_session(&mut self, id: SessionId, row: Session) {
        let old = self.tables.set_session(id, Some(row));
        self.journal.sessions.push(SessionWas::Row(id, old.map(Box::new)));
    }

    pub fn end_session(&mut self, id: SessionId) {
        let old = self.tables.set_session(id, None);
        self.journal.sessions.push(SessionWas::Row(id, old.map(Box::new)));
    }

    pub fn mark_session(&mut self, id: SessionId, marks: Marks) {
        if let Some(old) = self.tables.set_marks(id, marks) {
            self.journal.sessions.push(SessionWas::Marks(id, old));
        }
    }

    /// Ends all sessions at once. It must be the entry's last write to sessions (rolling back
    /// relies on it), so the elections are to be emptied first.
    pub fn void_sessions(&mut self) {
        let old = self.tables.swap_sessions(BTreeMap::new());
        self.journal.voided.get_or_insert(old);
    }

    pub fn clock(&mut self, effect: ClockEffect) {
        self.journal.clocks.push(effect);
    }

    /// Records what was done, by who asked.
    pub fn note(&mut self, what: &'static str, resource: &str, why: &str, outcome: &str) {
        self.journal.notes.push(Note {
            who: self.by.to_string(),
            what,
            resource: resource.to_owned(),
            why: why.to_owned(),
            outcome: outcome.to_owned(),
        });
    }

    /// Records attempts that were refused.
    pub fn refuse(&mut self, note: Note, rule: String, count: u64) {
        self.journal.refused.push((note, rule, count));
    }
}
