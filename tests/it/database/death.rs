//! The primary's processes end: PostgreSQL alone, its whole host, its host and the leader at once.

use std::time::{Duration, Instant};

use regent_core::spec::Mode;
use regent_lab::process::Fault;

use super::load::Load;
use super::rig::{Rig, TTL, bound};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_postmaster_is_proven_stopped_and_loses_no_row() {
    let rig = Rig::up("postmaster", Mode::Quorum).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;

    let fault = Instant::now();
    rig.kill_postmaster(old).await;
    let first = load.resumed(fault, None).await;
    assert!(first.done - fault < Duration::from_secs(10), "{:?}", first.done - fault);
    // Nobody has to help: its agent lives.
    let new = rig.redundant().await;
    assert_ne!(new, old);
    load.progress(100).await;

    let operation = rig.finished().await;
    assert_eq!(operation.out, "it stopped (receipt)", "{operation:?}");
    assert_eq!(operation.verdict, "PrimaryProcessDead", "{operation:?}");
    assert_eq!([&operation.from, &operation.to], [rig.name(old).as_str(), rig.name(new).as_str()]);
    load.all_kept(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_gone_is_out_once_its_quorum_is_revoked_and_comes_back_as_a_standby() {
    let mut rig = Rig::up("host", Mode::Quorum).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;

    let fault = Instant::now();
    rig.kill_host(old);
    let first = load.resumed(fault, Some(old)).await;
    assert!(first.done - fault < Duration::from_secs(15), "{:?}", first.done - fault);
    load.progress(100).await;
    let new = rig.heal().await;
    assert_eq!(new, first.host, "the primary that took over stays");
    assert!(rig.seen(old).await.is_standby());
    load.progress(100).await;

    let operation = rig.finished().await;
    assert_eq!(operation.out, "its replication quorum was revoked", "{operation:?}");
    assert_eq!(operation.complete, "it holds the maximum of enough recruits", "{operation:?}");
    assert_eq!([&operation.from, &operation.to], [rig.name(old).as_str(), rig.name(new).as_str()]);
    load.all_kept(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_dies_in_the_same_instant_as_the_primarys_host_and_no_row_is_lost() {
    let mut rig = Rig::up("leader-and-host", Mode::Quorum).await;
    let old = rig.redundant().await;
    let leader = rig.cluster.leader().await;
    let load = Load::start(&rig).await;

    let fault = Instant::now();
    rig.cluster.signal(leader, Fault::Kill);
    rig.kill_host(old);
    let first = load.resumed(fault, Some(old)).await;
    assert!(first.done - fault < Duration::from_secs(5), "{:?}", first.done - fault);
    load.progress(100).await;
    rig.heal().await;
    load.all_kept(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_lease_mode_a_host_that_is_gone_is_succeeded_after_the_lapse_within_the_bound_told() {
    let mut rig = Rig::up("lease-host", Mode::Lease).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;

    let fault = Instant::now();
    rig.kill_host(old);
    let first = load.resumed(fault, Some(old)).await;
    assert!(first.done - fault < TTL + Duration::from_secs(15), "{:?}", first.done - fault);
    load.progress(100).await;
    assert_eq!(rig.heal().await, first.host);

    let operation = rig.finished().await;
    assert_eq!(operation.out, "its armed lease lapsed", "{operation:?}");
    assert_eq!(operation.complete, "the loss bound is within the policy", "{operation:?}");
    load.kept_within(&rig, bound(&operation), fault + TTL).await;
}
