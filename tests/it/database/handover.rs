//! An operator asks for another primary while an application writes.

use std::time::{Duration, Instant};

use regent_core::spec::Mode;
use regent_lab::databases::SERVICE;
use regent_lab::process::{Fault, Process};

use super::load::Load;
use super::rig::Rig;

/// As an operator types it; until rows flow through the new primary and all stream from it.
async fn switch_over(rig: &Rig, load: &Load, to: usize) {
    let (name, asked) = (rig.name(to).to_string(), Instant::now());
    let out = rig.cluster.verb(&["switchover", SERVICE, "--to", &name, "--reason", "a test"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let old = (0..rig.instances().len()).find(|at| *at != to && rig_holds(load, *at));
    let first = load.resumed(asked, old).await;
    assert_eq!(first.host, to);
    assert_eq!(rig.redundant().await, to);
    load.progress(100).await;
    let operation = rig.finished().await;
    assert_eq!((operation.kind.as_str(), operation.to.as_str()), ("switchover", name.as_str()));
    assert_eq!(operation.out, "it resigned (receipt)", "{operation:?}");
    assert_eq!(operation.complete, "it holds the end of the old primary's shutdown");
}

/// Whether this host took the newest row.
fn rig_holds(load: &Load, at: usize) -> bool {
    load.writer.ledger().last_ack().is_some_and(|last| last.host == at)
}

async fn there_and_back(what: &str, mode: Mode) {
    let rig = Rig::up(what, mode).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let begun = Instant::now();
    switch_over(&rig, &load, (old + 1) % 3).await;
    switch_over(&rig, &load, old).await;
    let ledger = load.all_kept(&rig).await;
    // One connection is broken each time, and with it at most the row that was under way.
    let rows = ledger.summary();
    assert!(rows.failed + rows.unknown <= 2, "{rows:?}: {:?}", ledger.errors());
    let gap = ledger.longest_gap(begun, Instant::now()).length();
    assert!(gap < Duration::from_secs(10), "{gap:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_there_and_back_under_load_costs_a_reconnection_each() {
    there_and_back("switchover", Mode::Quorum).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_lease_mode_a_switchover_loses_no_row_either() {
    there_and_back("lease-switchover", Mode::Lease).await;
}

/// The process that writes checkpoints.
fn checkpointer(rig: &Rig, at: usize) -> Process {
    let is_it = |process: &Process| {
        let title = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        String::from_utf8_lossy(&title).contains("checkpointer")
    };
    rig.postgres(at).into_iter().find(is_it).expect("a server has one")
}

/// A stop that has to write a lot first takes longer than any lease: it is written before the primary
/// is fenced, while it serves.
async fn a_checkpoint_without_an_end(what: &str, mode: Mode) {
    const LONGER_THAN_A_LEASE: Duration = Duration::from_secs(7);
    let rig = Rig::up(what, mode).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let slow = checkpointer(&rig, old);
    assert!(slow.signal(Fault::Freeze).unwrap());
    let asked = Instant::now();
    let announce = || {
        let out = rig.cluster.verb(&["switchover", SERVICE, "--reason", "a long checkpoint"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    announce();
    while asked.elapsed() < LONGER_THAN_A_LEASE {
        load.progress(20).await;
        let operation = rig.operations().await.pop().expect("it is announced");
        assert_eq!((operation.phase.as_str(), operation.over), ("prepare", false));
    }
    // Giving it up costs nothing: nobody was told anything.
    let out = rig.cluster.verb(&["operations", "abort", SERVICE, "--reason", "it takes too long"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(rig.operations().await.pop().expect("it is there").phase, "given-up");
    load.progress(20).await;
    announce();
    load.progress(20).await;
    let gap = load.writer.ledger().longest_gap(asked, Instant::now()).length();
    assert!(gap < Duration::from_secs(2), "rows flow meanwhile: {gap:?}");

    let thawed = Instant::now();
    assert!(slow.signal(Fault::Thaw).unwrap());
    let first = load.resumed(thawed, Some(old)).await;
    assert_ne!(first.host, old);
    let operation = rig.finished().await;
    assert_eq!((operation.kind.as_str(), operation.out.as_str()), RESIGNED, "{operation:?}");
    load.progress(20).await;
    load.all_kept(&rig).await;
}

const RESIGNED: (&str, &str) = ("switchover", "it resigned (receipt)");

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_takes_longer_than_the_lease_fences_nobody() {
    a_checkpoint_without_an_end("long-checkpoint", Mode::Quorum).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_in_lease_mode_where_the_end_of_the_lease_would_lose_rows() {
    a_checkpoint_without_an_end("lease-long-checkpoint", Mode::Lease).await;
}
