//! The network under Raft: [`regent_raft::api::Transport`] over gRPC.
//!
//! Each answer is checked against what is known of the answering node's disk: an answer of a node
//! whose disk went back in time is no answer, else its forgotten votes and entries would count
//! (PROTOCOL.md B). It must not fail at once for ever either: a node that is down refuses a
//! connection within microseconds, and a caller that tries again at once would spin.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, Stream, StreamExt as _};
use regent_core::id::NodeId;
use regent_raft::api::{Member, RpcKind, Transport, TransportError};
use regent_raft::held::promised;
use regent_rpc::limits::CHUNK_BYTES;
use regent_rpc::mux::{Ask, Asked, Mux, MuxLimits};
use regent_rpc::pb::raft::{RaftAnswer, RaftCall, SnapshotChunk};
use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::admission::Admission;
use crate::peers::{Lane, Peers};

/// A failure is never reported sooner than this after the call began; well below any heartbeat.
const FASTEST_FAILURE: Duration = Duration::from_millis(10);
/// Longest wait for a replication stream to open, dialling included.
const STREAM_OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Heartbeats that wait together leave together; each has a few dozen bytes.
const HEARTBEATS: MuxLimits = MuxLimits { batch_bytes: 64 * 1024, under_way: 48 };

/// Raft's calls over mTLS channels.
pub struct GrpcTransport {
    peers: Arc<Peers>,
    admission: Arc<Admission>,
}

impl GrpcTransport {
    /// Calls go through `peers`; `admission` judges who answered.
    pub fn new(peers: Arc<Peers>, admission: Arc<Admission>) -> Self {
        Self { peers, admission }
    }
}

impl GrpcTransport {
    /// An append without a stream of its own: a heartbeat.
    fn heartbeat(
        &self,
        to: NodeId,
        member: &Member,
        body: Bytes,
        ttl: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let began = Instant::now();
        let stream = self
            .peers
            .heartbeats(to, &member.address, || self.open_heartbeats(to, member.address.clone()));
        let asked = stream.ask(Ask::new("", body, began + ttl));
        let admission = self.admission.clone();
        async move {
            // A frozen peer does not keep the deadline that the call carries.
            let body = match tokio::time::timeout(ttl, asked).await {
                Ok(Asked::Answer(Ok(body))) => body,
                Ok(Asked::Answer(Err(why)) | Asked::Lost(why) | Asked::NotSent(why)) => {
                    return Err(failed(began, to, why.message().to_owned()).await);
                }
                Err(_) => return Err(failed(began, to, "no answer in time".into()).await),
            };
            if let Some(held) = promised(RpcKind::Append, &body) {
                admission.heard_promise(to, held);
            }
            Ok(body)
        }
        .boxed()
    }

    fn open_heartbeats(&self, to: NodeId, address: String) -> Mux {
        let (peers, admission) = (self.peers.clone(), self.admission.clone());
        Mux::start(HEARTBEATS, move |beats| async move {
            let client = peers.raft(to, &address, Lane::Raft);
            let mut client = client.map_err(|bad| Status::internal(bad.to_string()))?;
            let answers = client.heartbeat(peers.stream_request(beats)).await?;
            let mut pass =
                admission.pass(to, answers.metadata()).map_err(Status::failed_precondition)?;
            // An acknowledgement of a start that may not speak for its node any more is none.
            let judged = move |batch| match pass.still_good() {
                Ok(()) => batch,
                Err(why) => Err(Status::failed_precondition(why)),
            };
            Ok(answers.into_inner().map(judged))
        })
    }
}

/// Waits until `began` is [`FASTEST_FAILURE`] ago, then reports.
async fn failed(began: Instant, to: NodeId, problem: String) -> TransportError {
    tokio::time::sleep_until(began + FASTEST_FAILURE).await;
    TransportError(format!("node {to}: {problem}"))
}

