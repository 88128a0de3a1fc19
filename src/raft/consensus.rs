//! The [`Consensus`] handle: everything the rest of Regent may ask of Raft.
//!
//! It must never let an `openraft` type out: whoever instantiates openraft's generics compiles all
//! of it, and a bump of its version must stay inside this crate. This file starts and stops a node,
//! proposes and waits; `serve` answers other nodes, `members` changes the membership, `reads` makes
//! rounds for linearizable reads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime as _;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, ForwardToLeader, RaftError};
use openraft::impls::ProgressResponder;
use parking_lot::{Mutex, RwLock};
use rand::Rng as _;
use regent_core::id::{NodeId, Revision};
use regent_core::reply::Reply;
use regent_core::state::State;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use crate::api::{ConsensusError, ConsensusStatus, Sink, Transport};
use crate::config::{ConsensusConfig, RunMode, StartError};
use crate::followers::Followers;
use crate::held::Held;
use crate::log_store::LogStore;
use crate::machine::{Machine, Shared, Snapshots};
use crate::network::Links;
use crate::reads::{self, Reader};
use crate::runtime::Rt;
use crate::store::figures::LogFigures;
use crate::store::snapshot::SnapshotDir;
use crate::store::vfs::Vfs;
use crate::store::wal::{Presence, Wal, WalOptions};
use crate::store::writer::{Pause, RETRY_PAUSE, Writer};
use crate::store::{LOG_DIR, SNAPSHOT_DIR};
use crate::types::{Membership, Payload, Raft, SnapshotMeta, Types};
use crate::{keeper, status, wire};

