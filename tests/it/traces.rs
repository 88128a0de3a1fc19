//! Traces over OTLP: what a collector gets of one call.

use std::sync::{Arc, Mutex};

use prost::Message;
use regent_lab::process::Fault;
use tokio::net::TcpListener;
use tonic::codegen::tokio_stream::wrappers::TcpListenerStream;
use tonic::codegen::{Body, BoxFuture, Context, Poll, Service, StdError, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};

use crate::cluster::{Cluster, until};
use crate::own::{Own, edit};

/// The part of OTLP's `ExportTraceServiceRequest` that the test looks at.
#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Attributes>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Attributes {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(string, tag = "5")]
    name: String,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Text>,
}

/// Of the kinds of values only this one.
#[derive(Clone, PartialEq, Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

#[derive(Clone, PartialEq, Message)]
struct Exported {}

/// Has this text under this key.
fn has(attributes: &[KeyValue], key: &str, text: &str) -> bool {
    let is = |a: &KeyValue| a.key == key && a.value.as_ref().is_some_and(|v| v.text == text);
    attributes.iter().any(is)
}

/// Takes whatever is exported to it.
#[derive(Clone, Default)]
struct Collector {
    got: Arc<Mutex<Vec<ResourceSpans>>>,
}

impl NamedService for Collector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl UnaryService<Export> for Collector {
    type Response = Exported;
    type Future = std::future::Ready<Result<Response<Exported>, Status>>;
    fn call(&mut self, request: Request<Export>) -> Self::Future {
        self.got.lock().unwrap().extend(request.into_inner().resource_spans);
        std::future::ready(Ok(Response::new(Exported {})))
    }
}

impl<B> Service<http::Request<B>> for Collector
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<Exported, Export>::default();
            Ok(Grpc::new(codec).unary(this, request).await)
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_arrives_at_the_collector_as_a_span_with_its_method_and_node() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap();
    let collector = Collector::default();
    let served = tonic::transport::Server::builder()
        .add_service(collector.clone())
        .serve_with_incoming(TcpListenerStream::new(listener));
    let serving = tokio::spawn(served);

    let mut cluster = Cluster::up("traces", 1).await;
    let config = cluster.lab.node(1).unwrap().config.clone();
    edit(&config, |text| format!("{text}\n[otlp]\nendpoint = \"http://{endpoint}\"\n"));
    cluster.kill(1).await;
    let _node = Own::instead(&mut cluster, 1);
    cluster.ready().await;
    cluster.json(&["members", "list"]);

    let method = "/regent.v1.ClusterService/ListMembers";
    until("the span of the call", async || {
        let got = collector.got.lock().unwrap();
        got.iter().any(|from| {
            let resource = from.resource.as_ref().map_or(&[][..], |r| &r.attributes);
            let node = has(resource, "service.name", "regent")
                && has(resource, "service.instance.id", "1")
                && has(resource, "regent.cluster", &cluster.lab.cluster);
            let mut spans = from.scope_spans.iter().flat_map(|scope| &scope.spans);
            node && spans.any(|s| s.name == "request" && has(&s.attributes, "method", method))
        })
    })
    .await;
    // A collector that goes away takes nobody with it.
    serving.abort();
    cluster.json(&["members", "list"]);
    cluster.signal(1, Fault::Terminate);
}
