//! Tests of the service over a real connection.

use super::*;
use crate::names::Kind;
use crate::testing::{envoy_node, routes, to};
use ads::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient as Peer;
use envoy_types::pb::envoy::config::core::v3::Node;
use std::sync::Mutex;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};

const EDS: Kind = Kind::Endpoints;
const PATIENCE: Duration = Duration::from_secs(20);

type Sender = watch::Sender<Option<Arc<Routes>>>;

/// A node with the services `s` and `t`.
#[derive(Clone)]
struct Here {
    senders: Arc<Mutex<BTreeMap<ServiceName, Sender>>>,
    notes: mpsc::UnboundedSender<(String, Note)>,
    /// What else it was told, in lines.
    events: Arc<Mutex<Vec<String>>>,
}

impl Source for Here {
    type Caller = String;

    fn judge(&self, said: &MetadataMap, _: &Extensions) -> Result<String, Status> {
        let name = said.get("name").and_then(|name| name.to_str().ok());
        name.map(str::to_owned).ok_or_else(|| Status::unauthenticated("who are you?"))
    }

    fn follow(&self, _: &String, service: &ServiceName) -> Result<Routed, Status> {
        let senders = self.senders.lock().expect("nothing panics with it");
        let sender = senders.get(service.as_str());
        sender.map(|one| one.subscribe()).ok_or_else(|| Status::permission_denied("not this one"))
    }

    fn unfollow(&self, caller: &String, service: &ServiceName) {
        self.events.lock().expect("nothing panics with it").push(format!("{caller} -{service}"));
    }

    fn sent(&self, caller: &String, service: &ServiceName, answers: usize) {
        let text = format!("{caller} {service} in {answers}");
        self.events.lock().expect("nothing panics with it").push(text);
    }

    fn noted(&self, caller: &String, _: &Client, note: Note) {
        let _ = self.notes.send((caller.clone(), note));
    }
}

impl Here {
    fn tell(&self, service: &str, primary: &str, epoch: u64) {
        let table = routes(service, epoch, to(primary, 1));
        let senders = self.senders.lock().expect("nothing panics with it");
        senders[service].send_replace(Some(Arc::new(table)));
    }

    fn events(&self) -> Vec<String> {
        self.events.lock().expect("nothing panics with it").clone()
    }

    fn followers(&self, service: &str) -> usize {
        self.senders.lock().expect("nothing panics with it")[service].receiver_count()
    }
}

type Notes = mpsc::UnboundedReceiver<(String, Note)>;

async fn node() -> (Here, Notes, Peer<Channel>) {
    let (notes, noted) = mpsc::unbounded_channel();
    let services = ["s", "t"].map(|name| (name.parse().expect("a name"), watch::channel(None).0));
    let (senders, events) = (Arc::new(Mutex::new(services.into())), Arc::default());
    let here = Here { senders, notes, events };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let server = Server::builder().add_service(service(here.clone()));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let peer = Peer::connect(format!("http://{address}")).await.expect("it listens");
    (here, noted, peer)
}

fn named<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("name", "web-17".parse().expect("text"));
    request
}

fn ask(names: &[&str], nonce: &str) -> ads::DiscoveryRequest {
    ads::DiscoveryRequest {
        type_url: EDS.type_url().into(),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        response_nonce: nonce.into(),
        ..Default::default()
    }
}

/// A stream in the state-of-the-world form: where to ask, and what comes.
async fn open(
    peer: &mut Peer<Channel>,
) -> (mpsc::Sender<ads::DiscoveryRequest>, Streaming<ads::DiscoveryResponse>) {
    let (asks, asked) = mpsc::channel(8);
    let call = peer.stream_aggregated_resources(named(ReceiverStream::new(asked)));
    (asks, call.await.expect("it is let in").into_inner())
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    tokio::time::timeout(PATIENCE, stream.message()).await.expect("it comes")
}

async fn becomes(what: impl Fn() -> bool) {
    let wait = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it becomes true");
}

