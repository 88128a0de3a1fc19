//! What all handlers and duties of one node share. It holds handles, no decisions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use regent_core::decide::Expiry;
use regent_core::id::{NodeId, Revision};
use regent_core::state::State;
use regent_raft::Consensus;
use regent_rpc::clock::Clock;
use regent_rpc::convert::common::stamp_out;
use regent_rpc::pb::v1;
use regent_rpc::tls::Tls;
use tokio::time::Instant;
use tonic::Status;

use crate::admission::Admission;
use crate::agents::{Board, Desk, Relay, Reports};
use crate::audit::Exports;
use crate::clocks::NodeClocks;
use crate::compare::Comparison;
use crate::config::NodeConfig;
use crate::duties::Duties;
use crate::history::History;
use crate::http::{Health, Metrics};
use crate::leadership::Leadership;
use crate::members::Additions;
use crate::peers::Peers;
use crate::propose::Proposer;
use crate::reads::Reads;
use crate::refusals::Refusals;
use crate::routes::{RouteHub, Routers};
use crate::rpc::guard::Inflight;
use crate::sessions::{Keeper, Merger};
use crate::watch::Hub;

/// One node's parts.
pub struct Shell {
    /// As it was started.
    pub config: NodeConfig,
    /// This node.
    pub node: NodeId,
    /// This start's number.
    pub boot: u64,
    /// When the process started.
    pub started: Instant,
    /// The only source of time.
    pub clock: Arc<dyn Clock>,
    /// Raft.
    pub consensus: Consensus,
    /// The replicated state.
    pub state: Arc<RwLock<State>>,
    /// Where the leader is.
    pub leadership: Leadership,
    /// Writes.
    pub proposer: Proposer,
    /// Reads.
    pub reads: Reads,
    /// Lease clocks.
    pub clocks: Arc<NodeClocks>,
    /// Channels to other nodes.
    pub peers: Arc<Peers>,
    /// Who may vote.
    pub admission: Arc<Admission>,
    /// Certificates.
    pub tls: Arc<Tls>,
    /// Refused attempts.
    pub refusals: Arc<Refusals>,
    /// Requests under way.
    pub inflight: Arc<Inflight>,
    /// Clocks and hashes compared with the other nodes.
    pub comparison: Arc<Comparison>,
    /// Members being added (on the leader).
    pub additions: Arc<Additions>,
    /// Keep-alive streams of clients.
    pub keeper: Keeper,
    /// Merges the renewals of all nodes, while this one leads.
    pub merger: Merger,
    /// Watches.
    pub hub: Hub,
    /// Rows of services, for agents' streams and watches of operations.
    pub board: Arc<Board>,
    /// What agents of this node see, on its way to the leader.
    pub relay: Arc<Relay>,
    /// What all agents see, while this node leads.
    pub desk: Arc<Desk>,
    /// Routes of services.
    pub routes: Arc<RouteHub>,
    /// Who follows them on this node.
    pub routers: Arc<Routers>,
    /// What the decider of roles said last, while this node leads.
    pub reports: Reports,
    /// Audit records beyond the replicated window.
    pub history: History,
    /// Exports of them under way.
    pub exports: Exports,
    /// The leader's memory of unconfirmed grants.
    pub expiry: Arc<Mutex<Expiry>>,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Liveness and readiness.
    pub health: Health,
    /// The tasks that run for as long as the node does.
    pub duties: Duties,
    /// Set once the node is stopping: nothing new is begun.
    pub stopping: AtomicBool,
}

impl Shell {
    /// The stamp of an answer read from `state`.
    pub fn stamp(&self, state: &State, age_ms: u64) -> v1::Stamp {
        stamp_out(state.incarnation(), state.revision(), self.node, age_ms)
    }

    /// The stamp of a write that took effect at `revision`.
    pub fn stamp_at(&self, revision: Option<Revision>) -> v1::Stamp {
        let state = self.state.read();
        // A follower that forwarded may not have applied the entry itself yet.
        let revision = revision.unwrap_or_else(|| state.revision());
        stamp_out(state.incarnation(), revision, self.node, 0)
    }

    /// The stamp of a write at `revision`, once that is applied here. Where the caller believes the
    /// stamp's incarnation: one who opened a session judges by it what the session holds, and a node
    /// that only forwarded the entry may still be in the life before.
    ///
    /// # Errors
    /// DEADLINE_EXCEEDED when it is not applied here in time.
    pub async fn stamp_applied(
        &self,
        revision: Revision,
        until: Instant,
    ) -> Result<v1::Stamp, Status> {
        self.reads.applied(revision, until).await?;
        Ok(self.stamp_at(Some(revision)))
    }

    /// Whether the node is stopping.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}
