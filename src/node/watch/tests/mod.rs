//! Tests of the hub as a whole, over the real state machine.
#![allow(clippy::unwrap_used)]

mod belief;
mod every_change_once;
mod fan_out;
mod order;
mod serving;
mod unread;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use parking_lot::{Mutex, RwLock};
use regent_core::authz::{Principal, Role};
use regent_core::command::{Command, Entry};
use regent_core::effect::Applied;
use regent_core::id::{ElectionName, Incarnation, Locality, NodeId, Nonce, Revision, SessionId};
use regent_core::reply::Reply;
use regent_core::state::State;
use regent_core::time::WallMs;
use regent_core::timing::Timing;
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::observe_response::Event;
use tonic::Status;

use super::{Believes, Hub, HubConfig};
use crate::duties::Duties;
use crate::http::metrics::Metrics;

pub const INCARNATION: Incarnation = Incarnation { counter: 1, id: 77 };

/// Believes everybody but those named.
#[derive(Default)]
pub struct Doubts(pub Mutex<HashSet<SessionId>>);

impl Believes for Doubts {
    fn believed_live(&self, session: SessionId) -> bool {
        !self.0.lock().contains(&session)
    }
    fn age_ms(&self) -> u64 {
        3
    }
}

/// One node's state and hub, without consensus.
pub struct World {
    pub state: Arc<RwLock<State>>,
    pub hub: Hub,
    pub doubts: Arc<Doubts>,
    pub metrics: Arc<Metrics>,
    pub history: Vec<Applied>,
}

pub fn name(text: &str) -> ElectionName {
    ElectionName::parse(text).unwrap()
}

pub fn quick(node: u64) -> HubConfig {
    HubConfig { belief_interval: Duration::from_millis(5), ..HubConfig::for_node(NodeId(node)) }
}

impl World {
    pub fn new(config: HubConfig) -> Self {
        let doubts = Arc::new(Doubts::default());
        let metrics = Arc::new(Metrics::new());
        let hub = Hub::start(config, doubts.clone(), metrics.clone(), &Duties::default());
        let state = Arc::new(RwLock::new(State::default()));
        hub.installed(&state.read());
        let mut world = Self { state, hub, doubts, metrics, history: Vec::new() };
        let timing = Timing::LAN;
        world.apply(Command::Bootstrap { incarnation: INCARNATION, cluster: "t".into(), timing });
        world
    }

    /// Applies and publishes as consensus does: under the state's lock.
    pub fn apply(&mut self, command: Command) -> Reply {
        let by = Principal::new(Role::Admin, "test");
        let bytes = Entry::new(WallMs(1), by, None, &command).encode();
        let mut state = self.state.write();
        let revision = state.revision().next();
        let applied = state.apply(revision, &bytes);
        self.hub.publish(&state, &applied);
        drop(state);
        let reply = applied.reply.clone();
        self.history.push(applied);
        reply
    }

    pub fn open(&mut self) -> SessionId {
        let command = Command::OpenSession {
            ttl_ms: 10_000,
            renew_interval_ms: 500,
            fence_budget_ms: 250,
            nonce: Nonce(1),
            label: "here".into(),
        };
        match self.apply(command) {
            Reply::SessionOpened { session, .. } => session,
            other => panic!("no session: {other:?}"),
        }
    }

    pub fn campaign(&mut self, election: &str, session: SessionId) -> Reply {
        self.apply(Command::Campaign {
            election: name(election),
            session,
            nonce: Nonce(1),
            priority: 0,
            locality: Locality::default(),
            value: b"v".to_vec(),
        })
    }

    pub fn resign(&mut self, election: &str, session: SessionId) -> Reply {
        self.apply(Command::Resign { election: name(election), session, nonce: Nonce(1) })
    }

    pub fn proclaim(&mut self, election: &str, session: SessionId, value: &[u8]) -> Reply {
        let epoch = self.state.read().elections().get(&name(election)).map(|row| row.epoch);
        let epoch = epoch.unwrap_or_default();
        let value = value.to_vec();
        self.apply(Command::Proclaim { election: name(election), session, epoch, value })
    }

    pub fn close(&mut self, session: SessionId) -> Reply {
        self.apply(Command::CloseSession { session, nonce: Nonce(1) })
    }

    pub fn revision(&self) -> Revision {
        self.state.read().revision()
    }

    pub fn observe(&self, request: v1::ObserveRequest) -> Result<Observer, Status> {
        let stream = self.hub.observe(&self.state, &request)?;
        Ok(Observer { stream: Box::pin(stream.elections()) })
    }
}

pub fn one(election: &str) -> v1::ObserveRequest {
    v1::ObserveRequest { election: election.into(), ..Default::default() }
}

pub fn prefix(prefix: &str) -> v1::ObserveRequest {
    v1::ObserveRequest { prefix: prefix.into(), ..Default::default() }
}

pub fn all() -> v1::ObserveRequest {
    v1::ObserveRequest { all: true, ..Default::default() }
}

pub fn after(mut request: v1::ObserveRequest, revision: u64) -> v1::ObserveRequest {
    let Incarnation { counter, id } = INCARNATION;
    request.from = Some(v1::WatchFrom { revision, incarnation: counter, incarnation_id: id });
    request
}

/// Reads a watch.
pub struct Observer {
    stream: std::pin::Pin<Box<dyn Stream<Item = Result<v1::ObserveResponse, Status>> + Send>>,
}

impl Observer {
    /// The next event, within a deadline.
    pub async fn next(&mut self) -> Result<Event, Status> {
        let waited = tokio::time::timeout(Duration::from_secs(10), self.stream.next()).await;
        let item = waited.expect("an event in time").expect("the stream goes on");
        item.map(|response| response.event.expect("an event"))
    }

    pub async fn change(&mut self) -> v1::ElectionChange {
        match self.next().await.unwrap() {
            Event::Change(change) => change,
            other => panic!("a change, not {other:?}"),
        }
    }

    /// Reads the snapshot; returns its rows and its stamp.
    pub async fn snapshot(&mut self) -> (Vec<v1::ElectionChange>, v1::Stamp) {
        let mut rows = Vec::new();
        loop {
            match self.next().await.unwrap() {
                Event::Change(change) => rows.push(change),
                Event::SnapshotEnd(stamp) => return (rows, stamp),
                Event::Bookmark(_) => panic!("a bookmark inside a snapshot"),
            }
        }
    }

    /// What is there without waiting; `None` at the end of the stream.
    pub fn ready(&mut self) -> Option<Option<Result<Event, Status>>> {
        let item = self.stream.next().now_or_never()?;
        Some(item.map(|got| got.map(|response| response.event.expect("an event"))))
    }
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(tokio::time::Instant::now() < until, "not in time: {what}");
        tokio::task::yield_now().await;
    }
}

/// The holder's session that a change names.
pub fn holder(change: &v1::ElectionChange) -> Option<u64> {
    change.election.as_ref()?.holder.as_ref().map(|holder| holder.session)
}
