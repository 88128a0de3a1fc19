//! Full and failing disks under whole nodes.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::mesh::{Cluster, note, until};
use crate::ConsensusConfig;
use crate::api::ConsensusError;

const SECOND: Duration = Duration::from_secs(1);

fn small(config: &mut ConsensusConfig) {
    config.segment_bytes = 16 * 1024;
}

/// Fills the node's disk; the log runs into it within a few writes.
async fn fill(cluster: &Cluster, id: u64) {
    cluster.disks[&id].set_capacity(Some(cluster.disks[&id].used_bytes()));
    let filler = "x".repeat(900);
    for i in 0..200 {
        let node = cluster.node(id);
        let leads = cluster.status(id).is_leader;
        if !cluster.status(id).storage_problem.is_empty() {
            return;
        }
        if leads {
            let _ = node.propose(note(&format!("{filler}{i}")), SECOND).await;
        } else {
            cluster.write(&format!("{filler}{i}")).await;
        }
    }
    until("the disk is full", || !cluster.status(id).storage_problem.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_on_the_only_node_refuses_writes_at_once_and_heals_by_itself() {
    let cluster = Cluster::of(1, small).await;
    fill(&cluster, 1).await;
    let started = tokio::time::Instant::now();
    let refused = cluster.node(1).propose(note("x"), SECOND).await.unwrap_err();
    assert!(matches!(refused, ConsensusError::Storage(_)), "{refused}");
    assert_eq!(started.elapsed(), Duration::ZERO);
    cluster.disks[&1].set_capacity(None);
    until("it heals", || cluster.status(1).storage_problem.is_empty()).await;
    cluster.write("again").await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_with_a_full_disk_hands_over_and_comes_back_when_there_is_space() {
    let cluster = Cluster::of(3, small).await;
    let old = cluster.leader().await;
    let acked = cluster.write("before").await;
    fill(&cluster, old).await;
    until("another leads", || (1..=3).any(|id| id != old && cluster.status(id).is_leader)).await;
    // The others go on without it.
    let new = (1..=3).find(|id| *id != old && cluster.status(*id).is_leader).unwrap();
    let reply = cluster.node(new).propose(note("meanwhile"), SECOND).await.unwrap();
    assert!(reply.revision().unwrap() > acked);
    cluster.disks[&old].set_capacity(None);
    until("it heals", || cluster.status(old).storage_problem.is_empty()).await;
    let last = cluster.write("all three").await;
    cluster.converge(last).await;
}

#[tokio::test(start_paused = true)]
async fn a_follower_with_a_full_disk_acknowledges_nothing_and_catches_up_when_it_heals() {
    let mut cluster = Cluster::of(3, small).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let (full, down) = (others[0], others[1]);
    fill(&cluster, full).await;
    cluster.crash(down, 1);
    // One node of three can write: nothing is committed.
    let error = cluster.node(leader).propose(note("x"), SECOND).await.unwrap_err();
    assert!(matches!(error, ConsensusError::Unknown | ConsensusError::NoQuorum), "{error}");
    cluster.disks[&full].set_capacity(None);
    let last = cluster.write("healed").await;
    cluster.converge(last).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_flush_stops_the_node_for_good_and_the_others_go_on() {
    let cluster = Cluster::of(3, small).await;
    let leader = cluster.leader().await;
    cluster.disks[&leader].fail_syncs(1);
    let _ = cluster.node(leader).propose(note("x"), SECOND).await;
    until("it stops", || cluster.status(leader).role == "stopped").await;
    let error = cluster.node(leader).propose(note("y"), SECOND).await.unwrap_err();
    assert!(matches!(error, ConsensusError::Storage(_) | ConsensusError::Stopped(_)), "{error}");
    until("another leads", || (1..=3).any(|id| id != leader && cluster.status(id).is_leader)).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_acknowledges_nothing_and_refuses_every_proposal_as_storage() {
    let mut cluster = Cluster::of(1, small).await;
    let acked = cluster.write("before").await;
    cluster.disks[&1].fail_writes(1);
    let lost = cluster.node(1).propose(note("lost"), SECOND).await.unwrap_err();
    assert!(!matches!(lost, ConsensusError::Overloaded), "{lost}");
    for _ in 0..3 {
        let refused = cluster.node(1).propose(note("later"), SECOND).await.unwrap_err();
        assert!(matches!(refused, ConsensusError::Storage(_)), "{refused}");
    }
    until("it stops", || cluster.status(1).role == "stopped").await;
    assert_eq!(cluster.status(1).applied, acked, "what was not written is not applied");
    // What is read back is what was acknowledged, and the node goes on.
    cluster.crash(1, 1);
    cluster.start(1).await;
    cluster.node(1).wait_applied(acked, SECOND).await.unwrap();
    assert!(cluster.write("after").await > acked);
}

#[tokio::test(start_paused = true)]
async fn an_old_file_that_cannot_be_removed_stops_nothing_and_is_shown() {
    let cluster = Cluster::of(1, |config| {
        config.segment_bytes = 8 * 1024;
        config.snapshot_after_entries = 20;
        config.keep_entries = 1;
    })
    .await;
    cluster.disks[&1].fail_removes(u64::MAX);
    let filler = "x".repeat(900);
    for i in 0..100 {
        cluster.write(&format!("{filler}{i}")).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    until("it shows", || cluster.status(1).trouble.contains("cannot remove")).await;
    let status = cluster.status(1);
    assert_eq!((status.storage_problem.as_str(), status.is_leader), ("", true));
    assert!(status.notice().contains("cannot remove"));
    cluster.disks[&1].fail_removes(0);
    for i in 0..60 {
        cluster.write(&format!("{i}")).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    until("it heals", || cluster.status(1).trouble.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_fails_where_nobody_waits_for_it_stops_the_node_too() {
    let cluster = Cluster::of(1, |config| {
        config.snapshot_after_entries = 20;
        config.keep_entries = 1;
    })
    .await;
    // The log is purged up to the snapshot before the newest one.
    for round in 0..2 {
        let before = cluster.status(1).snapshot;
        for i in 0..25 {
            cluster.write(&format!("{round}.{i}")).await;
        }
        until("a snapshot", || cluster.status(1).snapshot > before).await;
    }
    // The next thing that is written is the purge mark, which nobody waits for.
    cluster.disks[&1].fail_syncs(1);
    until("it stops", || cluster.status(1).role == "stopped").await;
    assert!(cluster.status(1).storage_problem.contains("log"), "{:?}", cluster.status(1));
}
