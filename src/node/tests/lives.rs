//! Restore and recovery: another life of the cluster, never the same one again.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use regent_core::authz::{Principal, Role};
use regent_core::id::{ElectionName, NodeId};
use regent_core::limits::LEAST_HOLD_MS;
use regent_rpc::client::{CampaignOptions, Session, SessionOptions};
use regent_rpc::convert::common::Freshness;
use tokio::net::TcpListener;

use super::rig::{PATIENCE, Rig, eventually};
use crate::come_up::Welcome;
use crate::config::NodeConfig;
use crate::recover::{RecoverError, RecoverOptions, recover};
use crate::restore::{RestoreError, RestoreOptions, restore};
use crate::run::Node;

/// What the operator says of the ttls in use.
const HOLD: Duration = Duration::from_secs(2);

fn election(name: &str) -> ElectionName {
    ElectionName::parse(name).unwrap()
}

fn admin() -> Principal {
    Principal::new(Role::Admin, "tester")
}

async fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_restores_of_one_backup_are_two_clusters_with_higher_epochs() {
    let rig = Rig::start(1).await;
    let name = election("orders");
    let client = rig.client(Role::Client);
    let session = Session::open(&client, SessionOptions::default()).await.unwrap();
    let held = session.campaign(&name, b"old", CampaignOptions::default()).await.unwrap();
    let old = held.epoch();
    let chunks = rig.client(Role::Admin).backup().await.unwrap();
    let data: Vec<u8> = chunks.map(|c| c.unwrap().data.to_vec()).collect::<Vec<_>>().await.concat();
    let backup = rig.data_dir(NodeId(0)).with_extension("backup");
    std::fs::write(&backup, data).unwrap();

    let mut lives = Vec::new();
    for id in [NodeId(4), NodeId(5)] {
        rig.issue_node(id);
        let (grpc, http) = (free_port().await, free_port().await);
        let config = NodeConfig { join: true, ..rig.config(id, &grpc, &http) };
        let mut options = RestoreOptions {
            backup: backup.clone(),
            config: config.clone(),
            above: 0,
            hold: None,
            reason: "a test".into(),
            by: admin(),
            dry_run: true,
        };
        let dry = restore(&options).await.unwrap();
        assert!(!dry.written && !config.data_dir.exists(), "a dry run writes nothing");
        assert_eq!((dry.sessions, dry.held_elections), (1, 1));
        assert_eq!((dry.longest_ttl_ms, dry.grants_held_ms), (10_000, LEAST_HOLD_MS));
        (options.dry_run, options.hold) = (false, Some(HOLD));
        restore(&options).await.unwrap();
        assert!(matches!(restore(&options).await, Err(RestoreError::NotEmpty(_))));
        let started = Instant::now();
        let node = Node::start(config).await.unwrap();
        node.ready(PATIENCE).await.unwrap();
        let client = rig.client_of(Role::Client, &[grpc]);
        let read = client.leader(&name, Freshness::Linearizable).await.unwrap();
        assert!(read.election.unwrap().holder.is_none(), "the old lease is void");
        let session = Session::open(&client, SessionOptions::default()).await.unwrap();
        let lease = session.campaign(&name, b"new", CampaignOptions::default()).await.unwrap();
        assert!(lease.epoch() > old, "{} is not above {old}", lease.epoch());
        // Whoever holds it in the old cluster may believe so for that long (S5).
        assert!(started.elapsed() > HOLD, "granted after {:?}", started.elapsed());
        assert_eq!(node.shell().state.read().grants_held_ms(), 0);
        lives.push(node.shell().state.read().incarnation());
        node.kill().await;
    }
    assert_eq!(lives[0].counter, lives[1].counter);
    assert_ne!(lives[0].id, lives[1].id);
    drop(held);

    let used = RestoreOptions {
        backup,
        config: NodeConfig { data_dir: rig.data_dir(NodeId(9)), ..rig.config(NodeId(1), "", "") },
        above: 0,
        hold: None,
        reason: String::new(),
        by: admin(),
        dry_run: true,
    };
    assert!(matches!(restore(&used).await, Err(RestoreError::UsedId { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_recovered_survivor_keeps_everything_and_the_old_majority_cannot_touch_it() {
    let mut rig = Rig::start(3).await;
    let operator = rig.client(Role::Operator);
    operator
        .put_election(&election("kept"), &Default::default(), Default::default())
        .await
        .unwrap();
    let read = rig.client_of(Role::Observer, &[rig.address(1)]);
    read.list_elections("", Freshness::Linearizable).await.unwrap();
    rig.kill(1).await;
    let mut options = RecoverOptions {
        config: rig.config_of(1),
        although_reachable: Vec::new(),
        above: 0,
        hold: None,
        reason: "a test".into(),
        by: admin(),
        dry_run: false,
    };
    let refused = recover(&options).await.expect_err("two voters live");
    assert!(matches!(refused, RecoverError::Reachable(ids) if ids == [NodeId(2), NodeId(3)]));
    rig.kill(2).await;
    rig.kill(3).await;
    options.dry_run = true;
    let dry = recover(&options).await.unwrap();
    assert!(!dry.written);
    assert_eq!(dry.dropped.len(), 2);
    options.dry_run = false;
    // A recovery that ended between its two renames is not mistaken for a node without a log.
    let raft = options.config.raft_dir();
    let (kept, fresh) = (raft.with_extension("kept"), raft.with_extension("new"));
    std::fs::rename(&raft, &kept).unwrap();
    std::fs::create_dir(&fresh).unwrap();
    let refused = recover(&options).await.expect_err("half-way");
    assert!(matches!(refused, RecoverError::Interrupted { .. }), "{refused}");
    assert!(!raft.exists(), "nothing was made");
    std::fs::remove_dir(&fresh).unwrap();
    std::fs::rename(&kept, &raft).unwrap();
    let done = recover(&options).await.unwrap();
    assert!(done.written && done.to.counter == dry.from.counter + 1);
    rig.restart(1).await.unwrap();
    rig.node(1).ready(PATIENCE).await.unwrap();
    let here = rig.client_of(Role::Operator, &[rig.address(1)]);
    here.get_kept().await;

    // The old majority comes back: it must neither elect the survivor nor be heard by it.
    rig.restart(2).await.unwrap();
    rig.restart(3).await.unwrap();
    let shell = rig.node(2).shell().clone();
    eventually("the old majority knows the survivor's refusal", || {
        shell.admission.quarantine().is_some()
            || shell.leadership.status().leader.is_some_and(|id| id != NodeId(1))
    })
    .await;
    here.put_election(&election("after"), &Default::default(), Default::default()).await.unwrap();
    let status = rig.node(1).shell().leadership.status();
    assert_eq!(status.leader, Some(NodeId(1)));
    assert_eq!(status.members.len(), 1);
}

/// Reads what was written before the recovery.
trait Kept {
    async fn get_kept(&self);
}

impl Kept for regent_rpc::client::Client {
    async fn get_kept(&self) {
        let all = self.list_elections("", Freshness::Linearizable).await.unwrap();
        assert_eq!(all.elections.len(), 1);
        assert_eq!(all.stamp.unwrap().incarnation, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn old_nodes_that_are_installed_anew_begin_no_second_cluster_beside_a_survivor() {
    let mut rig = Rig::start(3).await;
    for id in 1..=3 {
        rig.kill(id).await;
    }
    let options = RecoverOptions {
        config: rig.config_of(3),
        although_reachable: Vec::new(),
        above: 0,
        hold: None,
        reason: "a test".into(),
        by: admin(),
        dry_run: false,
    };
    recover(&options).await.unwrap();
    rig.restart(3).await.unwrap();
    rig.node(3).ready(PATIENCE).await.unwrap();
    // The lowest id of the old list would begin a cluster of all three.
    for id in [2, 1] {
        std::fs::remove_dir_all(rig.data_dir(NodeId(id))).unwrap();
        rig.restart(id).await.unwrap();
    }
    let (first, survivor) = (rig.node(1).shell().clone(), rig.node(3).shell().clone());
    eventually("the first node to see that there is a cluster", || {
        first.health.get().body().contains("incarnation 2")
    })
    .await;
    assert!(!first.consensus.is_initialized().await.unwrap());
    let status = survivor.leadership.status();
    assert_eq!((status.leader, status.members.len()), (Some(NodeId(3)), 1));
    let asked = rig.node(2).shell().hello(NodeId(3), &rig.address(3)).await.unwrap();
    assert!(matches!(asked, Welcome::NotYet(_)), "{asked:?}");
}