/// A running consensus node; clones share it.
#[derive(Clone)]
pub struct Consensus {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: ConsensusConfig,
    pub raft: Raft,
    pub log: LogStore,
    pub followers: Arc<Followers>,
    pub machine: Arc<Shared>,
    pub status: watch::Receiver<ConsensusStatus>,
    pub votes_allowed: AtomicBool,
    /// What the disk held when this node started.
    pub held_at_start: Held,
    /// Held while a membership change is under way, so that two do not interleave.
    pub membership: tokio::sync::Mutex<()>,
    proposals: Semaphore,
    reads: mpsc::Sender<Reader>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// openraft's settings for ours. Refused when they contradict each other.
fn engine_config(config: &ConsensusConfig) -> Result<openraft::Config, StartError> {
    config.timing.check()?;
    let timing = &config.timing;
    openraft::Config {
        cluster_name: "regent".into(),
        heartbeat_interval: timing.heartbeat_ms,
        election_timeout_min: timing.election_min_ms,
        election_timeout_max: timing.election_max_ms,
        // A node that was cut off comes back without a higher term that would unseat the leader.
        enable_pre_vote: Some(true),
        // A leader that restarts has lost the tail of its applied state: it must be elected anew.
        enable_leader_restore: Some(false),
        // A follower that lost acknowledged entries is broken; silence about it loses data. The
        // engine only asserts it in debug builds; `followers` enforces it.
        allow_log_reversion: Some(false),
        // A leader cut off from its quorum goes quiet now and then, so that those who hear it
        // but cannot help it may elect another (openraft #2080).
        quorum_loss_probe_interval: Some(2 * timing.election_max_ms),
        // A member that comes back is tried again at once, then less and less often.
        backoff: "10ms 20ms 40ms ..500ms".into(),
        // Snapshots and purges are decided by bytes, in `keeper`.
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        // A follower further behind than the log we keep needs a snapshot; up to there, log.
        replication_lag_threshold: config.keep_entries.max(1_000),
        install_snapshot_timeout: config.snapshot_timeout.as_millis() as u64,
        removed_leader_step_down: openraft::StepDownPolicy::After(timing.election_min_ms),
        enable_elect: config.votes_allowed,
        ..Default::default()
    }
    .validate()
    .map_err(|e| StartError::Config(e.to_string()))
}

/// Opens the log and starts its driver. Without a log it makes one only where `presence` allows.
pub(crate) fn open_log(
    config: &ConsensusConfig,
    vfs: &Arc<dyn Vfs>,
    presence: Presence,
) -> Result<LogStore, StartError> {
    let storage = |e: String| StartError::Storage(e);
    let options =
        WalOptions { segment_bytes: config.segment_bytes, salt: Rt::thread_rng().next_u64() };
    let (wal, recovered) = Wal::open_as(vfs.clone(), &config.dir.join(LOG_DIR), options, presence)
        .map_err(|e| storage(status::chain(&e)))?;
    if recovered.cut_bytes > 0 {
        tracing::warn!(bytes = recovered.cut_bytes, "the log ended in an unfinished write; cut it");
    }
    let writer = match config.mode {
        RunMode::Threads => Writer::spawn_thread(wal).map_err(|e| storage(e.to_string()))?,
        RunMode::Inline { flush_min_us, flush_max_us } => {
            let (writer, driver) = Writer::task(wal, move |pause| async move {
                match pause {
                    Pause::Sync if flush_max_us == 0 => {}
                    Pause::Sync => {
                        let spread = flush_max_us - flush_min_us + 1;
                        let us = flush_min_us + Rt::thread_rng().next_u64() % spread;
                        Rt::sleep(Duration::from_micros(us)).await;
                    }
                    Pause::Retry => Rt::sleep(RETRY_PAUSE).await,
                }
            });
            drop(Rt::spawn(driver));
            writer
        }
    };
    LogStore::new(writer, recovered).map_err(|e| storage(e.to_string()))
}

/// Reads the newest snapshot, or begins with an empty state.
fn open_machine(
    config: &ConsensusConfig,
    vfs: &Arc<dyn Vfs>,
    sink: Arc<dyn Sink>,
) -> Result<Machine, StartError> {
    let storage = |e: io::Error| StartError::Storage(e.to_string());
    let mut snapshots =
        SnapshotDir::open(vfs.clone(), &config.dir.join(SNAPSHOT_DIR)).map_err(storage)?;
    let loaded = snapshots.load_kept().map_err(storage)?;
    for message in &loaded.refused {
        tracing::warn!("{message}");
    }
    let (mut last, mut membership, mut state) = (None, Membership::default(), State::default());
    if let Some(stored) = loaded.newest {
        let meta: SnapshotMeta =
            wire::decode(&stored.meta).map_err(|e| StartError::Snapshot(e.to_string()))?;
        state = State::decode_snapshot(&stored.data)
            .map_err(|e| StartError::Snapshot(status::chain(&e)))?;
        (last, membership) = (meta.last_log_id, meta.last_membership);
    }
    let fallback = match loaded.fallback {
        Some(meta) => {
            let meta: SnapshotMeta =
                wire::decode(&meta).map_err(|e| StartError::Snapshot(e.to_string()))?;
            meta.last_log_id
        }
        None => None,
    };
    let applied = watch::Sender::new(state.revision());
    sink.installed(&state);
    let shared = Shared {
        state: Arc::new(RwLock::new(state)),
        sink,
        applied,
        snapshots: Mutex::new(Snapshots { dir: snapshots, newest: last, fallback }),
        stopped: Mutex::default(),
        problem: Mutex::default(),
    };
    Ok(Machine { shared: Arc::new(shared), last, membership })
}

impl Consensus {
    /// Opens the store, loads the newest snapshot, replays the committed log and joins the cluster.
    /// [`Sink::installed`] is called with the snapshot's state before anything is applied.
    ///
    /// # Errors
    /// [`StartError`] names the setting or the file that is wrong.
    pub async fn start(
        config: ConsensusConfig,
        transport: Arc<dyn Transport>,
        vfs: Arc<dyn Vfs>,
        sink: Arc<dyn Sink>,
    ) -> Result<Self, StartError> {
        let engine = engine_config(&config)?;
        let presence = if config.has_log { Presence::Required } else { Presence::Optional };
        let log = open_log(&config, &vfs, presence)?;
        let machine = open_machine(&config, &vfs, sink)?;
        log.check_covered(machine.last).map_err(|e| StartError::Storage(e.to_string()))?;
        // The snapshot may be ahead of the log that it replaces.
        let held_at_start = log.opened_with(machine.last);
        let shared = machine.shared.clone();
        let followers = Arc::new(Followers::default());
        let links = Links {
            transport,
            followers: followers.clone(),
            stall: Duration::from_millis(2 * config.timing.election_max_ms),
            snapshot_timeout: config.snapshot_timeout,
        };
        let raft = Raft::new(config.id.0, Arc::new(engine), links, log.clone(), machine)
            .await
            .map_err(|e| StartError::Engine(e.to_string()))?;

        let (status_tx, status) = watch::channel(ConsensusStatus::default());
        let (reads, waiting) = mpsc::channel(config.max_proposals);
        let inner = Arc::new(Inner {
            votes_allowed: AtomicBool::new(config.votes_allowed),
            held_at_start,
            membership: tokio::sync::Mutex::default(),
            proposals: Semaphore::new(config.max_proposals),
            tasks: Mutex::default(),
            config,
            raft,
            log,
            followers,
            machine: shared,
            status,
            reads,
        });
        status::publish(&inner, &status_tx);
        let tasks = vec![
            Rt::spawn(status::run(Arc::downgrade(&inner), status_tx)),
            Rt::spawn(reads::run(Arc::downgrade(&inner), waiting)),
            Rt::spawn(keeper::run(Arc::downgrade(&inner))),
        ];
        *inner.tasks.lock() = tasks;
        Ok(Self { inner })
    }

