//! Changing who is a member.

use regent_core::authz::Role;
use regent_core::id::NodeId;
use regent_rpc::convert::cluster::NewMember;
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::election_service_client::ElectionServiceClient;
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::rig::{PATIENCE, Rig, eventually, start_again};
use crate::come_up::HELLO_TIMEOUT;
use crate::config::NodeConfig;
use crate::members::MAX_ADDITIONS;
use crate::run::Node;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_new_node_is_added_once_it_answers_promoted_and_removed_again() {
    let rig = Rig::start(1).await;
    let admin = rig.client(Role::Admin);
    let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (grpc_at, http_at) =
        (grpc.local_addr().unwrap().to_string(), http.local_addr().unwrap().to_string());
    let member = NewMember {
        address: grpc_at.clone(),
        http_address: http_at.clone(),
        locality: Default::default(),
        label: "second".into(),
    };
    let id = admin.add_member(&member).await.unwrap().node;
    assert!(id > NodeId(1), "an id of its own");
    assert_eq!(admin.list_members().await.unwrap().members.len(), 1, "it does not answer yet");

    rig.issue_node(id);
    let config = NodeConfig { join: true, ..rig.config(id, &grpc_at, &http_at) };
    let node = Node::start_on(config, grpc, http).await.unwrap();
    let shell = rig.node(1).shell().clone();
    eventually("the new node is a learner", || shell.leadership.status().members.len() == 2).await;
    node.ready(PATIENCE).await.unwrap();
    let until = Instant::now() + PATIENCE;
    while let Err(error) = admin.promote_member(id).await {
        assert!(Instant::now() < until, "never caught up: {error}");
    }
    let members = admin.list_members().await.unwrap().members;
    assert!(members.iter().all(|m| m.voter));
    assert_eq!(admin.transfer_leader(Some(id)).await.unwrap(), id);
    admin.transfer_leader(Some(NodeId(1))).await.unwrap();
    admin.remove_member(id).await.unwrap();
    assert_eq!(admin.list_members().await.unwrap().members.len(), 1);
}

/// A node to add that is at `address`.
fn new_node(address: &str) -> NewMember {
    NewMember {
        address: address.into(),
        http_address: String::new(),
        locality: Default::default(),
        label: String::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leases_end_in_time_while_nodes_to_be_added_swallow_what_is_sent_to_them() {
    let rig = Rig::start(1).await;
    let admin = rig.client(Role::Admin);
    // Connections are taken by the kernel, and nobody ever reads them.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    for _ in 0..MAX_ADDITIONS {
        admin.add_member(&new_node(&address)).await.unwrap();
    }
    let mut held = Vec::new();
    let dialled = tokio::time::timeout(PATIENCE, silent.accept()).await;
    held.push(dialled.expect("the leader asks whether they are there").unwrap());

    let (_, channel) = rig.client(Role::Client).channels().swap_remove(0);
    let ask = v1::OpenSessionRequest { ttl_ms: 2_000, nonce: 7, ..Default::default() };
    ElectionServiceClient::new(channel).open_session(ask).await.unwrap();
    let begun = Instant::now();
    let shell = rig.node(1).shell().clone();
    eventually("the abandoned session ends", || shell.state.read().sessions().is_empty()).await;
    // Asked one after the other, the silent ones alone take a round of this long.
    let round = HELLO_TIMEOUT * MAX_ADDITIONS as u32;
    assert!(begun.elapsed() < round / 3, "it ended only after {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_that_was_deposed_forgets_the_additions_it_promised() {
    let rig = Rig::start(3).await;
    let old = rig.leader().await;
    let admin = rig.client(Role::Admin);
    let at = |port: u16| new_node(&format!("127.0.0.1:{port}"));
    let id = rig.client_of(Role::Admin, &[rig.address(old)]).add_member(&at(1)).await.unwrap().node;
    let shell = rig.node(old).shell().clone();
    let waits = || shell.additions.waiting().iter().any(|(node, _)| *node == id);
    assert!(waits());
    let next = (1..=3).map(NodeId).find(|node| node.0 != old).unwrap();
    admin.transfer_leader(Some(next)).await.unwrap();
    eventually("it is forgotten", || !waits()).await;

    // However short it was: a promise of another term is none.
    admin.transfer_leader(Some(NodeId(old))).await.unwrap();
    assert_eq!(rig.leader().await, old);
    let member = crate::members::Additions::default();
    member.promise(id, Default::default(), 7);
    assert_eq!(member.due(7).len(), 1);
    assert!(member.due(9).is_empty() && member.waiting().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_answers_with_an_objection_is_not_added() {
    let rig = Rig::start(1).await;
    let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = grpc.local_addr().unwrap().to_string();
    let id = rig.client(Role::Admin).add_member(&new_node(&at)).await.unwrap().node;
    rig.issue_node(id);
    let config = rig.config(id, &at, &http.local_addr().unwrap().to_string());
    let config = NodeConfig { join: true, cluster: "another".into(), ..config };
    let stranger = Node::start_on(config, grpc, http).await.unwrap();
    let shell = rig.node(1).shell().clone();
    let objects = |why: &str| why.contains("another");
    eventually("the objection is known", || {
        shell.additions.waiting().iter().any(|(node, why)| *node == id && objects(why))
    })
    .await;
    assert_eq!(shell.leadership.status().members.len(), 1);
    stranger.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_new_node_says_of_itself_is_taken_over_or_refused_and_never_ignored() {
    let rig = Rig::start(1).await;
    let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = grpc.local_addr().unwrap().to_string();
    let mut new = new_node(&at);
    new.locality.zone = "d".into();
    let id = rig.client(Role::Admin).add_member(&new).await.unwrap().node;
    rig.issue_node(id);
    let config = rig.config(id, &at, &http.local_addr().unwrap().to_string());
    let mut config = NodeConfig { join: true, label: "fourth".into(), ..config };
    config.locality.zone = "e".into();
    let node = Node::start_on(config.clone(), grpc, http).await.unwrap();
    let shell = rig.node(1).shell().clone();
    eventually("the contradiction is known", || {
        let waiting = shell.additions.waiting();
        waiting.iter().any(|(node, why)| *node == id && why.contains("locality.zone"))
    })
    .await;
    node.kill().await;

    config.locality.zone = "d".into();
    let node = start_again(&config).await.unwrap();
    let row = || {
        let status = shell.leadership.status();
        status.members.into_iter().find(|(node, _, _)| *node == id).map(|(_, member, _)| member)
    };
    eventually("the new node is a learner", || row().is_some()).await;
    let known = row().unwrap();
    assert_eq!((known.locality.zone.as_str(), known.label.as_str()), ("d", "fourth"));
    node.ready(PATIENCE).await.unwrap();
    node.kill().await;

    config.label = "fifth".into();
    let mut node = start_again(&config).await.unwrap();
    let why = tokio::time::timeout(PATIENCE, node.failed()).await.expect("it stops");
    assert!(why.contains("label") && why.contains("fourth") && why.contains("fifth"), "{why}");
    node.kill().await;
}
