//! S10 and liveness: what was acknowledged is there after any minority died.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use regent_lab::process::Fault;

use crate::cluster::{Cluster, mark, marks, until};

/// Writers that go on through everything; what they return was acknowledged.
struct Writers {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Writers {
    fn start(cluster: &Cluster, writers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let tasks = (0..writers)
            .map(|writer| {
                let client = cluster.client("admin");
                let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
                tokio::spawn(async move {
                    let mut acknowledged = Vec::new();
                    for number in 0_u64.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let name = format!("mark/{writer}/{number}");
                        if mark(&client, &name).await.is_ok() {
                            acknowledged.push(name);
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        Self { stop, count, tasks }
    }

    /// Waits until `more` further writes were acknowledged.
    async fn progress(&self, more: u64) {
        let target = self.count.load(Ordering::Relaxed) + more;
        until("progress of the writers", async || self.count.load(Ordering::Relaxed) >= target)
            .await;
    }

    async fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(task.await.unwrap());
        }
        all
    }
}

async fn assert_all_there(cluster: &Cluster, acknowledged: &[String]) {
    let there: BTreeSet<_> = marks(&cluster.client("admin"), "mark/").await.into_iter().collect();
    let lost: Vec<_> = acknowledged.iter().filter(|name| !there.contains(*name)).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), acknowledged.len());
}

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

/// S9, seen from outside: all nodes show one hash once they stand at one revision.
async fn assert_same_state(cluster: &Cluster) {
    until("one state hash on all nodes", async || {
        let mut seen = BTreeSet::new();
        for node in &cluster.lab.nodes {
            let Some(status) = cluster.connections.status(node.id).await else { return false };
            seen.insert((status.stamp.map(|s| s.revision), status.state_hash));
        }
        seen.len() == 1
    })
    .await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_hands_leadership_over_before_it_ends() {
    let cluster = Cluster::up("drain", 3).await;
    let writers = Writers::start(&cluster, 2);
    writers.progress(20).await;
    let old = cluster.leader().await;
    cluster.signal(old, Fault::Terminate);
    let process = cluster.lab.node(old).unwrap().process.clone().unwrap();
    assert!(process.wait_gone(crate::cluster::PATIENCE).await, "SIGTERM did not end the node");
    writers.progress(50).await;
    let text = std::fs::read_to_string(&cluster.lab.node(old).unwrap().log).unwrap();
    assert!(text.contains("leadership handed over"), "nothing was handed over: {text}");
    let acknowledged = writers.finish().await;
    assert_all_there(&cluster, &acknowledged).await;
}
