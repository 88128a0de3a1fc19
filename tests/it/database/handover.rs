//! An operator asks for another primary while an application writes.

use std::time::{Duration, Instant};

use regent_core::spec::Mode;
use regent_lab::databases::SERVICE;

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