/// The requests of a replication stream. A type of its own, because the compiler cannot prove a
/// boxed stream inside an async block to be `'static`.
struct Outgoing(BoxStream<'static, Bytes>);

impl Stream for Outgoing {
    type Item = RaftAnswer;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<RaftAnswer>> {
        self.0.as_mut().poll_next(cx).map(|body| body.map(|body| RaftAnswer { body }))
    }
}

fn body(answer: Result<RaftAnswer, Status>) -> Result<Bytes, TransportError> {
    answer.map(|answer| answer.body).map_err(|status| TransportError(status.message().to_owned()))
}

fn check(admission: &Admission, to: NodeId, metadata: &MetadataMap) -> Result<(), String> {
    admission.judge_metadata(to, metadata)
}

impl Transport for GrpcTransport {
    fn call(
        &self,
        to: NodeId,
        member: &Member,
        kind: RpcKind,
        body: Bytes,
        ttl: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        if kind == RpcKind::Append {
            return self.heartbeat(to, member, body, ttl);
        }
        let client = self.peers.raft(to, &member.address, Lane::Raft);
        let request = self.peers.request(RaftCall { kind: kind as u32, body }, ttl);
        let admission = self.admission.clone();
        async move {
            let began = Instant::now();
            let mut client = match client {
                Ok(client) => client,
                Err(bad) => return Err(failed(began, to, bad.to_string()).await),
            };
            // The deadline is kept here too: a frozen peer does not keep the one in the header.
            let answer = match tokio::time::timeout(ttl, client.call(request)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(status)) => return Err(failed(began, to, status.message().to_owned()).await),
                Err(_) => return Err(failed(began, to, "no answer in time".into()).await),
            };
            if let Err(problem) = check(&admission, to, answer.metadata()) {
                return Err(failed(began, to, problem).await);
            }
            let body = answer.into_inner().body;
            if let Some(held) = promised(kind, &body) {
                admission.heard_promise(to, held);
            }
            Ok(body)
        }
        .boxed()
    }

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
    > {
        let client = self.peers.raft(to, &member.address, Lane::Raft);
        let request = self.peers.stream_request(Outgoing(input));
        let admission = self.admission.clone();
        Some(
            async move {
                let began = Instant::now();
                let mut client = match client {
                    Ok(client) => client,
                    Err(bad) => return Err(failed(began, to, bad.to_string()).await),
                };
                let open = tokio::time::timeout(STREAM_OPEN_TIMEOUT, client.stream_append(request));
                let answers = match open.await {
                    Ok(Ok(answers)) => answers,
                    Ok(Err(status)) => {
                        return Err(failed(began, to, status.message().to_owned()).await);
                    }
                    Err(_) => return Err(failed(began, to, "no stream in time".into()).await),
                };
                let mut pass = match admission.pass(to, answers.metadata()) {
                    Ok(pass) => pass,
                    Err(problem) => return Err(failed(began, to, problem).await),
                };
                // An acknowledgement of a start that may not speak for its node any more is none.
                let judged = move |answer| match pass.still_good() {
                    Ok(()) => body(answer),
                    Err(why) => Err(TransportError(format!("node {to}: {why}"))),
                };
                Ok(answers.into_inner().map(judged).boxed())
            }
            .boxed(),
        )
    }

    fn snapshot(
        &self,
        to: NodeId,
        member: &Member,
        head: Bytes,
        data: Arc<Vec<u8>>,
        ttl: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let client = self.peers.raft(to, &member.address, Lane::Bulk);
        let request = self.peers.request(chunks(head, data), ttl);
        let admission = self.admission.clone();
        async move {
            let began = Instant::now();
            let mut client = match client {
                Ok(client) => client,
                Err(bad) => return Err(failed(began, to, bad.to_string()).await),
            };
            let answer = match tokio::time::timeout(ttl, client.install_snapshot(request)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(status)) => return Err(failed(began, to, status.message().to_owned()).await),
                Err(_) => return Err(failed(began, to, "snapshot not taken in time".into()).await),
            };
            match check(&admission, to, answer.metadata()) {
                Ok(()) => Ok(answer.into_inner().body),
                Err(problem) => Err(failed(began, to, problem).await),
            }
        }
        .boxed()
    }
}

/// The head, then the data, piece by piece; no piece is copied before it is asked for.
fn chunks(head: Bytes, data: Arc<Vec<u8>>) -> impl Stream<Item = SnapshotChunk> + Send {
    let first = futures::stream::once(async move { SnapshotChunk { head, data: Bytes::new() } });
    let rest = futures::stream::unfold(0usize, move |at| {
        let end = (at + CHUNK_BYTES).min(data.len());
        let piece = (at < end).then(|| Bytes::copy_from_slice(&data[at..end]));
        async move { piece.map(|data| (SnapshotChunk { head: Bytes::new(), data }, end)) }
    });
    first.chain(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_snapshot_travels_in_chunks_and_arrives_whole() {
        let data: Vec<u8> = (0..CHUNK_BYTES * 2 + 3).map(|i| i as u8).collect();
        let sent: Vec<_> =
            chunks(Bytes::from_static(b"head"), Arc::new(data.clone())).collect().await;
        assert_eq!(sent.len(), 4);
        assert_eq!(sent[0].head.as_ref(), b"head");
        let back: Vec<u8> = sent[1..].iter().flat_map(|c| c.data.to_vec()).collect();
        assert!(back == data);
    }
}
