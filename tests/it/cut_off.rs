//! Leases over the death and the freeze of nodes and holders, with real processes.

use std::time::Duration;

use regent_core::id::Epoch;
use regent_lab::process::Fault;
use regent_rpc::client::{CampaignOptions, Session, SessionOptions};
use regent_rpc::convert::common::Freshness;

use crate::cluster::{Cluster, election, until};

async fn short_session(cluster: &Cluster) -> Session {
    let least = cluster.connections.status(1).await.unwrap().least_ttl_ms;
    let options = SessionOptions { ttl: Duration::from_millis(least), ..SessionOptions::default() };
    Session::open(&cluster.client("client"), options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_at_the_smallest_ttl_survives_the_death_of_the_leader() {
    let mut cluster = Cluster::up("lease-kill", 3).await;
    let session = short_session(&cluster).await;
    let lease =
        session.campaign(&election("job"), b"me", CampaignOptions::default()).await.unwrap();
    for _ in 0..3 {
        let leader = cluster.leader().await;
        cluster.kill(leader).await;
        until("another leader", async || cluster.leader().await != leader).await;
        cluster.restart(leader);
        cluster.ready().await;
        assert!(lease.is_held(), "the lease was lost with leader {leader}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_at_the_smallest_ttl_survives_the_freeze_of_the_leader() {
    let cluster = Cluster::up("lease-freeze", 3).await;
    let session = short_session(&cluster).await;
    let lease =
        session.campaign(&election("job"), b"me", CampaignOptions::default()).await.unwrap();
    let leader = cluster.leader().await;
    cluster.signal(leader, Fault::Freeze);
    until("another leader", async || cluster.leader().await != leader).await;
    assert!(lease.is_held(), "the lease was lost with the frozen leader");
    cluster.signal(leader, Fault::Thaw);
    cluster.ready().await;
    assert!(lease.is_held(), "the lease was lost when the old leader came back");
}

/// A leader that was frozen past the expiry of a lease must change nothing when it thaws: neither
/// renew the old holder nor expire or overrule the new one.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_frozen_leaders_term_takes_effect_after_its_leases_ran_out() {
    let cluster = Cluster::up("thaw", 3).await;
    let leader = cluster.leader().await;
    // The old holder knows only the leader that will freeze, so its renewals wait there.
    let address = cluster.lab.node(leader).unwrap().grpc.clone();
    let old_client = cluster.client_of("client", &[address]);
    let least = cluster.connections.status(1).await.unwrap().least_ttl_ms;
    let ttl = Duration::from_millis(least);
    let options = SessionOptions { ttl, ..SessionOptions::default() };
    let old = Session::open(&old_client, options.clone()).await.unwrap();
    let held = old.campaign(&election("job"), b"old", CampaignOptions::default()).await.unwrap();

    cluster.signal(leader, Fault::Freeze);
    let others: Vec<_> =
        cluster.lab.nodes.iter().filter(|n| n.id != leader).map(|n| n.grpc.clone()).collect();
    let new_client = cluster.client_of("client", &others);
    let new = Session::open(&new_client, options).await.unwrap();
    let won = new.campaign(&election("job"), b"new", CampaignOptions::default()).await.unwrap();
    // S5, seen from outside: the old one knew that it was over before the new one was told.
    assert!(!held.is_held(), "two holders at once");
    assert!(won.epoch() > held.epoch(), "S3");

    cluster.signal(leader, Fault::Thaw);
    cluster.ready().await;
    assert!(won.is_held());
    assert!(!held.is_held());
    let seen = new_client.leader(&election("job"), Freshness::Linearizable).await.unwrap();
    let holder = seen.election.unwrap().holder.unwrap();
    let epoch = holder.epoch.unwrap();
    let epoch = Epoch {
        incarnation: epoch.incarnation,
        revision: regent_core::id::Revision(epoch.revision),
    };
    assert_eq!((epoch, &holder.value[..]), (won.epoch(), &b"new"[..]));
    assert!(held.proclaim(b"late").await.is_err(), "a stale epoch proclaimed");
}
