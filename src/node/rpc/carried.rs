//! `regent.v1.CallService`: calls of clients that share one stream.
//!
//! Each goes through the same handler as a call by itself, with the identity of the stream's
//! connection; it is named, counted and, when it fails, logged like one.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::stream::BoxStream;
use prost::Message;
use regent_rpc::calls::method;
use regent_rpc::pb::v1::answer::Outcome;
use regent_rpc::pb::v1::call_service_server::CallService;
use regent_rpc::pb::v1::election_service_server::ElectionService as _;
use regent_rpc::pb::v1::{Answer, AnswerBatch, Call, CallBatch};
use regent_rpc::tls::PeerIdentity;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::calls::{Counted, log};
use super::election::ElectionHandler;
use super::guard::{MAX_DEADLINE, Until};
use super::mux;
use crate::shell::Shell;
use crate::telemetry::request::{Pace, RequestId, call_span, on_behalf_of};

/// Serves streams of calls.
pub struct CallHandler(pub Arc<Shell>);

#[tonic::async_trait]
impl CallService for CallHandler {
    type CallsStream = BoxStream<'static, Result<AnswerBatch, Status>>;

    async fn calls(
        &self,
        request: Request<Streaming<CallBatch>>,
    ) -> Result<Response<Self::CallsStream>, Status> {
        let handler = Arc::new(ElectionHandler(self.0.clone()));
        // Without an identity each call is refused, as it would be by itself.
        let peer = request.extensions().get::<PeerIdentity>().cloned();
        let most = self.0.config.limits.max_streams_per_connection as usize;
        let act = move |call| answer(handler.clone(), peer.clone(), call).boxed();
        Ok(Response::new(mux::serve(request.into_inner(), most, || Ok(()), act)))
    }
}

async fn answer(handler: Arc<ElectionHandler>, peer: Option<PeerIdentity>, call: Call) -> Answer {
    let request_id = RequestId::given(&call.request_id);
    let span = call_span(Pace::Frequent, &request_id, &call.method, peer.as_ref());
    let mut counted = Counted::begin(&handler.0.metrics);
    let work = dispatch(&handler, peer, &call).instrument(span.clone());
    let outcome = on_behalf_of(request_id.clone(), work).await;
    counted.answered(outcome.as_ref().map_or_else(Status::code, |_| Code::Ok));
    let outcome = match outcome {
        Ok(response) => Outcome::Response(response),
        Err(status) => {
            span.in_scope(|| log(&request_id, &call.method, &status));
            mux::failure(&status, request_id.to_string())
        }
    };
    Answer { id: call.id, outcome: Some(outcome) }
}

async fn dispatch(
    handler: &ElectionHandler,
    peer: Option<PeerIdentity>,
    call: &Call,
) -> Result<Bytes, Status> {
    match call.method.as_str() {
        method::PROCLAIM => run(call, peer, |r| handler.proclaim(r)).await,
        method::LEADER => run(call, peer, |r| handler.leader(r)).await,
        method::CAMPAIGN => run(call, peer, |r| handler.campaign(r)).await,
        method::RESIGN => run(call, peer, |r| handler.resign(r)).await,
        method::OPEN_SESSION => run(call, peer, |r| handler.open_session(r)).await,
        method::CLOSE_SESSION => run(call, peer, |r| handler.close_session(r)).await,
        other => Err(Status::unimplemented(format!(
            "{other:?} is not carried over a stream; call it by itself"
        ))),
    }
}

async fn run<Q, A, F>(
    call: &Call,
    peer: Option<PeerIdentity>,
    handle: impl FnOnce(Request<Q>) -> F,
) -> Result<Bytes, Status>
where
    Q: Message + Default,
    A: Message,
    F: Future<Output = Result<Response<A>, Status>>,
{
    let message = Q::decode(call.request.clone())
        .map_err(|e| Status::invalid_argument(format!("the request cannot be read: {e}")))?;
    let mut request = Request::new(message);
    let extensions = request.extensions_mut();
    if let Some(peer) = peer {
        extensions.insert(peer);
    }
    let ttl = Duration::from_millis(call.ttl_ms.into()).min(MAX_DEADLINE);
    extensions.insert(Until(Instant::now() + ttl));
    let response = handle(request).await?;
    Ok(response.get_ref().encode_to_vec().into())
}
