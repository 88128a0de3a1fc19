//! openraft's network, over a [`Transport`].
//!
//! Replication goes over one pipelined stream per member; heartbeats and votes are calls beside it, so
//! that they never wait behind entries. A failure must never come back at once: openraft would spin.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, Stream, StreamExt};
use openraft::OptionalSend;
use openraft::entry::RaftEntry as _;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    RPCOption, RaftNetworkFactory, stream_append_sequential, v2::RaftNetworkV2,
};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use parking_lot::Mutex;
use regent_core::id::NodeId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::api::{Member, RpcKind, Transport, TransportError};
use crate::config::ConsensusConfig;
use crate::followers::{Followers, Sent};
use crate::machine::SnapshotData;
use crate::types::{Snapshot, Types, Vote};
use crate::wire;

/// A commit that no entries carry waits this long for some. Under load the next entries come sooner
/// and carry it; without this, every write costs each member a second request and answer. A member
/// learns of the last commit of a burst this much later; who needs it sooner asks by ReadIndex.
const COMMIT_HOLD: Duration = Duration::from_millis(1);

/// Makes a [`Link`] per member.
pub(crate) struct Links {
    pub transport: Arc<dyn Transport>,
    pub followers: Arc<Followers>,
    /// A stream on which a request is unanswered for this long is given up.
    pub stall: Duration,
    pub snapshot_timeout: Duration,
}

impl Links {
    fn link(&self, target: u64, member: &Member, streams: bool) -> Link {
        Link {
            transport: self.transport.clone(),
            followers: self.followers.clone(),
            to: NodeId(target),
            member: member.clone(),
            streams,
            stall: self.stall,
            snapshot_timeout: self.snapshot_timeout,
        }
    }
}

impl RaftNetworkFactory<Types> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Member) -> Link {
        self.link(target, node, true)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Member) -> Link {
        self.link(target, node, false)
    }
}

/// The way to one member.
pub(crate) struct Link {
    transport: Arc<dyn Transport>,
    followers: Arc<Followers>,
    to: NodeId,
    member: Member,
    /// Whether appends go over a stream; heartbeats do not.
    streams: bool,
    stall: Duration,
    snapshot_timeout: Duration,
}

type Rpc<T> = Result<T, RPCError<Types>>;
type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
type Answers<'a> = Pin<Box<dyn Stream<Item = Rpc<StreamAppendResult<Types>>> + Send + 'a>>;

fn unreachable(error: impl std::fmt::Display) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::from_string(error))
}

impl Link {
    /// One call; the transport is trusted to keep `ttl`, and checked.
    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        kind: RpcKind,
        request: &Q,
        ttl: Duration,
    ) -> Rpc<A> {
        let body = wire::encode(request);
        let call = self.transport.call(self.to, &self.member, kind, body, ttl);
        let answer = tokio::time::timeout(ttl, call)
            .await
            .map_err(|_| unreachable(format!("{kind:?}: no answer within {ttl:?}")))?
            .map_err(unreachable)?;
        wire::decode(&answer).map_err(unreachable)
    }
}

/// Leaves out requests without entries that the next one makes superfluous: it is of the same term
/// and carries the same commit or a higher one. To Raft it is as if the request had been lost.
fn coalesced<S>(input: S) -> impl Stream<Item = AppendEntriesRequest<Types>> + Send
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin,
{
    stream::unfold((input.fuse(), None), |(mut input, held)| async move {
        let mut request: AppendEntriesRequest<Types> = match held {
            Some(request) => request,
            None => input.next().await?,
        };
        let until = Instant::now() + COMMIT_HOLD;
        while request.entries.is_empty() {
            match tokio::time::timeout_at(until, input.next()).await {
                Ok(Some(next)) if next.vote == request.vote => request = next,
                Ok(Some(next)) => return Some((request, (input, Some(next)))),
                // The end of a probe, or nothing to carry the commit.
                Ok(None) | Err(_) => break,
            }
        }
        Some((request, (input, None)))
    })
}

/// When each request that is not answered yet was sent, and by what its answer is judged; oldest
/// first.
type Waiting = Arc<Mutex<VecDeque<(Instant, Sent)>>>;

/// How long the answer of a follower that is not counted any more is held back: openraft asks again
/// at once.
const UNCOUNTED_PAUSE: Duration = Duration::from_millis(500);

/// Whether an answer may be counted.
async fn counted(
    followers: &Followers,
    from: NodeId,
    sent: &Sent,
    answer: &StreamAppendResult<Types>,
) -> Rpc<()> {
    match followers.judge(from, sent, answer) {
        Ok(()) => Ok(()),
        Err(why) => {
            tokio::time::sleep(UNCOUNTED_PAUSE).await;
            Err(unreachable(why))
        }
    }
}

