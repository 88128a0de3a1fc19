//! Nodes come and go while writes go on: add, promote, transfer, remove, the leader as well.

use std::process::Command;

use regent_lab::process::Fault;
use regent_lab::{Connections, LabNode};

use crate::cluster::{Cluster, PATIENCE, REGENT, until};
use crate::http_port::readiness;
use crate::own::{Own, said};
use crate::writers::{Writers, assert_all_there, assert_same_state};

fn text(out: &std::process::Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Adds a node as its operator would: an id from the cluster, a certificate for it, a configuration
/// that joins. Not started yet.
fn add(cluster: &mut Cluster) -> u64 {
    let ports = regent_lab::ports::free(2).unwrap();
    let (grpc, http) = (format!("127.0.0.1:{}", ports[0]), format!("127.0.0.1:{}", ports[1]));
    let told = ["--address", &grpc, "--http-address", &http, "--zone", "d"];
    let added = cluster.json(&[&["members", "add"], &told[..]].concat());
    let id = added["node"].as_u64().unwrap();
    let dir = cluster.lab.dir.join(format!("node-{id}"));
    let node = LabNode {
        id,
        zone: "d".into(),
        grpc,
        http,
        data_dir: dir.join("data"),
        config: dir.join("node.toml"),
        log: dir.join("node.log"),
        process: None,
    };
    let pki = cluster.lab.pki_dir();
    let out = Command::new(REGENT)
        .args([
            "pki",
            "issue",
            "node",
            &id.to_string(),
            "--name-also",
            "localhost,127.0.0.1",
            "--dir",
        ])
        .arg(pki)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", text(&out));
    std::fs::create_dir_all(&node.data_dir).unwrap();
    let whole = regent_lab::config::text(&cluster.lab, &node).unwrap();
    let (own, _) = whole.split_once("[[initial_members]]").unwrap();
    std::fs::write(&node.config, format!("join = true\n{own}")).unwrap();
    cluster.lab.nodes.push(node);
    cluster.connections =
        Connections::new(&cluster.lab, &cluster.lab.certificates().admin).unwrap();
    id
}

fn member(cluster: &Cluster, id: u64) -> Option<serde_json::Value> {
    let list = cluster.json(&["members", "list"]);
    list["members"].as_array()?.iter().find(|member| member["id"] == id).cloned()
}

/// Removes a node; its process must find out and say so.
async fn remove(cluster: &mut Cluster, id: u64) {
    let out = cluster.verb(&["members", "remove", &id.to_string()]);
    assert!(out.status.success(), "{}", text(&out));
    assert!(member(cluster, id).is_none(), "node {id} is a member still");
    until("the removed node to say why it is out", async || {
        let (code, why) = readiness(cluster, id);
        code == 503 && why.contains("no member of the cluster any more")
    })
    .await;
    let log = said(cluster.lab.node(id).unwrap());
    assert!(log.contains("no member of the cluster any more"), "{log}");
    cluster.signal(id, Fault::Terminate);
    let process = cluster.lab.node(id).unwrap().process.clone().unwrap();
    assert!(process.wait_gone(PATIENCE).await, "a removed node does not stop");
    cluster.lab.nodes.retain(|node| node.id != id);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_under_load_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::up("members", 3).await;
    let writers = Writers::start(&cluster, 2);
    let id = add(&mut cluster);
    let new = id.to_string();
    // Known, but not there: no vote for it.
    let early = cluster.verb(&["members", "promote", &new]);
    assert_eq!(early.status.code(), Some(1), "{}", text(&early));
    assert!(text(&early).contains("add it as a learner first"), "{}", text(&early));

    let _own = Own::instead(&mut cluster, id);
    until("the new node to be a learner", async || member(&cluster, id).is_some()).await;
    // While it is frozen it falls behind, and must not be given a vote.
    cluster.signal(id, Fault::Freeze);
    until("the new node to fall behind", async || {
        member(&cluster, id).is_some_and(|it| it["behind"].as_u64() > Some(1_000))
    })
    .await;
    let behind = cluster.verb(&["members", "promote", &new]);
    assert_eq!(behind.status.code(), Some(1), "{}", text(&behind));
    let why = text(&behind);
    assert!(why.contains("does not answer") || why.contains("entries behind"), "{why}");
    cluster.signal(id, Fault::Thaw);
    until("the new node to be promoted", async || {
        cluster.verb(&["members", "promote", &new]).status.success()
    })
    .await;
    assert_eq!(member(&cluster, id).unwrap()["voter"], true);

    // It can lead; and the leader itself can be removed: then leadership moves first.
    until("the new node to lead", async || {
        cluster.verb(&["members", "transfer-leader", "--to", &new]).status.success()
            && cluster.leader().await == id
    })
    .await;
    writers.progress(20).await;
    let first = cluster.lab.nodes[0].id;
    until("the first node to lead", async || {
        let to = first.to_string();
        cluster.verb(&["members", "transfer-leader", "--to", &to]).status.success()
            && cluster.leader().await == first
    })
    .await;
    writers.progress(20).await;
    remove(&mut cluster, first).await;
    assert_ne!(cluster.leader().await, first);
    writers.progress(20).await;
    // And a follower.
    let leader = cluster.leader().await;
    let follower = cluster.lab.nodes.iter().map(|n| n.id).find(|n| *n != leader).unwrap();
    remove(&mut cluster, follower).await;
    writers.progress(50).await;

    let acknowledged = writers.finish().await;
    assert_all_there(&cluster, &acknowledged).await;
    assert_same_state(&cluster).await;
}
