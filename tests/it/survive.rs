//! S10 and liveness: what was acknowledged is there after any minority died.

use regent_lab::process::Fault;

use crate::cluster::Cluster;
use crate::writers::{Writers, assert_all_there, assert_same_state};

/// Kills each node in turn, and the leader more often than not.
async fn kill_loop(kills: u64) {
    let mut cluster = Cluster::up("kills", 3).await;
    let writers = Writers::start(&cluster, 4);
    for round in 0..kills {
        writers.progress(20).await;
        let victim = if round % 3 == 0 { 1 + (round / 3) % 3 } else { cluster.leader().await };
        cluster.kill(victim).await;
        writers.progress(20).await;
        cluster.restart(victim);
        cluster.ready().await;
    }
    let acknowledged = writers.finish().await;
    assert_all_there(&cluster, &acknowledged).await;
    assert!(acknowledged.len() as u64 >= kills * 40);
    assert_same_state(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_write_is_there_after_ten_kills_under_load() {
    let kills = std::env::var("REGENT_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    kill_loop(kills).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_go_on_without_two() {
    let cluster = Cluster::up("five", 5).await;
    let writers = Writers::start(&cluster, 2);
    writers.progress(20).await;
    let leader = cluster.leader().await;
    let other = cluster.lab.nodes.iter().map(|n| n.id).find(|id| *id != leader).unwrap();
    cluster.kill(leader).await;
    cluster.kill(other).await;
    writers.progress(50).await;
    let acknowledged = writers.finish().await;
    assert_all_there(&cluster, &acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_leader_does_not_stop_the_others_and_follows_when_thawed() {
    let cluster = Cluster::up("frozen", 3).await;
    let writers = Writers::start(&cluster, 2);
    writers.progress(20).await;
    let frozen = cluster.leader().await;
    cluster.signal(frozen, Fault::Freeze);
    writers.progress(50).await;
    let next = cluster.leader().await;
    assert_ne!(next, frozen);
    cluster.signal(frozen, Fault::Thaw);
    let view = cluster.ready().await;
    assert_ne!(view.leader, 0);
    let acknowledged = writers.finish().await;
    assert_all_there(&cluster, &acknowledged).await;
    assert_same_state(&cluster).await;
}
