//! What the shells and the simulator plug in and get out: network, sink of effects, status.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use regent_core::effect::Applied;
use regent_core::id::{Locality, NodeId, Revision};
use regent_core::state::State;
use serde::{Deserialize, Serialize};

/// A unary Raft call. The numbers go over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RpcKind {
    /// Asks for a vote.
    Vote = 1,
    /// Asks whether a vote would be given; changes nothing.
    PreVote = 2,
    /// Appends entries (fallback when no stream is open; heartbeats).
    Append = 3,
    /// Hands leadership over.
    TransferLeader = 4,
}

impl RpcKind {
    /// Reads the number of the wire.
    pub fn from_wire(kind: u32) -> Option<Self> {
        [Self::Vote, Self::PreVote, Self::Append, Self::TransferLeader]
            .into_iter()
            .find(|k| *k as u32 == kind)
    }
}

/// What the membership says about a node; replicated by Raft itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `host:port` of its gRPC port.
    pub address: String,
    /// `host:port` of its HTTP port (metrics, health).
    pub http_address: String,
    /// Where it runs.
    pub locality: Locality,
    /// For people.
    pub label: String,
}

/// A call did not get an answer that means anything.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct TransportError(pub String);

/// The network among nodes. Bodies are opaque here. An implementation must make sure that the
/// answer comes from the node with that id (certificate), and must not answer "unreachable" at once
/// for ever: openraft would spin.
pub trait Transport: Send + Sync + 'static {
    /// One call, answered within `ttl`.
    fn call(
        &self,
        to: NodeId,
        member: &Member,
        kind: RpcKind,
        body: Bytes,
        ttl: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>>;

    /// Pipelined replication: answers come back in the order of the requests. `None` when this
    /// network has no streams; then [`RpcKind::Append`] is used.
    #[allow(clippy::type_complexity)]
    fn stream_append(
        &self,
        to: NodeId,
        member: &Member,
        input: BoxStream<'static, Bytes>,
    ) -> Option<
        BoxFuture<
            'static,
            Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError>,
        >,
    >;

    /// Sends a whole snapshot: `head` (vote and meta), then `data` in chunks as the network likes.
    /// `ttl` is for all of it, and already grows with its size.
    fn snapshot(
        &self,
        to: NodeId,
        member: &Member,
        head: Bytes,
        data: Arc<Vec<u8>>,
        ttl: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>>;
}

/// Hears what was applied, in order. Called with the state locked for writing: an implementation
/// only hands things on.
pub trait Sink: Send + Sync + 'static {
    /// An entry was applied; `state` is the state after it.
    fn applied(&self, state: &State, applied: &Applied);
    /// The whole state was replaced (snapshot installed, or read at start).
    fn installed(&self, state: &State);
}

/// Why a proposal, read or membership change was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConsensusError {
    /// This node does not lead; `leader` is where to go, if known.
    #[error("this node is not the leader")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<(NodeId, Member)>,
    },
    /// The leader has not heard from a quorum lately: it may be deposed.
    #[error("no quorum answers")]
    NoQuorum,
    /// No answer within the deadline; the proposal may still take effect.
    #[error("no answer in time; the outcome is unknown")]
    Unknown,
    /// Too many proposals are under way.
    #[error("too many proposals are under way")]
    Overloaded,
    /// The disk is full or failing: nothing is acknowledged until it heals.
    #[error("storage: {0}")]
    Storage(String),
    /// A membership change that must not be (not caught up, would lose the quorum, another one is
    /// under way, unknown node).
    #[error("{0}")]
    Membership(String),
    /// The node is shutting down or consensus stopped for good.
    #[error("consensus has stopped: {0}")]
    Stopped(String),
}

/// What consensus looks like from this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConsensusStatus {
    /// This node.
    pub id: NodeId,
    /// Its Raft term.
    pub term: u64,
    /// Who leads, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Whether openraft calls this node leader. An isolated leader still says yes: decide nothing
    /// by it.
    pub is_leader: bool,
    /// "leader", "follower", "learner", "candidate", "stopped".
    pub role: &'static str,
    /// Last entry in the log.
    pub last_log: Revision,
    /// Last entry applied.
    pub applied: Revision,
    /// Last entry in the newest snapshot.
    pub snapshot: Revision,
    /// Members with their data; `true` for voters.
    pub members: Vec<(NodeId, Member, bool)>,
    /// On the leader: the last entry each other member is known to hold.
    pub matched: Vec<(NodeId, Revision)>,
    /// What is wrong with storage; empty when it is well.
    pub storage_problem: String,
    /// What is wrong and stops nothing, for people: nothing may be refused, and no leadership given
    /// up, because of it.
    pub trouble: String,
    /// Whether a joint configuration is in force (a change was interrupted).
    pub joint: bool,
}

impl ConsensusStatus {
    /// What people should hear about: what stops this node's storage, or else what does not.
    pub fn notice(&self) -> &str {
        if self.storage_problem.is_empty() { &self.trouble } else { &self.storage_problem }
    }
}