/// Passes answers on, and ends the stream with an error when the oldest request has waited for
/// `stall`, or when the stream ended with requests unanswered. A quiet end would not do: openraft
/// then resumes by itself with the command it had last, though it has meanwhile given that up,
/// purged the log and begun to send a snapshot; it would send entries with a hole before them.
fn watched(
    answers: BoxStream<'static, Result<bytes::Bytes, TransportError>>,
    waiting: Waiting,
    stall: Duration,
    followers: Arc<Followers>,
    from: NodeId,
) -> Answers<'static> {
    stream::unfold(Some((answers, waiting, followers)), move |state| async move {
        let (mut answers, waiting, followers) = state?;
        loop {
            let oldest = waiting.lock().front().map(|(at, _)| *at);
            let until = oldest.unwrap_or_else(Instant::now) + stall;
            match tokio::time::timeout_at(until, answers.next()).await {
                Ok(None) if waiting.lock().is_empty() => return None,
                Ok(None) => {
                    let error = unreachable("replication: the stream ended without an answer");
                    return Some((Err(error), None));
                }
                Ok(Some(answer)) => {
                    let sent = waiting.lock().pop_front();
                    let answer = answer.and_then(|bytes| wire::decode(&bytes));
                    let answer = match (answer, sent) {
                        (Ok(answer), Some((_, sent))) => {
                            counted(&followers, from, &sent, &answer).await.map(|()| answer)
                        }
                        (Ok(_), None) => Err(unreachable("replication: an answer to no request")),
                        (Err(error), _) => Err(unreachable(error)),
                    };
                    let state = answer.is_ok().then_some((answers, waiting, followers));
                    return Some((answer, state));
                }
                Err(_)
                    if oldest.is_some() && waiting.lock().front().map(|(at, _)| *at) == oldest =>
                {
                    let error = unreachable(format!("replication: no answer within {stall:?}"));
                    return Some((Err(error), None));
                }
                Err(_) => {}
            }
        }
    })
    .boxed()
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<Types>> {
        // With entries, the answer waits for the other node's disk: give it longer than a
        // heartbeat has.
        let ttl = if rpc.entries.is_empty() { option.hard_ttl() } else { self.stall };
        let sent = self.followers.sent(self.to, &rpc.vote);
        let answer: AppendEntriesResponse<Types> = self.call(RpcKind::Append, &rpc, ttl).await?;
        let last = rpc.entries.last().map(|entry| entry.log_id()).or(rpc.prev_log_id);
        let meaning = match (&answer, rpc.prev_log_id) {
            (AppendEntriesResponse::Success, _) => Ok(last),
            (AppendEntriesResponse::PartialSuccess(upto), _) => Ok(*upto),
            (AppendEntriesResponse::Conflict, Some(at)) => Err(StreamAppendError::Conflict(at)),
            (AppendEntriesResponse::Conflict, None) => {
                return Err(unreachable("a conflict about nothing"));
            }
            (AppendEntriesResponse::HigherVote(vote), _) => {
                Err(StreamAppendError::HigherVote(*vote))
            }
        };
        counted(&self.followers, self.to, &sent, &meaning).await?;
        Ok(answer)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<Answers<'s>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        if !self.streams {
            return stream_append_sequential(self, input, option);
        }
        let waiting = Waiting::default();
        let sent = waiting.clone();
        let (followers, to) = (self.followers.clone(), self.to);
        // The transport may not want the input after all; it then comes back by this slot.
        let slot = Arc::new(Mutex::new(Some(input)));
        let source = slot.clone();
        let requests = stream::once(async move { source.lock().take() })
            .flat_map(|input| stream::iter(input.map(coalesced)).flatten())
            .map(move |request| {
                let known = followers.sent(to, &request.vote);
                sent.lock().push_back((Instant::now(), known));
                wire::encode(&request)
            })
            .boxed();
        let Some(open) = self.transport.stream_append(self.to, &self.member, requests) else {
            let input = slot.lock().take();
            return match input {
                Some(input) => stream_append_sequential(self, input, option),
                None => Box::pin(async { Err(unreachable("the transport lost the stream")) }),
            };
        };
        let stall = self.stall;
        let followers = self.followers.clone();
        Box::pin(async move {
            let answers = tokio::time::timeout(stall, open)
                .await
                .map_err(|_| unreachable(format!("replication: no stream within {stall:?}")))?
                .map_err(unreachable)?;
            Ok(watched(answers, waiting, stall, followers, to))
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<Types>> {
        self.call(RpcKind::Vote, &rpc, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<Types>> {
        self.call(RpcKind::PreVote, &rpc, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let head = wire::encode(&(vote, snapshot.meta));
        let data = snapshot.snapshot.bytes;
        let ttl = ConsensusConfig::snapshot_travel(self.snapshot_timeout, data.len());
        let send = self.transport.snapshot(self.to, &self.member, head, data, ttl);
        let fail = |e: String| StreamingError::Unreachable(Unreachable::from_string(e));
        if let Err(why) = self.followers.check(self.to, &vote) {
            tokio::time::sleep(UNCOUNTED_PAUSE).await;
            return Err(fail(why));
        }
        let answer = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            sent = tokio::time::timeout(ttl, send) => sent
                .map_err(|_| fail(format!("snapshot: no answer within {ttl:?}")))?
                .map_err(|e| fail(e.to_string()))?,
        };
        wire::decode(&answer).map_err(|e| fail(e.to_string()))
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<Types>> {
        self.call(RpcKind::TransferLeader, &rpc, option.hard_ttl()).await
    }
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
