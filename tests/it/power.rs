//! Power cuts under whole nodes: real processes on a file system that forgets what was not synced.
//! The log alone is cut more often, in the tests of regent-raft; here it is the log together with
//! snapshots, identity, the history of the audit chain, and what the nodes make of each other.

use std::path::PathBuf;

use futures::StreamExt as _;
use regent_forgetful::{Disk, Mount, go_without};
use regent_rpc::client::{CampaignOptions, Session, SessionOptions};

use crate::cluster::{Cluster, copy_dir, election, marks, until};
use crate::writers::{Writers, assert_all_there, assert_same_state};

/// Cuts in the run; before every other one the nodes make a snapshot.
const CUTS: u64 = 4;
/// Values of this size, this often, are more than what a node keeps without a snapshot.
const VALUE_BYTES: usize = 16 * 1024;
const VALUES: usize = 1_200;

/// A cluster whose data lie on one disk that can lose power.
struct Powered {
    cluster: Cluster,
    disk: Disk,
    at: PathBuf,
    mount: Option<Mount>,
}

impl Powered {
    async fn up(what: &str) -> Self {
        let cluster = Cluster::up(what, 3).await;
        let (disk, at) = (Disk::default(), cluster.scratch.path().join("disk"));
        let mount = Some(Mount::at(&disk, &at));
        let mut powered = Self { cluster, disk, at, mount };
        for id in 1..=3 {
            powered.cluster.kill(id).await;
            let data = powered.cluster.lab.node(id).unwrap().data_dir.clone();
            let there = powered.at.join(format!("node-{id}"));
            copy_dir(&data, &there);
            std::fs::remove_dir_all(&data).unwrap();
            std::os::unix::fs::symlink(&there, &data).unwrap();
        }
        powered.disk.settle();
        powered.restart().await;
        powered
    }

    async fn restart(&mut self) {
        for id in 1..=3 {
            self.cluster.restart(id);
        }
        self.cluster.ready().await;
    }

    /// The power of all nodes fails at once.
    async fn off(&mut self) {
        self.disk.cut_power();
        for id in 1..=3 {
            self.cluster.kill(id).await;
        }
        self.mount = None;
    }

    /// The power of all nodes fails at once, and comes back.
    async fn cut(&mut self) {
        self.off().await;
        self.mount = Some(Mount::at(&self.disk, &self.at));
    }

    /// Enough for every node to make a snapshot and to let go of its log.
    async fn fill(&self) {
        let client = self.cluster.client("client");
        let session = Session::open(&client, SessionOptions::default()).await.unwrap();
        let name = election("filled");
        let lease = session.campaign(&name, b"", CampaignOptions::default()).await.unwrap();
        let value = vec![7; VALUE_BYTES];
        let proclaims = (0..VALUES).map(|_| lease.proclaim(&value));
        let refused = futures::stream::iter(proclaims).buffer_unordered(16);
        let refused: Vec<_> = refused.filter_map(|done| async { done.err() }).collect().await;
        assert!(refused.is_empty(), "{refused:?}");
        lease.resign().await.unwrap();
    }

    async fn terms(&self) -> Vec<u64> {
        let mut terms = Vec::new();
        for id in 1..=3 {
            let mut term = None;
            until("the node to say its term", async || {
                term = self.cluster.connections.status(id).await.map(|status| status.term);
                term.is_some()
            })
            .await;
            terms.extend(term);
        }
        terms
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cuts_of_all_nodes_at_once_lose_nothing_acknowledged_and_no_vote() {
    if go_without() {
        return;
    }
    let mut powered = Powered::up("power").await;
    let writers = Writers::start(&powered.cluster, 4);
    for cut in 0..CUTS {
        if cut % 2 == 1 {
            powered.fill().await;
        }
        writers.progress(100 + cut * 37).await;
        let before = powered.terms().await;
        powered.cut().await;
        powered.restart().await;
        let after = powered.terms().await;
        assert!(before.iter().zip(&after).all(|(b, a)| b <= a), "{before:?}, then {after:?}");
    }
    writers.progress(50).await;
    let acknowledged = writers.finish().await;
    assert_all_there(&powered.cluster, &acknowledged).await;
    assert!(acknowledged.len() as u64 >= CUTS * 100);
    assert_same_state(&powered.cluster).await;
    let verified = powered.cluster.verb(&["audit", "verify"]);
    assert!(verified.status.success(), "{verified:?}");
    for id in 1..=3 {
        let snapshots = powered.at.join(format!("node-{id}")).join("raft/snapshots");
        let some = std::fs::read_dir(&snapshots).is_ok_and(|mut files| files.next().is_some());
        assert!(some, "node {id} made no snapshot: {}", snapshots.display());
    }
    powered.off().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_disks_that_only_pretend_to_sync_the_loss_is_seen() {
    if go_without() {
        return;
    }
    let mut powered = Powered::up("liars").await;
    powered.disk.lie(true);
    let writers = Writers::start(&powered.cluster, 2);
    writers.progress(100).await;
    let acknowledged = writers.finish().await;
    powered.cut().await;
    powered.disk.lie(false);
    for id in 1..=3 {
        powered.cluster.restart(id);
    }
    // All of them lost the same, so nobody can know: what was acknowledged is gone.
    powered.cluster.ready().await;
    let there = marks(&powered.cluster.client("admin"), "mark/").await;
    assert!(there.len() < acknowledged.len(), "nothing was lost: the test above cannot fail");
    powered.off().await;
}
