//! Serving watches without encoding anything per watcher.
//!
//! The generated servers encode each message for each stream. Here the streaming calls are taken
//! out in front of them and answered with a codec that copies bytes which were encoded once:
//!
//! ```text
//! let server = ElectionServiceServer::new(node.clone());
//! let server = Preencoded::new(server, "/regent.v1.ElectionService/Observe", handler);
//! Server::builder().add_service(server)
//! ```

use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use futures::Stream;
use futures::future::BoxFuture;
use prost::Message;
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, ServerStreamingService};
use tonic::{Request, Response, Status};
use tower::Service;

/// Answers one streaming call: authorizes, brings the state up to date, subscribes.
pub trait WatchCall: Send + Sync + 'static {
    /// The request's message.
    type Ask: Message + Default + 'static;
    /// Its encoded answers.
    type Stream: Stream<Item = Result<Bytes, Status>> + Send + 'static;
    /// One call.
    fn watch(&self, ask: Request<Self::Ask>) -> BoxFuture<'static, Result<Self::Stream, Status>>;
}

/// A gRPC service of which one streaming call is served from encoded messages.
pub struct Preencoded<S, C> {
    inner: S,
    path: &'static str,
    call: Arc<C>,
}

impl<S: Clone, C> Clone for Preencoded<S, C> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), path: self.path, call: self.call.clone() }
    }
}

impl<S, C> Preencoded<S, C> {
    /// `path` is `/<package>.<service>/<method>`.
    pub fn new(inner: S, path: &'static str, call: C) -> Self {
        Self { inner, path, call: Arc::new(call) }
    }
}

impl<S: NamedService, C> NamedService for Preencoded<S, C> {
    const NAME: &'static str = S::NAME;
}

impl<S, C> Service<http::Request<Body>> for Preencoded<S, C>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
    C: WatchCall,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != self.path {
            return Box::pin(self.inner.call(request));
        }
        let call = Streaming(self.call.clone());
        Box::pin(async move {
            let mut grpc = Grpc::new(SharedCodec::<C::Ask>::default());
            Ok(grpc.server_streaming(call, request).await)
        })
    }
}

struct Streaming<C>(Arc<C>);

impl<C: WatchCall> ServerStreamingService<C::Ask> for Streaming<C> {
    type Response = Bytes;
    type ResponseStream = C::Stream;
    type Future = BoxFuture<'static, Result<Response<C::Stream>, Status>>;

    fn call(&mut self, request: Request<C::Ask>) -> Self::Future {
        let watching = self.0.watch(request);
        Box::pin(async move { watching.await.map(Response::new) })
    }
}

/// Decodes requests with prost, copies responses as they are.
struct SharedCodec<Ask>(PhantomData<fn() -> Ask>);

impl<Ask> Default for SharedCodec<Ask> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Ask: Message + Default + 'static> Codec for SharedCodec<Ask> {
    type Encode = Bytes;
    type Decode = Ask;
    type Encoder = CopyBytes;
    type Decoder = DecodeAsk<Ask>;

    fn encoder(&mut self) -> CopyBytes {
        CopyBytes
    }
    fn decoder(&mut self) -> DecodeAsk<Ask> {
        DecodeAsk(PhantomData)
    }
}

struct CopyBytes;

impl Encoder for CopyBytes {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(item.len());
        to.put_slice(&item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        // A watcher's messages are small and far between: 8 KiB kept for each of 20,000 watchers
        // would be 160 MiB for nothing.
        BufferSettings::new(1024, 32 * 1024)
    }
}

struct DecodeAsk<Ask>(PhantomData<fn() -> Ask>);

impl<Ask: Message + Default> Decoder for DecodeAsk<Ask> {
    type Item = Ask;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Ask>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        let invalid = |error| Status::invalid_argument(format!("the request: {error}"));
        Ask::decode(bytes).map(Some).map_err(invalid)
    }
}
