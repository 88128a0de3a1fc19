//! PostgreSQL stops where it is: connections stay open and nothing is answered.

use std::time::{Duration, Instant};

use regent_core::spec::Mode;
use regent_lab::process::{Fault, Life};

use super::load::Load;
use super::rig::Rig;
use crate::cluster::until;

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_primary_is_replaced_and_a_fresh_connection_writes_again() {
    let mut rig = Rig::up("freeze", Mode::Quorum).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;

    let fault = Instant::now();
    // Until none runs: the first process may have made another one while the list was read.
    until("all of PostgreSQL to be frozen", async || {
        let running = rig.postgres(old).into_iter().filter(|one| one.life() == Life::Running);
        running.filter(|one| one.signal(Fault::Freeze).unwrap()).count() == 0
    })
    .await;
    let first = load.resumed(fault, Some(old)).await;
    assert!(first.done - fault < Duration::from_secs(15), "{:?}", first.done - fault);
    load.progress(100).await;

    assert_eq!(rig.heal().await, first.host);
    assert!(rig.seen(old).await.is_standby());
    load.progress(100).await;
    assert_eq!(rig.finished().await.to, rig.name(first.host).as_str());
    load.all_kept(&rig).await;
}

/// Sessions of before go on, and nobody new gets in: the first process alone is frozen.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_whose_first_process_is_frozen_is_replaced_though_its_sessions_commit() {
    let mut rig = Rig::up("freeze-first", Mode::Quorum).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let first = rig.postmaster(old).await;
    let fault = Instant::now();
    first.signal(Fault::Freeze).unwrap();
    let next = load.resumed(fault, Some(old)).await;
    assert!(next.done - fault < Duration::from_secs(4), "{:?}", next.done - fault);
    assert_eq!(rig.operations().await.pop().unwrap().verdict, "PrimaryStalled");
    assert_eq!(rig.heal().await, next.host);
    load.progress(100).await;
    load.all_kept(&rig).await;
}
