//! All coordinators are gone at once: what the primary may go on doing is a matter of its mode.

use std::time::{Duration, Instant};

use regent_core::spec::Mode;
use regent_lab::databases::SERVICE;
use regent_lab::process::Fault;

use super::load::Load;
use super::rig::{Rig, TTL};
use crate::cluster::until;

/// Several times as long as a lease.
const HOLD: Duration = Duration::from_secs(10);

fn kill_coordinators(rig: &Rig, which: std::ops::RangeInclusive<u64>) {
    for id in which {
        rig.cluster.signal(id, Fault::Kill);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_coordinators_a_quorum_primary_goes_on_for_as_long_as_its_standbys_confirm() {
    let mut rig = Rig::up("blind-quorum", Mode::Quorum).await;
    let primary = rig.redundant().await;
    let (epoch, postmaster) = (rig.role().await.epoch, rig.postmaster(primary).await);
    let load = Load::start(&rig).await;

    let fault = Instant::now();
    // A majority, so that the one that is left answers and can promise nothing; then that one too.
    kill_coordinators(&rig, 1..=2);
    // The time itself is what is tried: rows must flow through all of it.
    let mut last = fault;
    for (what, outage) in [("without a majority", HOLD / 2), ("without any", HOLD)] {
        until(&format!("rows through all of the time {what}"), async || {
            last = load.writer.ledger().last_ack().map_or(last, |ack| ack.done);
            last >= fault + outage
        })
        .await;
        kill_coordinators(&rig, 3..=3);
    }
    assert_eq!(rig.heal().await, primary);
    load.progress(100).await;
    let back = Instant::now();

    assert_eq!(rig.role().await.epoch, epoch, "nobody was promoted");
    assert_eq!(rig.postmaster(primary).await, postmaster, "it was not even started again");
    let ledger = load.all_kept(&rig).await;
    let gap = ledger.longest_gap(fault, back).length();
    assert!(gap <= Duration::from_secs(1), "{gap:?}: {:?}", ledger.errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_coordinators_a_lease_primary_stops_within_its_ttl_and_nobody_is_promoted() {
    let mut rig = Rig::up("blind-lease", Mode::Lease).await;
    let primary = rig.redundant().await;
    let load = Load::start(&rig).await;

    let fault = Instant::now();
    // A majority: the one that is left answers and can promise nothing.
    kill_coordinators(&rig, 1..=2);
    // The time itself is what is tried: nobody may take rows at the end of it.
    tokio::time::sleep(HOLD).await;
    let last = load.writer.ledger().last_ack().unwrap().done;
    assert!(last < fault + TTL, "rows for {:?} after the last coordinator", last - fault);
    let seen = rig.view().await;
    assert!(seen.primary().is_none(), "{seen:?}");
    for (at, one) in seen.instances.iter().enumerate().filter(|(at, _)| *at != primary) {
        assert_eq!(one.role, "standby", "{} at {at}", one.id);
    }
    let back = Instant::now();
    rig.heal().await;
    load.resumed(back, None).await;
    load.progress(100).await;
    load.all_kept(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_lease_primary_does_not_end_with_its_lease_and_the_pause_can_end() {
    let mut rig = Rig::up("blind-paused", Mode::Lease).await;
    let primary = rig.redundant().await;
    let postmaster = rig.postmaster(primary).await;
    let load = Load::start(&rig).await;
    let say = |verb: &str| {
        let out = rig.cluster.verb(&[verb, SERVICE, "--reason", "a test"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    say("pause");
    until("the fencer to be disarmed", async || {
        rig.log(primary).contains("the primary does not end with its lease")
    })
    .await;

    let fault = Instant::now();
    kill_coordinators(&rig, 1..=3);
    // The time itself is what is tried: rows must flow through all of it.
    let mut last = fault;
    until("rows through all of the outage", async || {
        last = load.writer.ledger().last_ack().map_or(last, |ack| ack.done);
        last >= fault + HOLD
    })
    .await;
    assert_eq!(rig.postmaster(primary).await, postmaster, "it was started again");
    assert_eq!(rig.heal().await, primary, "nobody is promoted while it is paused");
    let back = Instant::now();
    let out = rig.cluster.verb(&["resume", SERVICE, "--reason", "a test"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    load.resumed(back, None).await;
    load.progress(100).await;
    let (_, verdict) = load.ended(&rig).await;
    assert!(verdict.twice.is_empty() && verdict.refused_but_there.is_empty(), "{verdict:?}");
}
