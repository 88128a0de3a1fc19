//! The fencer ends or stops where it is: PostgreSQL goes with it, and no row that was promised is lost.

use std::time::Instant;

use regent_core::spec::Mode;
use regent_lab::databases::owned;
use regent_lab::process::Fault;

use super::load::Load;
use super::rig::Rig;

async fn without_its_fencer(what: &str, fault: Fault) {
    let mut rig = Rig::up(what, Mode::Quorum).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let postmaster = rig.postmaster(old).await;
    let pid = rig.seen(old).await.fencer_pid.expect("the agent has told its pid");
    let fencer = owned::if_of(&rig.cluster.lab, &rig.instances()[old], pid).expect("it lives");

    let began = Instant::now();
    assert!(fencer.signal(fault).unwrap());
    let first = load.resumed(began, Some(old)).await;
    assert!(!postmaster.is_alive(), "PostgreSQL outlives its fencer");
    load.progress(100).await;
    assert_eq!(rig.heal().await, first.host);
    assert!(rig.seen(old).await.is_standby());
    load.progress(100).await;
    load.all_kept(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_ends_with_its_killed_fencer_and_is_succeeded() {
    without_its_fencer("fencer-killed", Fault::Kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_fencer_is_noticed_ended_with_all_it_guards_and_succeeded() {
    without_its_fencer("fencer-frozen", Fault::Freeze).await;
}
