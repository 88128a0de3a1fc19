//! Keeps [`ConsensusStatus`] current: at once where leadership or membership changes, ten times a
//! second for the rest, so that a busy node does not pay for it with every entry.

use std::sync::Weak;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::Instant as _;
use openraft::async_runtime::WatchReceiver as _;
use regent_core::id::{NodeId, Revision};
use tokio::sync::watch;

use crate::api::ConsensusStatus;
use crate::consensus::Inner;
use crate::runtime::Rt;
use crate::types::{revision, revision_of};

/// How old the figures that change with every entry may be.
const REFRESH: Duration = Duration::from_millis(100);

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Publishes until the node stops.
pub(crate) async fn run(inner: Weak<Inner>, out: watch::Sender<ConsensusStatus>) {
    let Some(mut changes) = inner.upgrade().map(|i| i.raft.server_metrics()) else { return };
    loop {
        let closed = tokio::time::timeout(REFRESH, changes.changed()).await;
        let Some(inner) = inner.upgrade() else { return };
        publish(&inner, &out);
        if matches!(closed, Ok(Err(_))) {
            // The engine is gone; what was just published says so. Nothing changes any more.
            return;
        }
    }
}

/// Publishes the status as it is now.
pub(crate) fn publish(inner: &Inner, out: &watch::Sender<ConsensusStatus>) {
    let now = current(inner);
    out.send_if_modified(|old| {
        let changed = *old != now;
        if changed {
            *old = now;
        }
        changed
    });
}

fn current(inner: &Inner) -> ConsensusStatus {
    let metrics = inner.raft.metrics();
    let m = metrics.borrow_watched();
    let (role, mut problem) = match &m.running_state {
        Ok(()) => (role(m.state), inner.problem()),
        Err(fatal) => ("stopped", fatal.to_string()),
    };
    let stopped = inner.machine.stopped.lock();
    if !stopped.is_empty() {
        problem.clone_from(&stopped);
    }
    let members = m.membership_config.membership();
    let voters: Vec<u64> = members.voter_ids().collect();
    let leads = m.state.is_leader() && m.running_state.is_ok();
    ConsensusStatus {
        id: NodeId(m.id),
        term: m.current_term,
        leader: m.current_leader.map(NodeId),
        is_leader: leads,
        role,
        last_log: m.last_log_index.map_or(Revision(0), revision),
        applied: *inner.machine.applied.borrow(),
        snapshot: revision_of(m.snapshot),
        members: members
            .nodes()
            .map(|(id, member)| (NodeId(*id), member.clone(), voters.contains(id)))
            .collect(),
        matched: m
            .replication
            .iter()
            .flatten()
            .map(|(id, matched)| (NodeId(*id), revision_of(*matched)))
            .collect(),
        storage_problem: problem,
        trouble: inner.trouble(),
        joint: members.get_joint_config().len() > 1,
    }
}

/// Time since an instant of the engine's clock.
pub(crate) fn millis_since(at: <Rt as openraft::AsyncRuntime>::Instant) -> u64 {
    let now = <Rt as openraft::AsyncRuntime>::Instant::now();
    now.saturating_duration_since(at).as_millis() as u64
}

fn role(state: ServerState) -> &'static str {
    match state {
        ServerState::Leader => "leader",
        ServerState::Follower => "follower",
        ServerState::Learner => "learner",
        ServerState::Candidate => "candidate",
        ServerState::Shutdown => "stopped",
    }
}
