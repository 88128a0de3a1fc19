//! Answers other nodes. The caller has checked who is calling.
//!
//! It must never let a vote out of a node that may not vote (admission, quarantine) or cannot
//! remember one (full disk), and never hand openraft what it would panic on.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use openraft::async_runtime::{AsyncRuntime as _, WatchReceiver as _};
use openraft::raft::AppendEntriesRequest;
use regent_core::state::State;

use crate::api::{RpcKind, TransportError};
use crate::consensus::{Consensus, Inner};
use crate::machine::SnapshotData;
use crate::runtime::Rt;
use crate::types::{Snapshot, Types, revision_of};
use crate::wire;

fn refuse(why: impl std::fmt::Display) -> TransportError {
    TransportError(why.to_string())
}

impl Consensus {
    /// Answers a unary call of another node.
    ///
    /// # Errors
    /// [`TransportError`] when the body is not readable or votes are not allowed here.
    pub async fn handle(&self, kind: RpcKind, body: Bytes) -> Result<Bytes, TransportError> {
        let raft = &self.inner.raft;
        match kind {
            RpcKind::Vote => {
                self.inner.may_vote()?;
                Ok(wire::encode(&raft.vote(wire::decode(&body)?).await.map_err(refuse)?))
            }
            RpcKind::PreVote => {
                self.inner.may_vote()?;
                Ok(wire::encode(&raft.pre_vote(wire::decode(&body)?).await.map_err(refuse)?))
            }
            RpcKind::Append => {
                let request = wire::decode_append(&body)?;
                self.inner.may_append(&request)?;
                Ok(wire::encode(&raft.append_entries(request).await.map_err(refuse)?))
            }
            RpcKind::TransferLeader => {
                self.inner.may_vote()?;
                let request = wire::decode(&body)?;
                let answer = raft.handle_transfer_leader(request).await.map_err(refuse)?;
                Ok(wire::encode(&answer))
            }
        }
    }

    /// Answers a replication stream of another node, one answer per request, in order. It ends
    /// after the first request that is refused.
    pub fn handle_append_stream(
        &self,
        input: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, TransportError>> {
        let inner = self.inner.clone();
        // What cannot be handed on ends the input; the answers given until then stay good.
        let requests = input
            .map(move |body| {
                let request = wire::decode_append(&body)?;
                inner.may_append(&request)?;
                Ok(request)
            })
            .take_while(|request: &Result<_, TransportError>| {
                if let Err(error) = request {
                    tracing::warn!("replication stream refused: {error}");
                }
                std::future::ready(request.is_ok())
            })
            .filter_map(|request| std::future::ready(request.ok()));
        self.inner
            .raft
            .stream_append(requests)
            .map(|answer| answer.map(|a| wire::encode(&a)).map_err(refuse))
            .boxed()
    }

    /// Installs a snapshot another node sent.
    ///
    /// # Errors
    /// [`TransportError`] when it is not readable, contradicts what is committed here, or storage
    /// failed.
    pub async fn handle_snapshot(
        &self,
        head: Bytes,
        data: Vec<u8>,
    ) -> Result<Bytes, TransportError> {
        self.inner.check_storage().map_err(refuse)?;
        let committed = self.inner.raft.metrics().borrow_watched().local_committed;
        let (vote, meta) = wire::decode_head(&head, committed)?;
        let bytes = std::sync::Arc::new(data);
        let source = bytes.clone();
        let state = Rt::spawn_blocking(move || State::decode_snapshot(&source))
            .await
            .map_err(refuse)?
            .map_err(|e| refuse(format!("the snapshot is not readable: {e}")))?;
        if state.revision() != revision_of(meta.last_log_id) {
            return Err(refuse("the snapshot is not of the revision that its head says"));
        }
        let snapshot = Snapshot { meta, snapshot: SnapshotData { bytes, state: Some(state) } };
        let answer = self.inner.raft.install_full_snapshot(vote, snapshot).await.map_err(refuse)?;
        Ok(wire::encode(&answer))
    }

    /// Whether this node votes and campaigns. A node that was not admitted, or whose disk went
    /// back in time, must not.
    pub fn set_votes_allowed(&self, allowed: bool) {
        self.inner.votes_allowed.store(allowed, Ordering::Release);
        self.inner.apply_election_switch();
    }
}

impl Inner {
    /// Campaigning is off where voting is, and while a vote could not be written down.
    pub(crate) fn apply_election_switch(&self) {
        let may = self.votes_allowed.load(Ordering::Acquire) && self.log.problem().is_empty();
        self.raft.runtime_config().elect(may);
    }

    fn may_vote(&self) -> Result<(), TransportError> {
        if !self.votes_allowed.load(Ordering::Acquire) {
            return Err(refuse("this node may not vote: it was not admitted"));
        }
        self.check_storage().map_err(refuse)
    }

    /// With a full disk only heartbeats of the leader we know are answered: they need nothing
    /// written.
    fn may_append(&self, request: &AppendEntriesRequest<Types>) -> Result<(), TransportError> {
        let storage = self.check_storage().map_err(refuse);
        if storage.is_err() && request.entries.is_empty() {
            let known = self.raft.metrics().borrow_watched().vote;
            return if known == request.vote { Ok(()) } else { storage };
        }
        storage
    }
}
