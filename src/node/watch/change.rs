//! One changed row, ready to be sent to any number of watchers: converted and encoded once.
//!
//! A row is encoded in up to four ways: with its holder or (C3) without, and with the revision of
//! its entry or the one before. The latter is for watchers to whom more rows of the same entry are
//! yet to come: the revision of a change is where a watch may go on, and going on *after* an entry
//! of which only some rows were seen would miss the rest.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use prost::Message;
use regent_core::id::{ElectionName, PartitionName, Revision, ServiceName, SessionId};
use regent_core::state::State;
use regent_core::state::election::Election;
use regent_core::state::partition::Partition;
use regent_core::state::service::Service;
use regent_rpc::convert::election::{SessionFacts, election_out};
use regent_rpc::convert::topology::service_out;
use regent_rpc::pb::v1;

use super::Topic;

/// An election's row and what the state said of its sessions at that revision.
#[derive(Clone, Debug)]
pub(super) struct ElectionRow {
    name: ElectionName,
    row: Arc<Election>,
    facts: Vec<(SessionId, SessionFacts)>,
}

/// A service's row and its partitions at that revision.
#[derive(Clone, Debug)]
pub(super) struct ServiceRow {
    row: Arc<Service>,
    partitions: Vec<(PartitionName, Arc<Partition>)>,
}

/// What became of a row.
#[derive(Clone, Debug)]
pub(super) enum Row {
    Election(Option<ElectionRow>),
    Service(Option<ServiceRow>),
}

/// How a row is shown to one watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    /// Whether the holder is left out (C3).
    pub masked: bool,
    /// Whether more rows of the same entry follow for this watcher.
    pub more: bool,
}

/// A change, shared by all who see it.
#[derive(Debug)]
pub(super) struct Event {
    pub name: Arc<str>,
    pub revision: Revision,
    row: Row,
    encoded: [OnceLock<Bytes>; 4],
}

fn facts_of(state: &State, session: SessionId) -> SessionFacts {
    state.sessions().get(&session).map_or_else(SessionFacts::default, |row| SessionFacts {
        owner: row.owner.to_string(),
        label: row.label.clone(),
        ttl_ms: row.ttl_ms,
        known_grant: row.known_grant,
    })
}

/// One election of `state` for the wire; `name_holder` as C3 says. For reads and lists.
pub fn election_view(
    state: &State,
    name: &ElectionName,
    row: &Election,
    name_holder: bool,
) -> v1::Election {
    election_out(name, row, name_holder, |session| facts_of(state, session))
}

/// One service of `state` for the wire, with its partitions. For reads and lists.
pub fn service_view(state: &State, name: &ServiceName, row: &Service) -> v1::Service {
    let partitions = partitions_of(state, name);
    service_out(row, partitions.iter().map(|(name, row)| (name.as_str(), row.as_ref())))
}

fn partitions_of(state: &State, service: &ServiceName) -> Vec<(PartitionName, Arc<Partition>)> {
    state.partitions_of(service).map(|(name, row)| (name.clone(), row.clone())).collect()
}

impl Row {
    /// An election as it is in `state`.
    pub(super) fn election(state: &State, name: &ElectionName, row: Arc<Election>) -> Self {
        let sessions = row.holder.iter().map(|h| h.session);
        let sessions = sessions.chain(row.queue.iter().map(|c| c.session));
        let facts = sessions.map(|session| (session, facts_of(state, session))).collect();
        Self::Election(Some(ElectionRow { name: name.clone(), row, facts }))
    }

    /// A service as it is in `state`.
    pub(super) fn service(state: &State, name: &ServiceName, row: Arc<Service>) -> Self {
        Self::Service(Some(ServiceRow { row, partitions: partitions_of(state, name) }))
    }
}

impl Event {
    pub(super) fn new(name: Arc<str>, revision: Revision, row: Row) -> Self {
        Self { name, revision, row, encoded: Default::default() }
    }

    pub(super) fn topic(&self) -> Topic {
        match self.row {
            Row::Election(_) => Topic::Elections,
            Row::Service(_) => Topic::Services,
        }
    }

    /// The session that holds the election, if one does.
    pub(super) fn holder(&self) -> Option<SessionId> {
        match &self.row {
            Row::Election(Some(row)) => row.row.holder.as_ref().map(|holder| holder.session),
            _ => None,
        }
    }

    /// Rough size in memory, for the bounds of ring and mailboxes.
    pub(super) fn weight(&self) -> usize {
        let row = match &self.row {
            Row::Election(Some(ElectionRow { row, facts, .. })) => {
                let values = row.queue.iter().map(|c| c.value.len());
                let held = row.holder.as_ref().map_or(0, |holder| holder.value.len());
                values.sum::<usize>() + held + 256 * facts.len()
            }
            Row::Service(Some(ServiceRow { row, partitions })) => {
                256 * row.spec.instances.len() + row.spec.description.len() + 64 * partitions.len()
            }
            Row::Election(None) | Row::Service(None) => 0,
        };
        256 + self.name.len() + row
    }

    /// The encoded response; made at the first call for each way of showing.
    pub(super) fn encoded(&self, shown: Shown) -> Bytes {
        let at = usize::from(shown.masked) + 2 * usize::from(shown.more);
        let make = || {
            let revision = self.revision.0.saturating_sub(u64::from(shown.more));
            self.encode(Revision(revision), shown.masked)
        };
        self.encoded[at].get_or_init(make).clone()
    }

    /// Encodes under another revision: in a snapshot, or as a change of belief.
    pub(super) fn encode(&self, revision: Revision, masked: bool) -> Bytes {
        let (revision, name) = (revision.0, self.name.to_string());
        match &self.row {
            Row::Election(row) => {
                let election = row.as_ref().map(|row| row.message(!masked));
                let change = v1::ElectionChange { revision, name, election };
                let event = Some(v1::observe_response::Event::Change(change));
                v1::ObserveResponse { event }.encode_to_vec().into()
            }
            Row::Service(row) => {
                let service = row.as_ref().map(ServiceRow::message);
                let change = v1::ServiceChange { revision, name, service };
                let event = Some(v1::watch_services_response::Event::Change(change));
                v1::WatchServicesResponse { event }.encode_to_vec().into()
            }
        }
    }
}

impl ElectionRow {
    fn message(&self, name_holder: bool) -> v1::Election {
        election_out(&self.name, &self.row, name_holder, |session| {
            let found = self.facts.iter().find(|(id, _)| *id == session);
            found.map(|(_, facts)| facts.clone()).unwrap_or_default()
        })
    }
}

impl ServiceRow {
    fn message(&self) -> v1::Service {
        let partitions = self.partitions.iter();
        service_out(&self.row, partitions.map(|(name, row)| (name.as_str(), row.as_ref())))
    }
}

/// A stamp that ends a snapshot, or says "nothing changed up to here".
pub(super) fn mark(topic: Topic, stamp: v1::Stamp, ends_snapshot: bool) -> Bytes {
    match topic {
        Topic::Elections => {
            use v1::observe_response::Event;
            let event = if ends_snapshot { Event::SnapshotEnd } else { Event::Bookmark };
            v1::ObserveResponse { event: Some(event(stamp)) }.encode_to_vec().into()
        }
        Topic::Services => {
            use v1::watch_services_response::Event;
            let event = if ends_snapshot { Event::SnapshotEnd } else { Event::Bookmark };
            v1::WatchServicesResponse { event: Some(event(stamp)) }.encode_to_vec().into()
        }
    }
}
