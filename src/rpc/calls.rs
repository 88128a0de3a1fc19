//! Asking one node: small calls share one stream, large ones go by themselves.
//!
//! A node that does not carry a method over a stream, or knows no such stream, is asked with a call
//! by itself, so that clients and nodes of different versions get along.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::codec::SmallCodec;
use crate::limits::{MAX_ANSWER_BYTES, MAX_CARRIED_BYTES};
use crate::mux::{Ask, Asked, Mux, MuxLimits};
use crate::pb::v1::call_service_client::CallServiceClient;

/// Metadata of a call and of its answer: what the node's log calls it.
pub const REQUEST_ID: &str = "x-request-id";

/// The methods that nodes carry over a stream.
pub mod method {
    /// Opens a session.
    pub const OPEN_SESSION: &str = "/regent.v1.ElectionService/OpenSession";
    /// Ends one.
    pub const CLOSE_SESSION: &str = "/regent.v1.ElectionService/CloseSession";
    /// Asks for the lead.
    pub const CAMPAIGN: &str = "/regent.v1.ElectionService/Campaign";
    /// Gives it up.
    pub const RESIGN: &str = "/regent.v1.ElectionService/Resign";
    /// Publishes a value.
    pub const PROCLAIM: &str = "/regent.v1.ElectionService/Proclaim";
    /// Reads one election.
    pub const LEADER: &str = "/regent.v1.ElectionService/Leader";
}

/// Requests in one message of the stream: far below the largest message a node takes there. Calls
/// under way: below what a node has of one stream by default.
const LIMITS: MuxLimits = MuxLimits { batch_bytes: MAX_CARRIED_BYTES / 4, under_way: 768 };
/// A request above this goes by itself, so that others do not wait behind it.
const MAX_SMALL: usize = MAX_CARRIED_BYTES / 8;

/// Calls to one node; clones share its stream.
#[derive(Clone)]
pub struct Calls {
    inner: Arc<Inner>,
}

struct Inner {
    channel: Channel,
    stream: Mutex<Option<Mux>>,
    /// The node knows no such stream.
    alone: AtomicBool,
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calls").finish_non_exhaustive()
    }
}

impl Calls {
    /// Over `channel`. Nothing is sent yet.
    pub fn new(channel: Channel) -> Self {
        let (stream, alone) = (Mutex::default(), AtomicBool::new(false));
        Self { inner: Arc::new(Inner { channel, stream, alone }) }
    }

    /// The channel, for what is not a small call.
    pub fn channel(&self) -> Channel {
        self.inner.channel.clone()
    }

    /// Calls `method` (one of [`method`], whose types `Q` and `A` must be); the node answers within
    /// `left`. The caller bounds its own wait.
    ///
    /// # Errors
    /// The node's status; one without details when the connection broke.
    pub async fn unary<Q, A>(
        &self,
        method: &'static str,
        request: Q,
        left: Duration,
    ) -> Result<Response<A>, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        if self.inner.alone.load(Ordering::Relaxed) || request.encoded_len() > MAX_SMALL {
            return self.by_itself(method, request, left).await;
        }
        let body = Bytes::from(request.encode_to_vec());
        match self.carried(method, body, Instant::now() + left).await {
            Asked::Answer(Ok(answer)) => A::decode(answer)
                .map(Response::new)
                .map_err(|e| Status::internal(format!("the answer cannot be read: {e}"))),
            Asked::Lost(status) if status.code() == Code::Unimplemented => {
                self.inner.alone.store(true, Ordering::Relaxed);
                self.by_itself(method, request, left).await
            }
            Asked::Answer(Err(status)) if status.code() == Code::Unimplemented => {
                self.by_itself(method, request, left).await
            }
            Asked::Answer(Err(status)) | Asked::Lost(status) | Asked::NotSent(status) => {
                Err(status)
            }
        }
    }

    async fn carried(&self, method: &'static str, body: Bytes, until: Instant) -> Asked {
        let (stream, is_new) = self.stream();
        let asked = stream.ask(Ask::new(method, body.clone(), until)).await;
        match asked {
            // The stream ended with its connection before this call left: a new one may fare better.
            Asked::NotSent(_) if !is_new && Instant::now() < until => {
                self.stream().0.ask(Ask::new(method, body, until)).await
            }
            asked => asked,
        }
    }

    /// The stream, and whether it was made just now.
    fn stream(&self) -> (Mux, bool) {
        let mut stream = self.inner.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = stream.as_ref().filter(|open| !open.is_closed()) {
            return (open.clone(), false);
        }
        let client = CallServiceClient::new(self.channel());
        let mut client = client.max_decoding_message_size(MAX_ANSWER_BYTES);
        let open = Mux::start(LIMITS, |calls| async move {
            client.calls(calls).await.map(Response::into_inner)
        });
        (stream.insert(open).clone(), true)
    }

    async fn by_itself<Q, A>(
        &self,
        method: &'static str,
        request: Q,
        left: Duration,
    ) -> Result<Response<A>, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = Grpc::new(self.channel()).max_decoding_message_size(MAX_ANSWER_BYTES);
        let mut request = Request::new(request);
        request.set_timeout(left);
        grpc.ready().await.map_err(|e| Status::from_error(e.into()))?;
        let path = PathAndQuery::from_static(method);
        grpc.unary(request, path, SmallCodec::default()).await
    }
}

#[cfg(test)]
mod tests;
