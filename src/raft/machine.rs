//! openraft's state machine: applies committed entries to the replicated [`State`] and keeps its
//! snapshots.
//!
//! It must never apply on the way out of order or twice, and must stop the node instead of going
//! on behind a feature barrier: a skipped entry would make replicas differ (S9).

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt};
use openraft::entry::RaftEntry as _;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{AsyncRuntime as _, EntryPayload, OptionalSend};
use parking_lot::{Mutex, RwLock};
use regent_core::effect::Applied;
use regent_core::id::{NodeId, Revision};
use regent_core::state::State;
use tokio::sync::watch;

use crate::api::Sink;
use crate::runtime::Rt;
use crate::store::snapshot::SnapshotDir;
use crate::store::vfs::is_full;
use crate::types::{Answer, Entry, LogId, Membership, Snapshot, SnapshotMeta, Types, revision};
use crate::wire;

/// Entries applied under one lock: readers get in between, and a batch is answered together.
const APPLY_BATCH: usize = 256;

/// A snapshot on its way: its bytes, and the state in them where they were decoded already.
pub(crate) struct SnapshotData {
    pub bytes: Arc<Vec<u8>>,
    pub state: Option<State>,
}

/// The snapshots on disk, and what the intact ones of them cover.
pub(crate) struct Snapshots {
    pub dir: SnapshotDir,
    pub newest: Option<LogId>,
    /// What the one to fall back on covers: the log is not purged beyond it.
    pub fallback: Option<LogId>,
}

impl Snapshots {
    /// Saves a snapshot unless a newer one is there. One that is built here and one that another
    /// node sends can be under way together; the log is purged by the newer one as soon as that is
    /// saved, so the older one must not take its place as the newest file.
    fn save(&mut self, meta: &SnapshotMeta, data: &[u8]) -> io::Result<()> {
        if meta.last_log_id < self.newest {
            return Ok(());
        }
        self.dir.save(&wire::encode(meta), data)?;
        self.fallback = std::mem::replace(&mut self.newest, meta.last_log_id);
        Ok(())
    }
}

/// How long a full disk is left alone before a snapshot is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What the state machine shares with the handle.
pub(crate) struct Shared {
    pub state: Arc<RwLock<State>>,
    pub sink: Arc<dyn Sink>,
    pub applied: watch::Sender<Revision>,
    pub snapshots: Mutex<Snapshots>,
    /// Why applying stopped for good; empty while it goes on.
    pub stopped: Mutex<String>,
    /// What is wrong with the snapshot directory; empty when all is well.
    pub problem: Mutex<String>,
}

impl Shared {
    /// Saves a snapshot durably. A full disk is waited out: an error here would stop the node,
    /// which has nothing wrong with it.
    pub async fn save(self: &Arc<Self>, meta: &SnapshotMeta, data: Arc<Vec<u8>>) -> io::Result<()> {
        loop {
            let (shared, meta, data) = (self.clone(), meta.clone(), data.clone());
            let saved =
                Rt::spawn_blocking(move || shared.snapshots.lock().save(&meta, &data)).await?;
            match saved {
                Err(error) if is_full(&error) => {
                    *self.problem.lock() = format!("no space left for a snapshot: {error}");
                    Rt::sleep(RETRY_PAUSE).await;
                }
                done => {
                    self.problem.lock().clear();
                    return done;
                }
            }
        }
    }
}

/// The state machine.
pub(crate) struct Machine {
    pub shared: Arc<Shared>,
    pub last: Option<LogId>,
    pub membership: Membership,
}

/// Members of a configuration as the core records them: voters (of both halves of a joint one) and
/// learners.
fn members(membership: &Membership) -> (Vec<NodeId>, Vec<NodeId>) {
    let voters: BTreeSet<NodeId> = membership.voter_ids().map(NodeId).collect();
    let learners = membership.nodes().map(|(id, _)| NodeId(*id)).filter(|id| !voters.contains(id));
    let learners = learners.collect();
    (voters.into_iter().collect(), learners)
}