#[tokio::test]
async fn a_failover_reaches_a_client_and_its_ack_the_node() {
    let (here, mut notes, mut peer) = node().await;
    here.tell("s", "a", 7);
    let (asks, mut answers) = open(&mut peer).await;
    asks.send(ask(&["s.write"], "")).await.expect("the stream is open");
    let first = next(&mut answers).await.expect("an answer").expect("one");
    assert!(first.version_info.starts_with("1.7-"), "{}", first.version_info);
    here.tell("t", "x", 8);
    here.tell("s", "b", 9);
    let second = next(&mut answers).await.expect("an answer").expect("one");
    assert!(second.version_info.starts_with("1.9-"), "{}", second.version_info);
    asks.send(ask(&["s.write"], &second.nonce)).await.expect("the stream is open");
    let (caller, note) = notes.recv().await.expect("a note");
    let Note::Applied { kind: EDS, reached, .. } = note else { panic!("{note:?}") };
    assert_eq!((caller.as_str(), reached[0].epoch.to_string().as_str()), ("web-17", "1.9"));
    assert_eq!(reached[0].revision.0, 9);
}

#[tokio::test]
async fn the_incremental_form_is_served_too() {
    let (here, _notes, mut peer) = node().await;
    let (asks, asked) = mpsc::channel(8);
    let call = peer.delta_aggregated_resources(named(ReceiverStream::new(asked)));
    let mut answers = call.await.expect("it is let in").into_inner();
    let request = ads::DeltaDiscoveryRequest {
        type_url: EDS.type_url().into(),
        resource_names_subscribe: vec!["s.write".into()],
        ..Default::default()
    };
    asks.send(request).await.expect("the stream is open");
    let first = next(&mut answers).await.expect("an answer").expect("one");
    assert_eq!(first.removed_resources, ["s.write"]);
    here.tell("s", "a", 7);
    let second = next(&mut answers).await.expect("an answer").expect("one");
    assert_eq!(second.resources[0].name, "s.write");
}

#[tokio::test]
async fn what_is_wrong_with_a_request_ends_its_stream_with_a_clear_status() {
    let (_here, _notes, mut peer) = node().await;
    let mut node = envoy_node(&["s.write"]);
    node.metadata.as_mut().expect("it has some").fields.insert("regent".into(), Default::default());
    let many: Vec<_> = (0..1_001).map(|at| format!("s{at}.write")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let huge = "x".repeat(MAX_REQUEST_BYTES);
    let cases = [
        (ads::DiscoveryRequest { node: Some(node), ..ask(&[], "") }, Code::InvalidArgument),
        (ask(&many, ""), Code::ResourceExhausted),
        (ask(&["forbidden.write"], ""), Code::PermissionDenied),
        (ask(&[&"x".repeat(2_000)], ""), Code::InvalidArgument),
        (ask(&[&huge], ""), Code::OutOfRange),
    ];
    for (request, wanted) in cases {
        let (asks, mut answers) = open(&mut peer).await;
        asks.send(request).await.expect("the stream is open");
        let status = next(&mut answers).await.expect_err("it ends");
        assert_eq!(status.code(), wanted, "{status:?}");
    }
    let nameless = Request::new(futures::stream::pending());
    let status = peer.stream_aggregated_resources(nameless).await.expect_err("it is not let in");
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_node_that_tells_no_more_sends_its_clients_to_another_one() {
    let (here, _notes, mut peer) = node().await;
    here.tell("s", "a", 7);
    let (asks, mut answers) = open(&mut peer).await;
    asks.send(ask(&["s.write"], "")).await.expect("the stream is open");
    next(&mut answers).await.expect("an answer");
    here.senders.lock().expect("nothing panics with it").clear();
    let status = next(&mut answers).await.expect_err("it ends");
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_service_is_followed_as_long_as_somebody_wants_it() {
    let (here, _notes, mut peer) = node().await;
    here.tell("s", "a", 7);
    here.tell("t", "b", 7);
    let (asks, mut answers) = open(&mut peer).await;
    let node = Some(Node { id: "web-17".into(), ..Node::default() });
    let request = ads::DiscoveryRequest { node, ..ask(&["s.write", "t.write"], "") };
    asks.send(request).await.expect("the stream is open");
    let first = next(&mut answers).await.expect("an answer").expect("one");
    assert_eq!((here.followers("s"), here.followers("t")), (1, 1));
    asks.send(ask(&["t.write"], &first.nonce)).await.expect("the stream is open");
    becomes(|| here.followers("s") == 0).await;
    assert_eq!(here.followers("t"), 1);
    here.tell("t", "c", 8);
    next(&mut answers).await.expect("an answer");
    becomes(|| here.events() == ["web-17 -s", "web-17 t in 1"]).await;
    drop((asks, answers));
    becomes(|| here.followers("t") == 0).await;
}
