//! Nothing on the metrics page may be a figure that nobody feeds: a cluster is put to use, and then
//! every family must have moved.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use regent_core::authz::Role;
use regent_core::command::Expect;
use regent_core::id::{ElectionName, Locality, NodeId, SessionId};
use regent_core::role::observe::Observation;
use regent_core::spec::{Engine, InstanceSpec, Mode, Policy, ServiceSpec, TopologyKind};
use regent_rpc::client::{AgentStream, CampaignOptions, Client, Session, SessionOptions};
use regent_rpc::convert::agent::{FromCoordinator, HELLO, Outcome};
use regent_rpc::convert::common::{Freshness, From};
use regent_rpc::convert::election::ObserveScope;
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::election_service_client::ElectionServiceClient;
use regent_rpc::pb::v1::routing_service_client::RoutingServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::rig::{PATIENCE, Rig};
use crate::http::metric_table;
use crate::run::Node;

/// Families that stay at zero while nothing is wrong, or that are zero at most moments; each with
/// what moves it. Whoever adds a line here shows by another test that the family moves.
const MAY_STAY_ZERO: [(&str, &str); 15] = [
    ("regent_raft_apply_lag_entries", "an entry is applied as soon as it is committed"),
    ("regent_raft_slowest_member_lag_entries", "members that answer lack nothing for long"),
    ("regent_raft_learners_count", "only while a member is being added"),
    ("regent_raft_state_hash_mismatch_flag", "a node whose state differs stops at once"),
    ("regent_raft_node_quarantined_flag", "a disk that went back in time"),
    ("regent_storage_problem_flag", "a full or failing disk"),
    ("regent_lease_renewals_waiting_count", "renewals wait for a tick or two"),
    ("regent_topology_services_quarantined_count", "a broken invariant"),
    ("regent_watch_cut_off_watchers_count", "a watcher that is slow, or a node that stops"),
    ("regent_audit_missing_records_count", "a history that lost records"),
    ("regent_audit_history_rebuilt_count", "a history that cannot be opened"),
    ("regent_clock_rate_difference_ppm", "nodes of one machine share its clock"),
    ("regent_dns_questions_count", "a node answers DNS only where it is told to"),
    ("regent_route_refusals_count", "a router that refuses what it is sent"),
    ("regent_raft_quorum_ack_age_seconds", "zero in the very millisecond of an acknowledgement"),
];

/// One node's page, by family: whether any of its samples is other than zero.
pub(super) async fn page(http: SocketAddr) -> BTreeMap<&'static str, bool> {
    let mut stream = TcpStream::connect(http).await.unwrap();
    let ask = "GET /metrics HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let mut moved: BTreeMap<_, _> = metric_table().iter().map(|row| (row.name, false)).collect();
    for line in text.lines().filter(|line| line.starts_with("regent_")) {
        let (sample, value) = line.rsplit_once(' ').expect("a sample has a value");
        let sample = sample.split('{').next().unwrap_or(sample);
        let of = |name: &str| {
            let suffix = sample.strip_prefix(name);
            suffix.is_some_and(|s| ["", "_total", "_sum", "_count", "_bucket"].contains(&s))
        };
        let (_, moved) = moved.iter_mut().find(|(name, _)| of(name)).expect("it is in the table");
        *moved |= value.parse::<f64>().expect("a number") != 0.0;
    }
    moved
}

/// The families that moved on none of the nodes.
async fn still(nodes: &[&Node]) -> Vec<&'static str> {
    let mut pages = Vec::new();
    for node in nodes {
        pages.push(page(node.http_addr()).await);
    }
    let names = metric_table().iter().map(|row| row.name);
    names.filter(|name| !pages.iter().any(|page| page[name])).collect()
}

pub(crate) fn service() -> ServiceSpec {
    let instance = |name: &str, zone: &str| InstanceSpec {
        name: name.parse().unwrap(),
        locality: Locality { region: "eu".into(), zone: zone.into(), host: name.into() },
        address: format!("{name}.example.org:5432"),
        priority: 1,
    };
    ServiceSpec {
        name: "orders".parse().unwrap(),
        description: String::new(),
        engine: Engine::Postgres,
        topology: TopologyKind::ActivePassive,
        instances: vec![instance("a", "z1"), instance("b", "z2"), instance("c", "z3")],
        partitions: Vec::new(),
        policy: Policy::default_for(Mode::Quorum),
    }
}