    /// The replicated state. Hold the lock briefly: applying waits for it.
    pub fn state(&self) -> Arc<RwLock<State>> {
        self.inner.machine.state.clone()
    }

    /// What consensus looks like from this node. Role, leader, term and members are current at
    /// once; the rest within 100 ms.
    pub fn status(&self) -> watch::Receiver<ConsensusStatus> {
        self.inner.status.clone()
    }

    /// What the log has done since the node started.
    pub fn log_figures(&self) -> LogFigures {
        self.inner.log.figures()
    }

    /// The last applied revision, current at once.
    pub fn applied(&self) -> watch::Receiver<Revision> {
        self.inner.machine.applied.subscribe()
    }

    /// Proposes one encoded `Entry`; answers when it is applied here. Entries of concurrent callers
    /// are written, flushed and sent together.
    ///
    /// # Errors
    /// [`ConsensusError::Unknown`] after `deadline`: it may still take effect. All others: it has
    /// not and will not.
    pub async fn propose(&self, entry: Bytes, deadline: Duration) -> Result<Reply, ConsensusError> {
        self.inner.check_storage()?;
        let _permit = self.inner.proposals.try_acquire().map_err(|_| ConsensusError::Overloaded)?;
        let (responder, answer) = ProgressResponder::complete_only();
        let raft = &self.inner.raft;
        let work = async {
            raft.client_write_ff(Payload(entry), Some(responder)).await.map_err(stopped)?;
            match answer.await {
                Ok(Ok(written)) => Ok(written.data.0),
                Ok(Err(error)) => Err(refused(self.inner.config.id, error)),
                // The engine dropped the request unanswered: it is stopping.
                Err(_) => Err(ConsensusError::Unknown),
            }
        };
        tokio::time::timeout(deadline, work).await.unwrap_or(Err(ConsensusError::Unknown))
    }

    /// A revision that covers everything acknowledged before this call (ReadIndex with a round
    /// among a quorum; callers that arrive before the next round starts share it). Leader only.
    ///
    /// # Errors
    /// [`ConsensusError::NotLeader`] with a hint, or [`ConsensusError::NoQuorum`].
    pub async fn read_index(&self, deadline: Duration) -> Result<Revision, ConsensusError> {
        self.inner.check_storage()?;
        reads::ask(&self.inner.reads, deadline).await
    }

