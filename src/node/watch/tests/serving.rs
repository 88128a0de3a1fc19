//! Watches over real connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, Ready};
use regent_rpc::pb::v1::election_service_client::ElectionServiceClient;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::server::NamedService;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request};

use super::*;
use crate::watch::WatchStream;
use crate::watch::serve::{Preencoded, WatchCall};

/// Stands for the generated server: answers everything else.
#[derive(Clone)]
struct Rest;

impl NamedService for Rest {
    const NAME: &'static str = "regent.v1.ElectionService";
}

impl tower::Service<http::Request<tonic::body::Body>> for Rest {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, _: http::Request<tonic::body::Body>) -> Self::Future {
        futures::future::ready(Ok(Status::unimplemented("the rest").into_http()))
    }
}

struct Observing {
    hub: Hub,
    state: Arc<RwLock<State>>,
}

impl WatchCall for Observing {
    type Ask = v1::ObserveRequest;
    type Stream = WatchStream;
    fn watch(
        &self,
        ask: Request<v1::ObserveRequest>,
    ) -> BoxFuture<'static, Result<WatchStream, Status>> {
        let stream = self.hub.observe(&self.state, ask.get_ref());
        Box::pin(async move { stream })
    }
}

pub async fn serve(world: &World) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let observing = Observing { hub: world.hub.clone(), state: world.state.clone() };
    let path = "/regent.v1.ElectionService/Observe";
    let service = Preencoded::new(Rest, path, observing);
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    addr
}

pub async fn client(addr: SocketAddr) -> ElectionServiceClient<Channel> {
    ElectionServiceClient::connect(format!("http://{addr}")).await.unwrap()
}

pub async fn observe(
    client: &mut ElectionServiceClient<Channel>,
    request: v1::ObserveRequest,
) -> Result<Observer, Status> {
    let stream = client.observe(request).await?.into_inner();
    Ok(Observer { stream: Box::pin(stream) })
}

#[tokio::test]
async fn encoded_once_a_change_reads_the_same_over_the_wire_and_other_calls_pass_by() {
    let mut world = World::new(quick(1));
    let session = world.open();
    world.campaign("a", session);
    let mut client = client(serve(&world).await).await;
    let mut seen = observe(&mut client, one("a")).await.unwrap();
    let mut local = world.observe(one("a")).unwrap();
    assert_eq!(seen.snapshot().await, local.snapshot().await);
    world.proclaim("a", session, b"over the wire");
    assert_eq!(seen.change().await, local.change().await);

    let refused = observe(&mut client, v1::ObserveRequest::default()).await.err();
    assert_eq!(refused.map(|status| status.code()), Some(Code::InvalidArgument));
    let other = client.leader(v1::LeaderRequest::default()).await.unwrap_err();
    assert_eq!(other.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_watcher_that_goes_away_is_taken_out() {
    let world = World::new(quick(1));
    let mut client = client(serve(&world).await).await;
    let mut seen = observe(&mut client, all()).await.unwrap();
    seen.snapshot().await;
    assert_eq!(world.hub.watcher_count(), 1);
    drop(seen);
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    while world.hub.watcher_count() > 0 {
        assert!(tokio::time::Instant::now() < until, "a dropped watch is kept");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
