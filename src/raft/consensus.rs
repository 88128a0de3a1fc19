//! The [`Consensus`] handle: everything the rest of Regent may ask of Raft.
//!
//! It must never let an `openraft` type out: whoever instantiates openraft's generics compiles all
//! of it, and a bump of its version must stay inside this crate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use parking_lot::RwLock;
use regent_core::id::{NodeId, Revision};
use regent_core::reply::Reply;
use regent_core::state::State;
use tokio::sync::watch;

use crate::api::{
    ConsensusError, ConsensusStatus, Member, RpcKind, Sink, Transport, TransportError,
};
use crate::config::{ConsensusConfig, StartError};
use crate::store::vfs::Vfs;

/// A running consensus node; clones share it.
#[derive(Clone)]
pub struct Consensus {
    state: Arc<RwLock<State>>,
    status: watch::Receiver<ConsensusStatus>,
}

fn stopped<T>() -> Result<T, ConsensusError> {
    Err(ConsensusError::Stopped("not running".into()))
}

impl Consensus {
    /// Opens the store, loads the newest snapshot, replays the committed log and joins the cluster.
    ///
    /// # Errors
    /// [`StartError`] names the setting or the file that is wrong.
    pub async fn start(
        _config: ConsensusConfig,
        _transport: Arc<dyn Transport>,
        _vfs: Arc<dyn Vfs>,
        _sink: Arc<dyn Sink>,
    ) -> Result<Self, StartError> {
        Err(StartError::Engine("not running".into()))
    }

    /// The replicated state. Hold the lock briefly: applying waits for it.
    pub fn state(&self) -> Arc<RwLock<State>> {
        self.state.clone()
    }

    /// What consensus looks like from this node, kept current.
    pub fn status(&self) -> watch::Receiver<ConsensusStatus> {
        self.status.clone()
    }

    /// Proposes one encoded `Entry`; answers when it is applied here.
    ///
    /// # Errors
    /// [`ConsensusError::Unknown`] after `deadline`: it may still take effect.
    pub async fn propose(
        &self,
        _entry: Bytes,
        _deadline: Duration,
    ) -> Result<Reply, ConsensusError> {
        stopped()
    }

    /// A revision that covers everything acknowledged before this call (ReadIndex with a round
    /// among a quorum; callers that arrive before the next round starts share it). Leader only.
    ///
    /// # Errors
    /// [`ConsensusError::NotLeader`] with a hint, or [`ConsensusError::NoQuorum`].
    pub async fn read_index(&self, _deadline: Duration) -> Result<Revision, ConsensusError> {
        stopped()
    }

    /// Waits until `revision` is applied here.
    ///
    /// # Errors
    /// [`ConsensusError::Unknown`] when it was not within `deadline`.
    pub async fn wait_applied(
        &self,
        _revision: Revision,
        _deadline: Duration,
    ) -> Result<(), ConsensusError> {
        stopped()
    }

    /// Answers a unary call of another node. The caller has checked who it is.
    ///
    /// # Errors
    /// [`TransportError`] when the body is not readable or votes are not allowed here.
    pub async fn handle(&self, _kind: RpcKind, _body: Bytes) -> Result<Bytes, TransportError> {
        Err(TransportError("not running".into()))
    }

    /// Answers a replication stream of another node, one answer per request, in order.
    pub fn handle_append_stream(
        &self,
        _input: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, TransportError>> {
        futures::stream::empty().boxed()
    }

    /// Installs a snapshot another node sent.
    ///
    /// # Errors
    /// [`TransportError`] when it is not readable or storage failed.
    pub async fn handle_snapshot(
        &self,
        _head: Bytes,
        _data: Vec<u8>,
    ) -> Result<Bytes, TransportError> {
        Err(TransportError("not running".into()))
    }

    /// Makes this fresh node the first of a cluster with these voters.
    ///
    /// # Errors
    /// [`ConsensusError::Membership`] when it is not fresh.
    pub async fn initialize(
        &self,
        _members: BTreeMap<NodeId, Member>,
    ) -> Result<(), ConsensusError> {
        stopped()
    }

    /// Whether this node has ever been part of a cluster.
    ///
    /// # Errors
    /// [`ConsensusError::Stopped`].
    pub async fn is_initialized(&self) -> Result<bool, ConsensusError> {
        stopped()
    }

    /// Adds a member without a vote (leader only), or changes a member's addresses.
    ///
    /// # Errors
    /// [`ConsensusError::Membership`] when another change is under way.
    pub async fn add_learner(&self, _id: NodeId, _member: Member) -> Result<(), ConsensusError> {
        stopped()
    }

    /// Gives a learner a vote, if it has caught up (leader only).
    ///
    /// # Errors
    /// [`ConsensusError::Membership`] says what it lacks.
    pub async fn promote(&self, _id: NodeId) -> Result<(), ConsensusError> {
        stopped()
    }

    /// Removes a member, voter or learner, if the rest has a live quorum (leader only).
    ///
    /// # Errors
    /// [`ConsensusError::Membership`] says why not.
    pub async fn remove(&self, _id: NodeId) -> Result<(), ConsensusError> {
        stopped()
    }

    /// Hands leadership to `to`, or to the most caught-up voter; returns the new leader once it is
    /// known here.
    ///
    /// # Errors
    /// [`ConsensusError::Membership`] when there is nobody to hand it to.
    pub async fn transfer_leader(&self, _to: Option<NodeId>) -> Result<NodeId, ConsensusError> {
        stopped()
    }

    /// Finishes an interrupted membership change, if there is one (leader only).
    ///
    /// # Errors
    /// As for any proposal.
    pub async fn finish_joint(&self) -> Result<(), ConsensusError> {
        stopped()
    }

    /// Takes a snapshot now.
    ///
    /// # Errors
    /// [`ConsensusError::Storage`] when it could not be written.
    pub async fn snapshot_now(&self) -> Result<(), ConsensusError> {
        stopped()
    }

    /// Whether this node votes and campaigns. A node that was not admitted, or whose disk went
    /// back in time, must not.
    pub fn set_votes_allowed(&self, _allowed: bool) {}

    /// Stops consensus and waits for its tasks and the last flush.
    pub async fn shutdown(&self) {}
}