    /// On the leader: time since a quorum last acknowledged it, in milliseconds.
    pub fn quorum_ack_age_ms(&self) -> Option<u64> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leads = metrics.state.is_leader() && metrics.running_state.is_ok();
        if leads && metrics.membership_config.voter_ids().take(2).count() == 1 {
            // It is the quorum, and nobody acknowledges anything to it.
            return Some(0);
        }
        metrics.last_quorum_acked.filter(|_| leads).map(|at| status::millis_since(*at))
    }

    /// Waits until `revision` is applied here.
    ///
    /// # Errors
    /// [`ConsensusError::Unknown`] when it was not within `deadline`.
    pub async fn wait_applied(
        &self,
        revision: Revision,
        deadline: Duration,
    ) -> Result<(), ConsensusError> {
        let mut applied = self.inner.machine.applied.subscribe();
        let reached = applied.wait_for(|at| *at >= revision);
        match tokio::time::timeout(deadline, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ConsensusError::Stopped("applying has ended".into())),
            Err(_) => Err(ConsensusError::Unknown),
        }
    }

    /// Stops consensus and waits for its tasks and the last flush. Afterwards every call fails.
    pub async fn shutdown(&self) {
        for task in std::mem::take(&mut *self.inner.tasks.lock()) {
            task.abort();
        }
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!("consensus did not end cleanly: {error}");
        }
        let log = self.inner.log.clone();
        if let Err(error) = Rt::spawn_blocking(move || log.close()).await {
            tracing::warn!("the log did not close cleanly: {error}");
        }
    }
}

impl Inner {
    /// What is wrong with storage; empty when it is well.
    pub(crate) fn problem(&self) -> String {
        let log = self.log.problem();
        if log.is_empty() { self.machine.problem.lock().clone() } else { log }
    }

    /// What is wrong and stops nothing; empty when all is well.
    pub(crate) fn trouble(&self) -> String {
        let (log, followers) = (self.log.trouble(), self.followers.trouble());
        if log.is_empty() || followers.is_empty() {
            return log + &followers;
        }
        format!("{followers}; {log}")
    }

    /// Refuses what would have to be written while the log cannot.
    pub(crate) fn check_storage(&self) -> Result<(), ConsensusError> {
        let problem = self.log.problem();
        if problem.is_empty() { Ok(()) } else { Err(ConsensusError::Storage(problem)) }
    }
}

/// The engine has stopped for good.
pub(crate) fn stopped(error: Fatal<Types>) -> ConsensusError {
    ConsensusError::Stopped(error.to_string())
}

/// Somebody else leads, or nobody, or the quorum is lost.
pub(crate) fn forwarded(me: NodeId, to: ForwardToLeader<Types>) -> ConsensusError {
    if to.reason == ForwardReason::LeaseExpired {
        return ConsensusError::NoQuorum;
    }
    let leader = to.leader_id.map(NodeId).zip(to.leader_node).filter(|(id, _)| *id != me);
    ConsensusError::NotLeader { leader }
}

/// Why a write was not done.
pub(crate) fn refused(me: NodeId, error: ClientWriteError<Types>) -> ConsensusError {
    match error {
        ClientWriteError::ForwardToLeader(to) => forwarded(me, to),
        // It was in this node's log, which another leader cut; it may have committed elsewhere.
        ClientWriteError::LogEntryDiscarded(_) => ConsensusError::Unknown,
        ClientWriteError::ChangeMembershipError(e) => ConsensusError::Membership(e.to_string()),
        ClientWriteError::PreconditionFailed(e) => ConsensusError::Membership(e.to_string()),
    }
}

/// [`refused`], or the engine has stopped.
pub(crate) fn failed(
    me: NodeId,
    error: RaftError<Types, ClientWriteError<Types>>,
) -> ConsensusError {
    match error {
        RaftError::APIError(e) => refused(me, e),
        RaftError::Fatal(e) => stopped(e),
    }
}
