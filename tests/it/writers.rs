//! Load for the tests that break things: writers that go on through everything, and what must be
//! true afterwards.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

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
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Writers {
    pub fn start(cluster: &Cluster, writers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let pace = Arc::new(Mutex::new(Pace { last: Instant::now(), longest: Duration::ZERO }));
        let tasks = (0..writers)
            .map(|writer| {
                let client = cluster.client("admin");
                let (stop, count, pace) =
                    (Arc::clone(&stop), Arc::clone(&count), Arc::clone(&pace));
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
                            let mut pace = pace.lock().unwrap();
                            pace.longest = pace.longest.max(pace.last.elapsed());
                            pace.last = Instant::now();
                        }
                    }
                    acknowledged
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

    pub async fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for task in self.tasks {
            all.extend(task.await.unwrap());
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
