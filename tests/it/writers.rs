//! Load for the tests that break things: writers that go on through everything, and what must be
//! true afterwards.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use regent_rpc::client::Client;

use crate::cluster::{Cluster, mark, marks, until};

/// When the last write was acknowledged, and the longest time between two of them.
struct Pace {
    last: Instant,
    longest: Duration,
}

/// Writers that go on through everything; what they return was acknowledged.
pub struct Writers {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    pace: Arc<Mutex<Pace>>,
    tasks: Vec<tokio::task::JoinHandle<Written>>,
}

/// What one writer did.
#[derive(Default)]
struct Written {
    acknowledged: Vec<String>,
    failed: Vec<String>,
}

impl Writers {
    pub fn start(cluster: &Cluster, writers: usize) -> Self {
        Self::of((0..writers).map(|_| cluster.client("admin")))
    }

    /// One writer for each client.
    pub fn of(clients: impl Iterator<Item = Client>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let pace = Arc::new(Mutex::new(Pace { last: Instant::now(), longest: Duration::ZERO }));
        let tasks = clients
            .enumerate()
            .map(|(writer, client)| {
                let (stop, count, pace) =
                    (Arc::clone(&stop), Arc::clone(&count), Arc::clone(&pace));
                tokio::spawn(async move {
                    let mut written = Written::default();
                    for number in 0_u64.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let name = format!("mark/{writer}/{number}");
                        if let Err(error) = mark(&client, &name).await {
                            written.failed.push(error.to_string());
                            continue;
                        }
                        written.acknowledged.push(name);
                        count.fetch_add(1, Ordering::Relaxed);
                        let mut pace = pace.lock().unwrap();
                        pace.longest = pace.longest.max(pace.last.elapsed());
                        pace.last = Instant::now();
                    }
                    written
                })
            })
            .collect();
        Self { stop, count, pace, tasks }
    }

    /// Waits until `more` further writes were acknowledged.
    pub async fn progress(&self, more: u64) {
        let target = self.count.load(Ordering::Relaxed) + more;
        until("progress of the writers", async || self.count.load(Ordering::Relaxed) >= target)
            .await;
    }

    /// The longest time between two acknowledgements since the last call.
    pub fn longest_gap(&self) -> Duration {
        let mut pace = self.pace.lock().unwrap();
        std::mem::take(&mut pace.longest).max(pace.last.elapsed())
    }

    /// Stops; everything that was acknowledged.
    pub async fn finish(self) -> Vec<String> {
        self.stopped().await.acknowledged
    }

    /// Stops; why each call failed that did.
    pub async fn failures(self) -> Vec<String> {
        self.stopped().await.failed
    }

    async fn stopped(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Written::default();
        for task in self.tasks {
            let written = task.await.unwrap();
            all.acknowledged.extend(written.acknowledged);
            all.failed.extend(written.failed);
        }
        all
    }
}

/// S10, seen from outside.
pub async fn assert_all_there(cluster: &Cluster, acknowledged: &[String]) {
    let there: BTreeSet<_> = marks(&cluster.client("admin"), "mark/").await.into_iter().collect();
    let lost: Vec<_> = acknowledged.iter().filter(|name| !there.contains(*name)).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), acknowledged.len());
}

/// S9, seen from outside: all nodes show one hash once they stand at one revision.
pub async fn assert_same_state(cluster: &Cluster) {
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