impl Machine {
    fn apply_one(&mut self, state: &mut State, entry: Entry) -> io::Result<Applied> {
        if let Some(barrier) = state.barrier() {
            let why = barrier.to_string();
            *self.shared.stopped.lock() = why.clone();
            return Err(io::Error::other(why));
        }
        let id = entry.log_id();
        let at = revision(id.index());
        let applied = match entry.payload {
            EntryPayload::Blank => state.apply_blank(at),
            EntryPayload::Normal(payload) => state.apply(at, &payload.0),
            EntryPayload::Membership(membership) => {
                self.membership = Membership::new(Some(id), membership);
                let (voters, learners) = members(&self.membership);
                state.apply_membership(at, &voters, &learners)
            }
        };
        self.last = Some(id);
        Ok(applied)
    }

    fn apply_batch(&mut self, batch: Vec<EntryResponder<Types>>) -> io::Result<()> {
        let shared = self.shared.clone();
        let mut answers = Vec::with_capacity(batch.len());
        let mut result = Ok(());
        {
            let mut state = shared.state.write();
            for (entry, responder) in batch {
                match self.apply_one(&mut state, entry) {
                    Ok(applied) => {
                        shared.sink.applied(&state, &applied);
                        answers.extend(responder.map(|r| (r, Answer(applied.reply))));
                    }
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
        }
        if let Some(last) = self.last {
            shared.applied.send_replace(revision(last.index()));
        }
        for (responder, answer) in answers {
            responder.send(answer);
        }
        result
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), io::Error> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(first) = entries.next().await {
            let mut batch = vec![first?];
            while batch.len() < APPLY_BATCH {
                match entries.next().now_or_never() {
                    Some(Some(next)) => batch.push(next?),
                    Some(None) | None => break,
                }
            }
            self.apply_batch(batch)?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        // Nothing is applied while this waits, so the copy belongs to `last`.
        let shared = self.shared.clone();
        let copy = Rt::spawn_blocking(move || shared.state.read().clone()).await;
        Builder {
            shared: self.shared.clone(),
            state: copy,
            meta: SnapshotMeta { last_log_id: self.last, last_membership: self.membership.clone() },
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let bytes = snapshot.bytes.clone();
        let state = match snapshot.state {
            Some(state) => state,
            None => Rt::spawn_blocking(move || State::decode_snapshot(&snapshot.bytes))
                .await?
                .map_err(io::Error::other)?,
        };
        self.shared.save(meta, bytes).await?;
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        let mut current = self.shared.state.write();
        *current = state;
        self.shared.sink.installed(&current);
        self.shared.applied.send_replace(current.revision());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let shared = self.shared.clone();
        let loaded =
            Rt::spawn_blocking(move || shared.snapshots.lock().dir.load_newest()).await??;
        for message in &loaded.refused {
            tracing::warn!("{message}");
        }
        let meta = match &loaded.newest {
            Some(stored) => Some(wire::decode(&stored.meta).map_err(io::Error::other)?),
            None => None,
        };
        if !loaded.refused.is_empty() {
            // What is left is the fallback, for whoever it is enough; a new one takes the place of
            // the damaged one. The state has all that was in it.
            {
                let mut snapshots = self.shared.snapshots.lock();
                snapshots.newest = meta.as_ref().and_then(|meta: &SnapshotMeta| meta.last_log_id);
                snapshots.fallback = None;
            }
            tracing::warn!("a new snapshot is made, because one is damaged");
            return self.get_snapshot_builder().await.build_snapshot().await.map(Some);
        }
        let (Some(stored), Some(meta)) = (loaded.newest, meta) else { return Ok(None) };
        let snapshot = SnapshotData { bytes: Arc::new(stored.data.into()), state: None };
        Ok(Some(Snapshot { meta, snapshot }))
    }
}

/// Encodes and saves a copy of the state.
pub(crate) struct Builder {
    shared: Arc<Shared>,
    state: io::Result<State>,
    meta: SnapshotMeta,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let gone = io::Error::other("this snapshot was already built");
        let state = std::mem::replace(&mut self.state, Err(gone))?;
        let bytes = Arc::new(Rt::spawn_blocking(move || state.encode_snapshot()).await?);
        self.shared.save(&self.meta, bytes.clone()).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: SnapshotData { bytes, state: None } })
    }
}
