//! A stream of xDS as no library would open it, over a real node's port.

use std::collections::BTreeMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::service::discovery::v3 as ads;
use prost::Message as _;
use regent_lab::process::Usage;
use regent_rpc::client::Client;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::stage::{Stage, spec};
use crate::cluster::{PATIENCE, until};

const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

type Service = ads::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient<
    tonic::transport::Channel,
>;

/// A stream in the state-of-the-world form.
pub struct Raw {
    asks: mpsc::Sender<ads::DiscoveryRequest>,
    answers: Streaming<ads::DiscoveryResponse>,
    /// Of the last answer of each kind.
    nonces: BTreeMap<String, String>,
}

impl Raw {
    pub async fn open(client: &Client) -> Result<Self, Status> {
        let mut service = Service::new(client.channels().swap_remove(0).1);
        let (asks, asked) = mpsc::channel(8);
        let answers = service.stream_aggregated_resources(ReceiverStream::new(asked)).await?;
        Ok(Self { asks, answers: answers.into_inner(), nonces: BTreeMap::new() })
    }

    /// Asks as an answer to the response with `nonce`.
    async fn ask_with(&mut self, url: &str, names: &[&str], nonce: &str) {
        let request = ads::DiscoveryRequest {
            node: Some(Node { id: "raw".into(), ..Node::default() }),
            type_url: url.into(),
            resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
            response_nonce: nonce.into(),
            ..Default::default()
        };
        // A stream that has ended says why where it is read.
        let _ = self.asks.send(request).await;
    }

    /// Asks, which takes what was sent of that kind.
    pub async fn ask(&mut self, url: &str, names: &[&str]) {
        let nonce = self.nonces.get(url).cloned().unwrap_or_default();
        self.ask_with(url, names, &nonce).await;
    }

    /// The next answer: of which kind, how many resources, and what it says that there is not.
    pub async fn next(&mut self) -> Result<(String, usize, Vec<String>), Status> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await;
        let answer = answer.expect("an answer comes")?.expect("the stream goes on");
        self.nonces.insert(answer.type_url.clone(), answer.nonce);
        let gone =
            answer.resource_errors.into_iter().filter_map(|one| Some(one.resource_name?.name));
        Ok((answer.type_url, answer.resources.len(), gone.collect()))
    }

    /// Reads on until endpoints are the one at this port.
    async fn is_sent_to(&mut self, port: u32) {
        loop {
            let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await;
            let answer = answer.expect("an answer comes").unwrap().expect("the stream goes on");
            assert_eq!(answer.type_url, EDS);
            self.nonces.insert(answer.type_url, answer.nonce);
            let all = ClusterLoadAssignment::decode(answer.resources[0].value.as_slice()).unwrap();
            let groups = all.endpoints.iter().flat_map(|group| &group.lb_endpoints);
            let sent = format!("{:?}", groups.collect::<Vec<_>>());
            if sent.contains(&format!("PortValue({port})")) {
                return;
            }
        }
    }

    async fn is_told(&mut self, url: &str, resources: usize, gone: &[&str]) {
        let gone: Vec<String> = gone.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(self.next().await.unwrap(), (url.to_owned(), resources, gone));
    }

    async fn ends(&mut self) -> Code {
        loop {
            if let Err(status) = self.next().await {
                return status.code();
            }
        }
    }
}

