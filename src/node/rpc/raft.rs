//! `regent.raft.v1.RaftService`: Raft's own calls, from nodes only.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use regent_raft::api::{RpcKind, TransportError};
use regent_rpc::convert::status::{self, rule};
use regent_rpc::pb::raft::raft_service_server::RaftService;
use regent_rpc::pb::raft::{RaftAnswer, RaftCall, SnapshotChunk};
use regent_rpc::pb::v1::answer::Outcome;
use regent_rpc::pb::v1::{Answer, AnswerBatch, Call, CallBatch};
use tonic::{Request, Response, Status, Streaming};

use super::guard::went_back;
use super::mux;
use crate::admission::Pass;
use crate::refuse::RETRY_AFTER;
use crate::shell::Shell;

/// Largest snapshot that is taken in: a million sessions and a full audit window are far below.
const MAX_SNAPSHOT_BYTES: usize = 4 * 1024 * 1024 * 1024;

/// Heartbeats of one leader that are under way at most: it sends the next one when the last is
/// answered or given up.
const MAX_HEARTBEATS: usize = 64;

/// Serves Raft.
pub struct RaftHandler(pub Arc<Shell>);

impl RaftHandler {
    /// An answer that shows which start of this node gave it.
    fn signed<T>(&self, message: T) -> Response<T> {
        let mut response = Response::new(message);
        self.0.peers.sign(response.metadata_mut());
        response
    }

    /// Names the call's sender in the log of a refusal.
    fn sender<T>(&self, request: &Request<T>) -> Result<Pass, Status> {
        self.0.authorize_node(request)
    }
}

fn failed(error: TransportError) -> Status {
    status::unavailable(rule::NOT_READY, error.0, RETRY_AFTER)
}

#[tonic::async_trait]
impl RaftService for RaftHandler {
    type HeartbeatStream = BoxStream<'static, Result<AnswerBatch, Status>>;
    type StreamAppendStream = BoxStream<'static, Result<RaftAnswer, Status>>;

    async fn call(&self, request: Request<RaftCall>) -> Result<Response<RaftAnswer>, Status> {
        self.sender(&request)?;
        let RaftCall { kind, body } = request.into_inner();
        let kind = RpcKind::from_wire(kind)
            .ok_or_else(|| Status::unimplemented(format!("there is no Raft call {kind}")))?;
        let body = self.0.consensus.handle(kind, body).await.map_err(failed)?;
        Ok(self.signed(RaftAnswer { body }))
    }

    async fn heartbeat(
        &self,
        request: Request<Streaming<CallBatch>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let mut sender = self.sender(&request)?;
        let judge = move || {
            sender.still_good().map_err(|why| {
                tracing::warn!(from = %sender.node(), why, "a stream of heartbeats was ended");
                went_back(why)
            })
        };
        let shell = self.0.clone();
        let act = move |call: Call| {
            let shell = shell.clone();
            let work = async move {
                let answer = shell.consensus.handle(RpcKind::Append, call.request).await;
                let outcome = match answer {
                    Ok(body) => Outcome::Response(body),
                    Err(error) => mux::failure(&failed(error), String::new()),
                };
                Answer { id: call.id, outcome: Some(outcome) }
            };
            work.boxed()
        };
        let answers = mux::serve(request.into_inner(), MAX_HEARTBEATS, judge, act);
        Ok(self.signed(answers))
    }

    async fn stream_append(
        &self,
        request: Request<Streaming<RaftAnswer>>,
    ) -> Result<Response<Self::StreamAppendStream>, Status> {
        let sender = self.sender(&request)?;
        // A broken stream ends here; the sender opens a new one and goes on where it must. So does
        // one of a start that may not speak for its node any more, and that one gets no new one.
        let input = request.into_inner().scan(sender, |sender, message| {
            std::future::ready(match sender.still_good() {
                Ok(()) => message.ok().map(|message| message.body),
                Err(why) => {
                    tracing::warn!(from = %sender.node(), why, "a replication stream was ended");
                    None
                }
            })
        });
        let answers = self.0.consensus.handle_append_stream(input.boxed());
        let answers = answers.map(|answer| match answer {
            Ok(body) => Ok(RaftAnswer { body }),
            Err(error) => Err(failed(error)),
        });
        Ok(self.signed(answers.boxed()))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<RaftAnswer>, Status> {
        let mut sender = self.sender(&request)?;
        let from = sender.node();
        let mut chunks = request.into_inner();
        let Some(first) = chunks.message().await? else {
            return Err(Status::invalid_argument("a snapshot begins with its head"));
        };
        let mut data: Vec<u8> = first.data.into();
        while let Some(chunk) = chunks.message().await? {
            if data.len() + chunk.data.len() > MAX_SNAPSHOT_BYTES {
                return Err(Status::resource_exhausted("the snapshot is too large"));
            }
            data.extend_from_slice(&chunk.data);
        }
        sender.still_good().map_err(went_back)?;
        tracing::info!(%from, bytes = data.len(), "installing a snapshot");
        let head: Bytes = first.head;
        let body = self.0.consensus.handle_snapshot(head, data).await.map_err(failed)?;
        Ok(self.signed(RaftAnswer { body }))
    }
}