/// Opens a session that nobody keeps alive. Returns the id that came back with the answer.
async fn abandon_a_session(client: &Client, id: &'static str) -> String {
    let (_, channel) = client.channels().swap_remove(0);
    let ask = v1::OpenSessionRequest { ttl_ms: 3_000, nonce: 7, ..Default::default() };
    let mut ask = tonic::Request::new(ask);
    ask.metadata_mut().insert("x-request-id", id.parse().unwrap());
    let answer = ElectionServiceClient::new(channel).open_session(ask).await.unwrap();
    answer.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned()
}

/// A stream whose start was accepted: until all nodes can read such entries it is refused.
async fn accepted(agent: &Client, session: SessionId) -> AgentStream {
    let began = Instant::now();
    loop {
        let hello = super::agents::hello("a", session);
        let mut stream = AgentStream::connect(agent, hello, PATIENCE).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, stream.receiver.next()).await.unwrap();
        match answer {
            Ok(Some(FromCoordinator::Answer(HELLO, Outcome::Accepted { .. }))) => return stream,
            other => assert!(began.elapsed() < PATIENCE, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_family_of_a_cluster_in_use_has_moved() {
    let rig = Rig::start(3).await;
    let leader = rig.leader().await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    let nodes: Vec<&Node> = (1..=3).map(|id| rig.node(id)).collect();
    let name = ElectionName::parse("orders").unwrap();

    let operator = rig.client(Role::Operator);
    operator.put_election(&name, &Locality::default(), Expect::Any).await.unwrap();
    operator.apply_service(&service(), Expect::Any, false).await.unwrap();

    // One instance of three: nobody is primary, and its standby is behind.
    let agent = rig.client_as(Role::Agent, "orders/a", &[rig.address(follower)]);
    let of_agent = Session::open(&agent, SessionOptions::default()).await.unwrap();
    let attached = accepted(&agent, of_agent.id()).await;
    let behind = Observation { replay_lag_bytes: 7, ..Observation::default() };
    attached.sender.observe(behind).unwrap();

    // It is followed, and then says where its agent answers.
    let router = rig.client_as(Role::Router, "lb", &[rig.address(follower)]);
    let ask = v1::WatchRoutesRequest { service: "orders".into(), ..Default::default() };
    let mut routes = RoutingServiceClient::new(router.channels().swap_remove(0).1);
    let mut routes = routes.watch(ask).await.unwrap().into_inner();
    routes.message().await.unwrap();
    let says = Observation { check: ":8008".into(), replay_lag_bytes: 7, ..Observation::default() };
    attached.sender.observe(says).unwrap();
    let news = async { while routes.message().await.unwrap().unwrap().routes.is_none() {} };
    tokio::time::timeout(PATIENCE, news).await.expect("it is told");

    // Through a follower, so that both ends of forwarding take part.
    let client = rig.client_of(Role::Client, &[rig.address(follower)]);
    assert_eq!(abandon_a_session(&client, "test-1").await, "test-1");
    let session = Session::open(&client, SessionOptions::default()).await.unwrap();
    let lease = session.campaign(&name, b"first", CampaignOptions::default()).await.unwrap();
    let mut watch = client.observe(ObserveScope::All, From::Snapshot);
    client.leader(&name, Freshness::Linearizable).await.unwrap();

    let observer = rig.client(Role::Observer);
    let refused = observer.put_election(&name, &Locality::default(), Expect::Any).await;
    refused.expect_err("an observer writes nothing");

    let node = rig.node(leader);
    node.shell().consensus.snapshot_now().await.unwrap();
    let tls = rig.config_of(leader).tls;
    for file in [tls.cert, tls.key] {
        std::fs::remove_file(file).unwrap();
    }
    rig.issue_node(NodeId(leader));
    // The node looks by itself too, and may have been first.
    node.shell().tls.reload().unwrap();
    let mut stranger = TcpStream::connect(node.grpc_addr()).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();

    let until = Instant::now() + PATIENCE;
    let excused = |name: &&str| MAY_STAY_ZERO.iter().any(|(excused, _)| excused == name);
    loop {
        // The watch begins with its first event, so only what is written from then on is delivered.
        lease.proclaim(b"again").await.unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(100), watch.next()).await;
        let lies: Vec<_> = still(&nodes).await.into_iter().filter(|n| !excused(n)).collect();
        if lies.is_empty() {
            break;
        }
        assert!(Instant::now() < until, "nothing feeds these: {lies:?}");
    }
    for (name, _) in MAY_STAY_ZERO {
        assert!(metric_table().iter().any(|row| row.name == name), "there is no {name}");
    }
    lease.resign().await.unwrap();
    session.close().await.unwrap();
}
