//! The gRPC service: one task per stream, which waits for requests and news and sends what the
//! session says is due.
//!
//! Nothing queues without bound: a client that does not read makes its own task wait, and of the
//! changes meanwhile the newest is told. Whatever is wrong with a request ends its stream with a
//! status that says what.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use ads::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3 as ads;
use futures::FutureExt;
use futures::future::{AbortHandle, Abortable, BoxFuture};
use futures::stream::{FuturesUnordered, Stream, StreamExt};
use regent_core::id::ServiceName;
use regent_core::route::table::Routes;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Request, Response, Status, Streaming};

use crate::client::Client;
use crate::session::{Delta, Note, Output, Protocol, Refusal, Session, Sotw};
use crate::tuning::{MAX_REQUEST_BYTES, OUTBOX};

/// The routes of a service as they change; `None`: there is no such service.
pub type Routed = watch::Receiver<Option<Arc<Routes>>>;

/// What the service needs of a node.
pub trait Source: Clone + Send + Sync + 'static {
    /// Who called, as far as this matters to the node.
    type Caller: Send + Sync + 'static;

    /// Who calls, from what its transport and its headers say.
    ///
    /// # Errors
    /// The status that refuses the stream.
    fn judge(&self, said: &MetadataMap, extensions: &Extensions) -> Result<Self::Caller, Status>;

    /// Begins to tell `caller` of `service`. The routes are to have IP addresses. Dropping the
    /// receiver ends it; dropping the sender ends the stream, to be opened at another node.
    ///
    /// # Errors
    /// The status that ends the stream, for instance because it may not know of this service.
    fn follow(&self, caller: &Self::Caller, service: &ServiceName) -> Result<Routed, Status>;

    /// The stream of `caller` needs no more word of `service`.
    fn unfollow(&self, caller: &Self::Caller, service: &ServiceName);

    /// All that follows for `caller` from a word about `service` was handed to its connection; the
    /// first word is none. It must not block.
    fn sent(&self, caller: &Self::Caller, service: &ServiceName, answers: usize);

    /// Something happened on a stream of `caller`. It must not block.
    fn noted(&self, caller: &Self::Caller, client: &Client, note: Note);
}

/// The service, to be added to a server.
pub fn service<S: Source>(source: S) -> AggregatedDiscoveryServiceServer<Ads<S>> {
    AggregatedDiscoveryServiceServer::new(Ads { source })
        .max_decoding_message_size(MAX_REQUEST_BYTES)
}

/// Answers both forms of the protocol.
#[derive(Clone, Debug)]
pub struct Ads<S> {
    source: S,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl<S: Source> AggregatedDiscoveryService for Ads<S> {
    type StreamAggregatedResourcesStream = Answers<ads::DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<ads::DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<ads::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        open(&self.source, Sotw::default(), request)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<ads::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        open(&self.source, Delta::default(), request)
    }
}

fn open<S, P>(
    source: &S,
    session: Session<P>,
    request: Request<Streaming<P::Ask>>,
) -> Result<Response<Answers<P::Answer>>, Status>
where
    S: Source,
    P: Protocol + 'static,
    P::Ask: Send + 'static,
    P::Answer: Send + 'static,
{
    let caller = source.judge(request.metadata(), request.extensions())?;
    let (outbox, answers) = mpsc::channel(OUTBOX);
    let asks = request.into_inner();
    let (news, following) = (FuturesUnordered::new(), BTreeMap::new());
    let stream = Task { source: source.clone(), caller, session, news, following, outbox };
    tokio::spawn(stream.run(asks));
    Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
}

/// The next word about a service; without a receiver, its source is gone.
type News = (ServiceName, Option<Routed>);

struct Task<S: Source, P: Protocol> {
    source: S,
    caller: S::Caller,
    session: Session<P>,
    news: FuturesUnordered<Abortable<BoxFuture<'static, News>>>,
    following: BTreeMap<ServiceName, AbortHandle>,
    outbox: mpsc::Sender<Result<P::Answer, Status>>,
}

/// Why a task ends.
enum End {
    /// The client is gone, or said that it will ask no more.
    Gone,
    /// It is told this.
    Status(Status),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl<S: Source, P: Protocol> Task<S, P> {
    async fn run(mut self, mut asks: Streaming<P::Ask>) {
        let end = loop {
            let step = tokio::select! {
                ask = asks.message() => match ask {
                    Ok(Some(ask)) => self.asked(ask).await,
                    Ok(None) => Err(End::Gone),
                    Err(status) => Err(End::Status(status)),
                },
                Some(news) = self.news.next() => match news {
                    Ok(news) => self.told(news).await,
                    // It is followed no more.
                    Err(_) => Ok(()),
                },
                () = self.outbox.closed() => Err(End::Gone),
            };
            if let Err(end) = step {
                break end;
            }
        };
        if let End::Status(status) = end {
            // If the client is gone too, there is nobody to tell.
            let _ = self.outbox.send(Err(status)).await;
        }
    }

    async fn asked(&mut self, ask: P::Ask) -> Result<(), End> {
        let output = self.session.asked(ask).map_err(refused)?;
        let follow = self.send(output).await?;
        let mut first = Vec::new();
        for service in follow {
            let mut routed = self.source.follow(&self.caller, &service)?;
            first.push((service.clone(), routed.borrow_and_update().clone()));
            self.follow(service, routed);
        }
        self.tell(first).await.map(drop)
    }

    async fn told(&mut self, (service, routed): News) -> Result<(), End> {
        let Some(mut routed) = routed else {
            return Err(Status::unavailable("this node tells no more: ask another one").into());
        };
        let routes = routed.borrow_and_update().clone();
        self.follow(service.clone(), routed);
        let answers = self.tell(vec![(service.clone(), routes)]).await?;
        if answers > 0 {
            self.source.sent(&self.caller, &service, answers);
        }
        Ok(())
    }

    /// How many answers that made.
    async fn tell(&mut self, news: Vec<(ServiceName, Option<Arc<Routes>>)>) -> Result<usize, End> {
        let output = self.session.told(news);
        let answers = output.responses.len();
        // Only requests change what is followed.
        self.send(output).await.map(|_| answers)
    }

    /// Does what the session says, but for what it needs to be told of.
    async fn send(&mut self, output: Output<P::Answer>) -> Result<Vec<ServiceName>, End> {
        let Output { responses, follow, unfollow, notes } = output;
        for service in unfollow {
            if let Some(handle) = self.following.remove(&service) {
                handle.abort();
                self.source.unfollow(&self.caller, &service);
            }
        }
        for note in notes {
            self.source.noted(&self.caller, self.session.client(), note);
        }
        for response in responses {
            self.outbox.send(Ok(response)).await.map_err(|_| End::Gone)?;
        }
        Ok(follow)
    }

    fn follow(&mut self, service: ServiceName, mut routed: Routed) {
        let (handle, registration) = AbortHandle::new_pair();
        self.following.insert(service.clone(), handle);
        let next = async move {
            let more = routed.changed().await.is_ok();
            (service, more.then_some(routed))
        };
        self.news.push(Abortable::new(next.boxed(), registration));
    }
}

fn refused(refusal: Refusal) -> End {
    let code = match &refusal {
        Refusal::Node(_) | Refusal::LongName { .. } => Code::InvalidArgument,
        Refusal::TooMany { .. } => Code::ResourceExhausted,
    };
    End::Status(Status::new(code, refusal.to_string()))
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
