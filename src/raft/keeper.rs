//! What a node does by itself, a few times a second: snapshots, purges, and getting out of the way
//! when its disk is full.

use std::sync::Weak;
use std::time::Duration;

use openraft::async_runtime::{AsyncRuntime as _, WatchReceiver as _};
use tokio::time::Instant;

use crate::api::ConsensusError;
use crate::consensus::{Consensus, Inner, stopped};
use crate::runtime::Rt;

/// How often it looks. A snapshot that is due may wait this long.
const ROUND: Duration = Duration::from_millis(200);

/// An interrupted membership change is finished after this long; one that is under way takes a
/// few rounds of the network only.
const JOINT_PATIENCE: Duration = Duration::from_secs(2);

/// A snapshot is asked for again when nothing came of it for this long.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Memory {
    joint_since: Option<Instant>,
    /// When a snapshot was asked for, and what the newest one covered then.
    snapshot_asked: Option<(Instant, Option<u64>)>,
    had_problem: bool,
    purged: Option<u64>,
}

/// Looks after the node until it stops.
pub(crate) async fn run(inner: Weak<Inner>) {
    let mut memory = Memory::default();
    loop {
        Rt::sleep(ROUND).await;
        let Some(inner) = inner.upgrade() else { return };
        if failed(&inner).await {
            return;
        }
        disk(&inner, &mut memory).await;
        compact(&inner, &mut memory).await;
        joint(&inner, &mut memory).await;
    }
}

/// A node whose log has failed stops for good: what is on its disk is in doubt until it is read
/// again from the start. The engine learns of it by itself only when it next waits for a write.
async fn failed(inner: &Inner) -> bool {
    let failed = inner.log.failed();
    if failed.is_empty() || inner.raft.metrics().borrow_watched().running_state.is_err() {
        return false;
    }
    tracing::error!("the log has failed, this node stops: {failed}");
    *inner.machine.stopped.lock() = failed;
    if let Err(error) = inner.raft.shutdown().await {
        tracing::warn!("consensus did not end cleanly: {error}");
    }
    true
}

/// A node that cannot write must not campaign; one that leads hands leadership to one that can.
async fn disk(inner: &Inner, memory: &mut Memory) {
    let problem = inner.log.problem();
    inner.apply_election_switch();
    if problem.is_empty() {
        if std::mem::take(&mut memory.had_problem) {
            tracing::info!("the log can be written again");
        }
        return;
    }
    if !memory.had_problem {
        memory.had_problem = true;
        tracing::error!("the log cannot be written, nothing is acknowledged here: {problem}");
    }
    let leads = inner.raft.server_metrics().borrow_watched().state.is_leader();
    let successor = inner.best_successor().filter(|_| leads);
    if let Some(to) = successor {
        tracing::warn!(%to, "handing leadership over because the log cannot be written here");
        if let Err(error) = inner.raft.trigger().transfer_leader(to.0).await {
            tracing::warn!("leadership was not handed over: {error}");
        }
    }
}

/// Takes a snapshot when enough has been logged since the last one, and drops the log before it,
/// as far as the snapshot before that reaches: should the newest file be damaged, that one and the
/// log behind it are the whole state. So the log holds one interval of snapshots more.
async fn compact(inner: &Inner, memory: &mut Memory) {
    let snapshot = inner.raft.metrics().borrow_watched().snapshot.map(|id| id.index());
    let (entries, bytes) = inner.log.size_above(snapshot);
    let config = &inner.config;
    let due = entries >= config.snapshot_after_entries || bytes >= config.snapshot_after_bytes;
    let asked = memory
        .snapshot_asked
        .is_some_and(|(at, was)| was == snapshot && at.elapsed() < SNAPSHOT_PATIENCE);
    if due && !asked {
        memory.snapshot_asked = Some((Instant::now(), snapshot));
        if let Err(error) = inner.raft.trigger().snapshot().await {
            tracing::warn!("no snapshot was taken: {error}");
        }
    } else if !due {
        memory.snapshot_asked = None;
    }
    let Some(snapshot) = snapshot else { return };
    let Some(fallback) = inner.machine.snapshots.lock().fallback else { return };
    let target = inner
        .log
        .purge_target(snapshot, config.keep_entries, config.keep_bytes)
        .map(|target| target.min(fallback.index()));
    if target.is_some() && target > memory.purged {
        memory.purged = target;
        if let Err(error) = inner.raft.trigger().purge_log(target.unwrap_or(0)).await {
            tracing::warn!("the log was not purged: {error}");
        }
    }
}

/// Finishes a membership change that its proposer left half-way.
async fn joint(inner: &Inner, memory: &mut Memory) {
    let (leads, joint) = {
        let metrics = inner.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let joint = metrics.membership_config.get_joint_config().len() > 1;
        (metrics.state.is_leader(), joint)
    };
    if !leads || !joint {
        memory.joint_since = None;
        return;
    }
    let since = *memory.joint_since.get_or_insert_with(Instant::now);
    if since.elapsed() < JOINT_PATIENCE {
        return;
    }
    // Held by a change that is under way: then it is not interrupted.
    let Ok(_guard) = inner.membership.try_lock() else { return };
    memory.joint_since = None;
    match inner.finish_joint_locked().await {
        Ok(()) => tracing::info!("finished an interrupted membership change"),
        Err(error) => tracing::warn!("an interrupted membership change is not finished: {error}"),
    }
}

impl Consensus {
    /// Takes a snapshot now and waits until it is on disk.
    ///
    /// # Errors
    /// [`ConsensusError::Unknown`] when it was not within a minute.
    pub async fn snapshot_now(&self) -> Result<(), ConsensusError> {
        let inner = &self.inner;
        let mut metrics = inner.raft.metrics();
        let due = metrics.borrow_watched().last_applied;
        inner.raft.trigger().snapshot().await.map_err(stopped)?;
        let saved = async {
            while metrics.borrow_watched().snapshot < due {
                if metrics.changed().await.is_err() {
                    return Err(ConsensusError::Stopped("shut down".into()));
                }
            }
            Ok(())
        };
        tokio::time::timeout(inner.config.snapshot_timeout, saved)
            .await
            .unwrap_or(Err(ConsensusError::Unknown))
    }
}
