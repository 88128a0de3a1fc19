//! Election, replication, reads, restarts and snapshots of whole nodes.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::StreamExt;
use regent_core::id::NodeId;

use super::mesh::{Cluster, PATIENCE, done, note, until};
use crate::api::{ConsensusError, RpcKind};
use crate::store::sim_disk::SimDisk;
use crate::store::vfs::Vfs;
use crate::{ConsensusConfig, StartError};

const SECOND: Duration = Duration::from_secs(1);

fn plain(_: &mut ConsensusConfig) {}

#[tokio::test(start_paused = true)]
async fn three_nodes_elect_a_leader_and_end_with_equal_states() {
    let cluster = Cluster::of(3, plain).await;
    let mut last = Default::default();
    for i in 0..50 {
        last = cluster.write(&format!("w{i}")).await;
    }
    cluster.converge(last).await;
    for id in 1..=3 {
        let seen = cluster.sinks[&id].applied.lock().clone();
        assert!(seen.windows(2).all(|w| w[1] == w[0].next()), "{id} heard {seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_refuses_a_write_and_a_read_with_the_leaders_address() {
    let cluster = Cluster::of(3, plain).await;
    let leader = cluster.leader().await;
    let other = (1..=3).find(|id| *id != leader).unwrap();
    until("the follower knows", || cluster.status(other).leader == Some(NodeId(leader))).await;
    for error in [
        cluster.node(other).propose(note("x"), SECOND).await.unwrap_err(),
        cluster.node(other).read_index(SECOND).await.unwrap_err(),
    ] {
        let ConsensusError::NotLeader { leader: Some((id, member)) } = error else {
            panic!("{error}");
        };
        assert_eq!((id, member.address), (NodeId(leader), format!("127.0.0.1:{}", 7000 + leader)));
    }
}

#[tokio::test(start_paused = true)]
async fn many_callers_are_answered_and_one_too_many_is_refused() {
    let cluster = Cluster::of(3, |c| c.max_proposals = 100).await;
    let node = cluster.node(cluster.leader().await);
    let calls = (0..101).map(|i| {
        let node = node.clone();
        async move { node.propose(note(&format!("{i}")), SECOND).await }
    });
    let results = futures::future::join_all(calls).await;
    let refused = results.iter().filter(|r| matches!(r, Err(ConsensusError::Overloaded))).count();
    assert_eq!(refused, 1);
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_cut_off_leader_gives_no_read_and_no_write_and_its_successor_has_all_that_was_acknowledged()
 {
    let cluster = Cluster::of(3, plain).await;
    let old = cluster.leader().await;
    let acked = cluster.write("before").await;
    cluster.isolate(old);
    let lost = cluster.node(old).propose(note("lost"), SECOND).await.unwrap_err();
    assert!(matches!(lost, ConsensusError::Unknown | ConsensusError::NoQuorum), "{lost}");
    let read = cluster.node(old).read_index(SECOND).await.unwrap_err();
    assert!(matches!(read, ConsensusError::NoQuorum), "{read}");
    // It still calls itself leader: that is why nothing is decided by it.
    assert!(cluster.status(old).is_leader);
    until("another leads", || (1..=3).any(|id| id != old && cluster.status(id).is_leader)).await;
    let late = cluster.node(old).propose(note("late"), SECOND).await.unwrap_err();
    assert!(matches!(late, ConsensusError::NoQuorum), "{late}");
    let new = cluster.leader().await;
    assert_ne!(new, old);
    let read = cluster.node(new).read_index(SECOND).await.unwrap();
    assert!(read >= acked);
    let last = cluster.write("after").await;
    cluster.heal();
    cluster.converge(last).await;
}

#[tokio::test(start_paused = true)]
async fn every_acknowledged_write_survives_power_cuts_of_all_nodes() {
    let mut cluster = Cluster::of(3, plain).await;
    let mut last = Default::default();
    for round in 0..10_u64 {
        for i in 0..5 {
            last = cluster.write(&format!("{round}.{i}")).await;
        }
        for id in 1..=3 {
            cluster.crash(id, round * 3 + id);
        }
        for id in 1..=3 {
            cluster.start(id).await;
        }
        let leader = cluster.leader().await;
        let read = cluster.node(leader).read_index(SECOND).await.unwrap();
        assert!(read >= last, "{last} was acknowledged, the log ends at {read}");
        cluster.converge(read).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stopped_cleanly_comes_back_with_what_it_had_applied() {
    let mut cluster = Cluster::of(3, plain).await;
    let last = cluster.write("x").await;
    cluster.converge(last).await;
    cluster.stop(2).await;
    cluster.start(2).await;
    cluster.node(2).wait_applied(last, PATIENCE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_away_for_long_is_sent_a_snapshot() {
    let mut cluster = Cluster::of(3, |c| {
        c.snapshot_after_entries = 50;
        c.keep_entries = 10;
    })
    .await;
    let leader = cluster.leader().await;
    let away = (1..=3).find(|id| *id != leader).unwrap();
    cluster.crash(away, 1);
    let mut last = Default::default();
    // The log goes back to the snapshot before the newest one.
    for round in 0..2 {
        let before = cluster.status(leader).snapshot;
        for i in 0..120 {
            last = cluster.write(&format!("w{round}.{i}")).await;
        }
        until("a snapshot", || cluster.status(leader).snapshot.0 > before.0 + 50).await;
    }
    tokio::time::sleep(SECOND).await;
    cluster.start(away).await;
    cluster.converge(last).await;
    let installed = cluster.sinks[&away].installed.lock().clone();
    assert!(installed.iter().any(|r| r.0 > 50), "{installed:?}");
    // And it starts from that snapshot by itself.
    cluster.crash(away, 2);
    cluster.start(away).await;
    assert!(cluster.sinks[&away].installed.lock()[0].0 > 50);
    let last = cluster.write("again").await;
    cluster.converge(last).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_newest_snapshot_is_damaged_starts_from_the_one_before_and_makes_a_new_one() {
    let mut cluster = Cluster::of(1, |c| {
        c.snapshot_after_entries = 50;
        c.keep_entries = 1;
    })
    .await;
    let mut last = Default::default();
    for round in 0..4 {
        let before = cluster.status(1).snapshot;
        for i in 0..60 {
            last = cluster.write(&format!("w{round}.{i}")).await;
        }
        until("a snapshot", || cluster.status(1).snapshot > before).await;
        // The log is purged as far as it may be.
        tokio::time::sleep(SECOND).await;
    }
    cluster.crash(1, 1);
    let (disk, dir) = (cluster.disks[&1].clone(), Path::new("/data/snapshots"));
    let names = disk.list(dir).unwrap();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(disk.flip_bit(&dir.join(&names[1]), 100, 3));
    cluster.start(1).await;
    assert!(cluster.sinks[&1].installed.lock()[0] < last, "the newest one was not read");
    cluster.node(1).wait_applied(last, PATIENCE).await.unwrap();
    let now = disk.list(dir).unwrap();
    assert_eq!(now.len(), 2, "{now:?}");
    assert!(!now.contains(&names[1]), "the damaged one went when another took its place");
    // And the others go on from there.
    let last = cluster.write("after").await;
    cluster.crash(1, 2);
    cluster.start(1).await;
    cluster.node(1).wait_applied(last, PATIENCE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_can_be_asked_for() {
    let cluster = Cluster::of(1, plain).await;
    let last = cluster.write("x").await;
    cluster.node(1).snapshot_now().await.unwrap();
    until("it shows", || cluster.status(1).snapshot >= last).await;
}

#[tokio::test(start_paused = true)]
async fn hostile_bytes_are_refused_and_the_node_goes_on() {
    let cluster = Cluster::of(3, plain).await;
    let node = cluster.node(1);
    for body in [&[][..], &[0], &[1], &[1, 255, 255, 255, 255], &[1; 100], &[7; 9]] {
        let body = Bytes::copy_from_slice(body);
        for kind in [RpcKind::Vote, RpcKind::PreVote, RpcKind::Append, RpcKind::TransferLeader] {
            let _ = node.handle(kind, body.clone()).await;
        }
        node.handle_snapshot(body.clone(), body.to_vec()).await.unwrap_err();
        let one = futures::stream::iter([body]).boxed();
        let _: Vec<_> = node.handle_append_stream(one).collect().await;
    }
    let last = cluster.write("still here").await;
    cluster.converge(last).await;
}

#[tokio::test(start_paused = true)]
async fn an_inconsistent_profile_is_refused_by_name() {
    let mut config = ConsensusConfig::new(NodeId(1), "/data", regent_core::timing::Timing::LAN);
    config.timing.election_min_ms = 60;
    let mesh = Cluster::new(plain);
    let error = super::mesh::start_alone(&mesh, config, &SimDisk::new()).await.err().unwrap();
    assert!(matches!(error, StartError::Timing(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_reply_says_at_which_revision_it_took_effect() {
    let cluster = Cluster::of(1, plain).await;
    let first = done(&cluster.node(1).propose(note("a"), SECOND).await.unwrap());
    let second = done(&cluster.node(1).propose(note("b"), SECOND).await.unwrap());
    assert_eq!(second, first.next());
    assert_eq!(cluster.node(1).state().read().revision(), second);
}
