//! The agent is killed and PostgreSQL lives: the fencer keeps it for as long as the right lasts.

use std::time::{Duration, Instant};

use regent_core::spec::Mode;
use regent_lab::databases::{signal_agent, start_agent};
use regent_lab::process::Fault;

use super::load::Load;
use super::rig::{Rig, TTL, bound};
use crate::cluster::PATIENCE;

async fn kill_agent(rig: &Rig, at: usize) {
    let instance = &rig.instances()[at];
    assert!(signal_agent(instance, Fault::Kill).unwrap());
    let process = instance.process.clone().unwrap();
    assert!(process.wait_gone(PATIENCE).await, "it survived SIGKILL");
}

/// The agent does not come back: when the old primary's rows ended, and who took over.
async fn succeeded(rig: &mut Rig, load: &Load) -> Instant {
    let old = rig.redundant().await;
    let postmaster = rig.postmaster(old).await;
    let fault = Instant::now();
    kill_agent(rig, old).await;
    assert!(postmaster.wait_gone(2 * TTL).await, "PostgreSQL outlives its lease");
    let ended = Instant::now();
    let first = load.resumed(fault, Some(old)).await;
    assert!(first.done - fault < 2 * TTL + Duration::from_secs(10), "{:?}", first.done - fault);
    load.progress(100).await;
    assert_eq!(rig.heal().await, first.host);
    assert!(rig.seen(old).await.is_standby());
    ended
}

/// The agent comes back in time: nothing of PostgreSQL takes notice.
async fn adopted(what: &str, mode: Mode) {
    let mut rig = Rig::up(what, mode).await;
    let primary = rig.redundant().await;
    let (epoch, postmaster) = (rig.role().await.epoch, rig.postmaster(primary).await);
    let load = Load::start(&rig).await;
    let operations = rig.operations().await.len();

    let fault = Instant::now();
    kill_agent(&rig, primary).await;
    start_agent(&mut rig.cluster.lab, primary).unwrap();
    assert_eq!(rig.redundant().await, primary);
    // Longer than what the killed agent had left in the fencer.
    load.resumed(fault + TTL, None).await;
    let now = Instant::now();

    assert_eq!(rig.postmaster(primary).await, postmaster, "PostgreSQL was started again");
    assert_eq!(rig.role().await.epoch, epoch, "somebody was promoted");
    assert_eq!(rig.operations().await.len(), operations, "a role change was begun");
    let ledger = load.all_kept(&rig).await;
    let gap = ledger.longest_gap(fault, now).length();
    assert!(gap < Duration::from_secs(1), "the application felt it: {gap:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_comes_back_in_time_adopts_postgresql_as_it_runs() {
    adopted("adopt", Mode::Quorum).await;
}

/// E2: the fencer never stopped, so the new start goes on with the lease of the one before.
#[tokio::test(flavor = "multi_thread")]
async fn in_lease_mode_an_agent_that_comes_back_in_time_keeps_its_lease() {
    adopted("adopt-lease", Mode::Lease).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_agent_postgresql_is_ended_by_the_fencer_and_succeeded() {
    let mut rig = Rig::up("orphan", Mode::Quorum).await;
    let load = Load::start(&rig).await;
    succeeded(&mut rig, &load).await;
    load.all_kept(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_lease_mode_postgresql_without_its_agent_ends_with_the_lease_and_is_succeeded() {
    let mut rig = Rig::up("orphan-lease", Mode::Lease).await;
    let load = Load::start(&rig).await;
    let ended = succeeded(&mut rig, &load).await;
    let operation = rig.finished().await;
    assert_eq!(operation.out, "its armed lease lapsed", "{operation:?}");
    load.kept_within(&rig, bound(&operation), ended).await;
}
