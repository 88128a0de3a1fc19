//! From the agents' streams of this node to the leader: the newest observation of each, in batches.
//!
//! An observation that is not sent yet is replaced by the next one, so a slow leader costs memory
//! for one observation of each attached agent and no more. After a change of leader all of them are
//! sent again at once: a new leader knows nothing. Its age is counted from when it reached this
//! node; the time on the way to the leader is not known and makes it look younger by that much.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use regent_core::id::{InstanceName, NodeId, ServiceName};
use regent_core::role::observe::{Observation, Probe};
use regent_core::time::Reading;
use regent_raft::api::ConsensusStatus;
use regent_rpc::clock::Clock;
use regent_rpc::convert::observe::observation_out;
use regent_rpc::pb::raft::{AgentFact, ObserveFactsRequest};
use tokio::sync::{Notify, watch};

use super::desk::Told;
use crate::shell::Shell;

/// What is not urgent waits this long for more: a tenth of the interval at which agents speak.
const TOGETHER: Duration = Duration::from_millis(20);
/// Facts in one message: some hundred KiB usually, 6 MiB if every agent says as much as it may.
pub const MAX_FACTS: usize = 256;
/// Longest wait for the leader to take a batch; the next try carries what is newest then.
const SEND_TIMEOUT: Duration = Duration::from_millis(500);
/// A leader that no majority has answered for so long judges nobody.
const LEADS_WITHIN_MS: u64 = 2_000;

type Key = (ServiceName, InstanceName);

/// What the streams of this node said last.
#[derive(Default)]
pub struct Relay {
    inner: Mutex<Inner>,
    /// There is something to send.
    waiting: Notify,
    /// There is something that must not wait for more.
    urgent: Notify,
}

#[derive(Default)]
struct Inner {
    rows: BTreeMap<Key, Row>,
    streams: u64,
}

struct Row {
    stream: u64,
    observation: Option<Observation>,
    heard: Reading,
    lost: bool,
    unsent: bool,
}

/// One agent's stream; its end is told to the leader when this is dropped.
pub struct Attached {
    relay: Arc<Relay>,
    clock: Arc<dyn Clock>,
    key: Key,
    stream: u64,
}

/// Whether the leader should hear of `new` without delay.
fn is_urgent(old: Option<&Observation>, new: &Observation) -> bool {
    let Some(old) = old else { return true };
    let failed = |seen: &Observation| matches!(seen.probe, Probe::Failed { .. });
    let streams = |seen: &Observation| seen.receiver.as_ref().is_some_and(|r| r.streams);
    // A neighbour whose host says that no database listens.
    let refused = |seen: &Observation| -> Vec<InstanceName> {
        let refused = seen.sights.iter().filter(|sight| sight.refused);
        refused.map(|sight| sight.instance.clone()).collect()
    };
    old.run != new.run
        || (failed(new) && !failed(old))
        || streams(old) != streams(new)
        || refused(old) != refused(new)
        || old.serving != new.serving
        || (old.set_in_force, old.covered) != (new.set_in_force, new.covered)
        || old.tampered.is_empty() != new.tampered.is_empty()
}

impl Relay {
    /// An agent attached to this node.
    pub fn attach(
        self: &Arc<Self>,
        clock: Arc<dyn Clock>,
        service: &ServiceName,
        instance: &InstanceName,
    ) -> Attached {
        let mut inner = self.inner.lock();
        inner.streams += 1;
        let (stream, key) = (inner.streams, (service.clone(), instance.clone()));
        let heard = clock.now();
        // What an earlier stream of the same agent said is of no use any more.
        let row = Row { stream, observation: None, heard, lost: false, unsent: false };
        inner.rows.insert(key.clone(), row);
        Attached { relay: self.clone(), clock, key, stream }
    }

    /// Agents attached, or gone and not told yet.
    pub fn count(&self) -> usize {
        self.inner.lock().rows.len()
    }

    /// Whether something waits to be sent.
    #[cfg(test)]
    pub fn has_news(&self) -> bool {
        self.inner.lock().rows.values().any(|row| row.unsent)
    }

    /// Whether an agent is gone of which nobody was told.
    #[cfg(test)]
    pub fn has_lost(&self) -> bool {
        self.inner.lock().rows.values().any(|row| row.lost)
    }

    /// Everything is to be sent (again).
    fn repeat_all(&self) {
        for row in self.inner.lock().rows.values_mut() {
            row.unsent = row.observation.is_some() || row.lost;
        }
    }

    fn tell(&self, urgent: bool) {
        self.waiting.notify_one();
        if urgent {
            self.urgent.notify_one();
        }
    }

    /// Returns when there is something to send and it has waited for more.
    async fn due(&self) {
        self.waiting.notified().await;
        let _ = tokio::time::timeout(TOGETHER, self.urgent.notified()).await;
    }

    /// What is to be sent, up to a message full; it counts as sent.
    fn take(&self, now: Reading) -> Vec<Told> {
        let mut inner = self.inner.lock();
        let unsent = inner.rows.iter_mut().filter(|(_, row)| row.unsent).take(MAX_FACTS);
        unsent
            .map(|((service, instance), row)| {
                row.unsent = false;
                Told {
                    service: service.clone(),
                    instance: instance.clone(),
                    stream: row.stream,
                    age: now.since(row.heard),
                    observation: row.observation.clone(),
                    lost: row.lost,
                }
            })
            .collect()
    }