/// Nobody listens there.
fn addresses() -> [String; 2] {
    ["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()]
}

fn usage(stage: &Stage) -> Usage {
    stage.cluster.lab.nodes[0].process.as_ref().unwrap().usage().expect("it lives")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_xds_over_a_real_port_keeps_the_rules_of_the_protocol() {
    let addresses = addresses();
    let stage = Stage::up("raw", 1, &addresses).await;
    let client = stage.cluster.client("router");
    let mut raw = Raw::open(&client).await.unwrap();
    // What there is not is answered at once, also beside what there is.
    raw.ask(EDS, &["orders.write", "nothing.write", "x"]).await;
    raw.is_told(EDS, 0, &["x"]).await;
    raw.is_told(EDS, 1, &["nothing.write"]).await;
    let old = raw.nonces[EDS].clone();
    stage.ask_for("b").await;
    raw.is_sent_to(2).await;
    stage.serves("b").await;
    // A stale answer changes no subscription: what it adds is not sent, or it would be sent first.
    raw.ask_with(EDS, &["orders.write", "orders.read"], &old).await;
    raw.ask(LDS, &["nothing.read"]).await;
    raw.is_told(LDS, 1, &[]).await;
    // Endpoints come again after their cluster, and no other kind does.
    raw.ask(CDS, &["orders.write"]).await;
    raw.is_told(CDS, 1, &[]).await;
    raw.is_told(EDS, 1, &[]).await;
    // What there is no kind of is not answered, and ends nothing.
    raw.ask("type.googleapis.com/nonsense", &["orders.write"]).await;
    raw.ask("\u{0}\u{7f}é", &[]).await;
    // Whoever asked for one service hears nothing of another.
    let mut other = spec(&addresses);
    other.name = "stock".parse().unwrap();
    stage.declare(&other).await;
    raw.ask(LDS, &["nothing.read", "orders.write"]).await;
    raw.is_told(LDS, 2, &[]).await;
    assert!(stage.router("raw").is_some());
    // Without a subscription there is nothing to be told of, and nobody who follows.
    for url in [EDS, CDS, LDS] {
        raw.ask(url, &["stock.write"]).await;
        raw.next().await.unwrap();
    }
    stage.switch_to("a").await;
    until("it follows that service no more", async || stage.router("raw").is_none()).await;
    raw.ask(LDS, &["stock.read"]).await;
    raw.is_told(LDS, 1, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_ends_its_own_stream_and_memory_stays_bounded() {
    let stage = Stage::up("much", 1, &addresses()).await;
    let client = stage.cluster.client("router");
    let mut honest = Raw::open(&client).await.unwrap();
    honest.ask(EDS, &["orders.write"]).await;
    honest.is_told(EDS, 1, &[]).await;
    let names = |prefix: &str, many: usize| -> Vec<String> {
        (0..many).map(|at| format!("{prefix}{at}.write")).collect()
    };
    let huge = "x".repeat(600 * 1024);
    let cases: [(Vec<String>, Code); 3] = [
        (names("s", 1_001), Code::ResourceExhausted),
        (vec!["x".repeat(2_000)], Code::InvalidArgument),
        (vec![huge], Code::OutOfRange),
    ];
    for (names, wanted) in cases {
        let mut raw = Raw::open(&client).await.unwrap();
        raw.ask(EDS, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert_eq!(raw.ends().await, wanted);
    }
    // As many as one stream may have, on streams of their own and of services of their own.
    let mut streams = Vec::new();
    let before = usage(&stage).rss_kib;
    for stream in 0..8 {
        let mut raw = Raw::open(&client).await.unwrap();
        let names = names(&format!("many-{stream}-"), 1_000);
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        for url in [LDS, CDS, EDS] {
            raw.ask(url, &names).await;
            let (of, resources, gone) = raw.next().await.unwrap();
            assert_eq!((of.as_str(), resources + gone.len()), (url, 1_000));
        }
        streams.push(raw);
    }
    let used = usage(&stage).rss_kib - before;
    assert!(used < 96 * 1024, "{used} KiB for 8,000 names of three kinds");
    // The honest one is served meanwhile, and soon.
    honest.ask(EDS, &["orders.write", "orders.read"]).await;
    honest.is_told(EDS, 1, &[]).await;
    drop(streams);
    let soon = Duration::from_secs(1);
    tokio::time::timeout(soon, stage.cluster.client("client").status()).await.unwrap().unwrap();
}