    /// The leader has these, or not.
    fn settle(&self, sent: &[Key], taken: bool) {
        let mut inner = self.inner.lock();
        for key in sent {
            let Some(row) = inner.rows.get_mut(key) else { continue };
            row.unsent |= !taken;
            if row.lost && !row.unsent {
                inner.rows.remove(key);
            }
        }
    }
}

impl Attached {
    /// The agent said what it sees.
    pub fn observed(&self, seen: Observation) {
        let now = self.clock.now();
        let urgent = {
            let mut inner = self.relay.inner.lock();
            let Some(row) = inner.rows.get_mut(&self.key).filter(|r| r.stream == self.stream)
            else {
                return;
            };
            let urgent = is_urgent(row.observation.as_ref(), &seen);
            (row.observation, row.heard, row.unsent) = (Some(seen), now, true);
            urgent
        };
        self.relay.tell(urgent);
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut inner = self.relay.inner.lock();
        let Some(row) = inner.rows.get_mut(&self.key).filter(|r| r.stream == self.stream) else {
            return;
        };
        if row.observation.is_none() {
            // The leader has never heard of this stream.
            inner.rows.remove(&self.key);
            return;
        }
        (row.lost, row.unsent) = (true, true);
        drop(inner);
        self.relay.tell(true);
    }
}

/// Who leads, in which term.
type Led = (Option<NodeId>, u64);

/// Returns once somebody leads otherwise than `told` says.
async fn other_leader(status: &mut watch::Receiver<ConsensusStatus>, told: Led) -> Led {
    let other = |s: &ConsensusStatus| s.leader.is_some() && (s.leader, s.term) != told;
    let led = status.wait_for(other).await.map(|s| (s.leader, s.term));
    match led {
        Ok(led) => led,
        // Consensus is gone, and so is this node.
        Err(_) => std::future::pending().await,
    }
}

/// A fact for the wire.
fn fact_out(told: &Told) -> AgentFact {
    AgentFact {
        service: told.service.to_string(),
        instance: told.instance.to_string(),
        stream: told.stream,
        age_us: told.age.0,
        observation: told.observation.as_ref().map(observation_out),
        lost: told.lost,
    }
}

impl Shell {
    /// Sends what agents of this node say to whoever leads, until the node stops.
    pub async fn relay_forever(self: Arc<Self>) {
        let mut status = self.leadership.watch();
        let mut told: Led = (None, 0);
        loop {
            let occupied = self.relay.count() > 0;
            tokio::select! {
                () = self.relay.due() => {}
                led = other_leader(&mut status, told), if occupied => {
                    told = led;
                    self.relay.repeat_all();
                }
            }
            loop {
                let batch = self.relay.take(self.clock.now());
                if batch.is_empty() {
                    break;
                }
                let keys: Vec<Key> =
                    batch.iter().map(|one| (one.service.clone(), one.instance.clone())).collect();
                let taken = self.hand_facts_over(batch).await;
                self.relay.settle(&keys, taken);
                if !taken {
                    tokio::time::sleep(TOGETHER).await;
                }
            }
        }
    }

    /// Takes what agents said, as the leader; `false`: this node does not lead.
    pub fn take_facts(&self, from: NodeId, batch: Vec<Told>) -> bool {
        let (now, state) = (self.clock.now(), self.state.read());
        let of: Vec<Key> =
            batch.iter().map(|one| (one.service.clone(), one.instance.clone())).collect();
        if !self.desk.take(&state, from, batch, now) {
            return false;
        }
        drop(state);
        // One that has lost the others hears no more of their agents: what it knows stays.
        let leads = self.consensus.quorum_ack_age_ms();
        let leads = leads.is_some_and(|age_ms| age_ms <= LEADS_WITHIN_MS);
        for (service, instance) in of {
            // The desk holds what is declared only.
            let fact = self.desk.facts().of(&service, &instance).cloned();
            if fact.is_some() {
                let fact = fact.as_ref().filter(|_| leads);
                self.routes.judge((&service, &instance), fact, now);
            }
        }
        true
    }

    /// Whether the leader has them.
    async fn hand_facts_over(&self, batch: Vec<Told>) -> bool {
        if self.leadership.is_here() {
            return self.take_facts(self.node, batch);
        }
        let Some(leader) = self.leadership.now() else { return false };
        let Ok(mut client) = self.peers.peer(leader.node, &leader.address) else { return false };
        let facts = batch.iter().map(fact_out).collect();
        let request = self.peers.request(ObserveFactsRequest { facts }, SEND_TIMEOUT);
        let sent = tokio::select! {
            sent = tokio::time::timeout(SEND_TIMEOUT, client.observe(request)) => sent,
            () = self.leadership.moved_from(leader.node) => return false,
        };
        match sent {
            Ok(Ok(_)) => true,
            Ok(Err(status)) => {
                tracing::debug!(leader = %leader.node, %status, "facts were not taken");
                false
            }
            Err(_) => false,
        }
    }
}
