//! A data directory without a running node: what it holds, and how a new life is written into an
//! empty one. For `restore` (from a backup) and `recover` (from one survivor of a lost quorum).
//!
//! It must never change the directory it reads, beyond what opening a log after a crash does, and
//! never write where a log or a snapshot already is: a mistake here is the one that cannot be
//! undone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use openraft::EntryPayload;
use openraft::entry::RaftEntry as _;
use openraft::storage::{RaftLogReader as _, RaftLogStorage as _};
use regent_core::authz::Principal;
use regent_core::command::{Command, Entry};
use regent_core::id::{Incarnation, NodeId, Revision};
use regent_core::reply::Reply;
use regent_core::state::State;
use regent_core::time::WallMs;

use crate::api::Member;
use crate::config::{ConsensusConfig, StartError};
use crate::consensus::open_log;
use crate::status::chain;
use crate::store::identity::{Identity, IdentityError, LogState, write_identity};
use crate::store::snapshot::SnapshotDir;
use crate::store::vfs::Vfs;
use crate::store::wal::Presence;
use crate::store::{LOG_DIR, SNAPSHOT_DIR};
use crate::types::{LogId, Membership, SnapshotMeta, Vote, revision};
use crate::wire;

/// What a data directory holds.
pub struct Holding {
    /// The state after every entry of the log, committed or not: what a majority acknowledged is
    /// among it as far as this disk ever heard of it, and leaving out the rest could leave out that.
    pub state: State,
    /// Last entry that is known to be committed; those after it may or may not have been
    /// acknowledged.
    pub committed: Revision,
    /// Members as of the newest membership entry; `true` for voters.
    pub members: Vec<(NodeId, Member, bool)>,
    vote: Option<Vote>,
}

/// How the state goes on.
#[derive(Clone, Debug)]
pub struct NewLife {
    /// The only voter it begins with.
    pub node: NodeId,
    /// Where that node is.
    pub member: Member,
    /// Above every one before.
    pub incarnation: Incarnation,
    /// Nothing is granted while a lease of before with a ttl of so many milliseconds may be believed in;
    /// `None`: as long as the longest ttl that the state knows, and a little at least.
    pub hold_ms: Option<u64>,
    /// For the audit chain.
    pub reason: String,
    /// For the audit chain.
    pub by: Principal,
    /// For the audit chain.
    pub at: WallMs,
}

/// Why a data directory was not founded. It must be emptied then; a node refuses to start on it.
#[derive(Debug, thiserror::Error)]
pub enum FoundError {
    /// The identity could not be written.
    #[error("identity")]
    Identity(#[from] IdentityError),
    /// Snapshot or log could not be written.
    #[error("log and snapshot")]
    Begin(#[from] StartError),
}

fn storage(error: std::io::Error) -> StartError {
    StartError::Storage(error.to_string())
}

/// Reads the directory of `config`; no node may run on it (its lock is taken meanwhile).
///
/// # Errors
/// [`StartError`] as for a node that had a log and starts on it: where there is none, none is made.
pub async fn read(config: &ConsensusConfig, vfs: Arc<dyn Vfs>) -> Result<Holding, StartError> {
    let mut log = open_log(config, &vfs, Presence::Required)?;
    let held = assemble(config, &vfs, &mut log).await;
    log.close();
    held
}

async fn assemble(
    config: &ConsensusConfig,
    vfs: &Arc<dyn Vfs>,
    log: &mut crate::log_store::LogStore,
) -> Result<Holding, StartError> {
    let mut snapshots =
        SnapshotDir::open(vfs.clone(), &config.dir.join(SNAPSHOT_DIR)).map_err(storage)?;
    let (mut last, mut membership, mut state): (Option<LogId>, _, _) =
        (None, Membership::default(), State::default());
    if let Some(stored) = snapshots.load_newest().map_err(storage)?.newest {
        let meta: SnapshotMeta =
            wire::decode(&stored.meta).map_err(|e| StartError::Snapshot(e.to_string()))?;
        state =
            State::decode_snapshot(&stored.data).map_err(|e| StartError::Snapshot(chain(&e)))?;
        (last, membership) = (meta.last_log_id, meta.last_membership);
    }
    log.check_covered(last).map_err(storage)?;
    let committed = log.read_committed().await.map_err(storage)?.max(last);
    let from = last.map_or(0, |id| id.index() + 1);
    for entry in log.try_get_log_entries(from..).await.map_err(storage)? {
        if let Some(barrier) = state.barrier() {
            return Err(StartError::Engine(barrier.to_string()));
        }
        let id = entry.log_id();
        let at = revision(id.index());
        match entry.payload {
            EntryPayload::Blank => state.apply_blank(at),
            EntryPayload::Normal(payload) => state.apply(at, &payload.0),
            EntryPayload::Membership(members) => {
                membership = Membership::new(Some(id), members);
                let voters: Vec<NodeId> = membership.voter_ids().map(NodeId).collect();
                let learners = membership.nodes().map(|(id, _)| NodeId(*id));
                let learners: Vec<NodeId> = learners.filter(|id| !voters.contains(id)).collect();
                state.apply_membership(at, &voters, &learners)
            }
        };
    }
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let nodes = membership.nodes();
    Ok(Holding {
        state,
        committed: committed.map_or(Revision(0), |id| revision(id.index())),
        members: nodes.map(|(id, m)| (NodeId(*id), m.clone(), voters.contains(id))).collect(),
        vote: log.read_vote().await.map_err(storage)?,
    })
}

impl Holding {
    /// A state from a backup, which has neither log nor members.
    pub fn of_backup(state: State) -> Self {
        let committed = state.revision();
        Self { state, committed, members: Vec::new(), vote: None }
    }

    /// Makes the empty directory `data_dir` that of a new cluster's first node: `own` identity, and
    /// in the directory of `config`, below it, what [`Holding::begin`] writes. Wherever it is
    /// interrupted, there is nothing yet, or the identity says "making" and nothing starts, or it
    /// is complete: a node that started on a part of it would be a cluster with incarnation 1.
    ///
    /// # Errors
    /// [`FoundError`]; the directory must be emptied then.
    pub async fn found(
        self,
        life: &NewLife,
        data_dir: &Path,
        own: Identity,
        config: &ConsensusConfig,
        vfs: Arc<dyn Vfs>,
    ) -> Result<Revision, FoundError> {
        let making = Identity { log: LogState::Making, ..own };
        write_identity(&*vfs, data_dir, &making)?;
        let end = self.begin(life, config, vfs.clone()).await?;
        write_identity(&*vfs, data_dir, &Identity { log: LogState::Made, ..making })?;
        Ok(end)
    }

    /// Writes the state into the empty directory of `config`, followed by the begin of a new
    /// incarnation and a membership of one. Returns the last revision.
    ///
    /// # Errors
    /// [`StartError`] when the directory is not empty, the incarnation is not above the present one,
    /// or the disk says no. The directory must be thrown away then.
    pub async fn begin(
        mut self,
        life: &NewLife,
        config: &ConsensusConfig,
        vfs: Arc<dyn Vfs>,
    ) -> Result<Revision, StartError> {
        for part in [LOG_DIR, SNAPSHOT_DIR] {
            let path = config.dir.join(part);
            if vfs.list(&path).is_ok_and(|names| !names.is_empty()) {
                return Err(StartError::Storage(format!("{} is not empty", path.display())));
            }
        }
        let command = Command::BeginIncarnation {
            incarnation: life.incarnation,
            reason: life.reason.clone(),
            hold_ms: life.hold_ms,
        };
        let entry = Entry::new(life.at, life.by.clone(), None, &command).encode();
        let begun = self.state.revision().next();
        if let Reply::Rejected(why) = self.state.apply(begun, &entry).reply {
            return Err(StartError::Engine(format!("the state refuses a new life: {why}")));
        }
        let end = begun.next();
        self.state.apply_membership(end, &[life.node], &[]);
        // A vote of the survivor stands: it may have been given to somebody who is still there.
        let own = Vote::new(1, life.node.0);
        let vote = self.vote.filter(|vote| vote.leader_id.term >= 1).unwrap_or(own);
        // Revision n is the entry at index n - 1.
        let id = LogId::new(vote.leader_id, end.0 - 1);
        let voters = BTreeSet::from([life.node.0]);
        let nodes = BTreeMap::from([(life.node.0, life.member.clone())]);
        let members = openraft::Membership::new(vec![voters], nodes)
            .map_err(|e| StartError::Engine(e.to_string()))?;
        let meta = SnapshotMeta {
            last_log_id: Some(id),
            last_membership: Membership::new(Some(id), members),
        };
        let mut snapshots =
            SnapshotDir::open(vfs.clone(), &config.dir.join(SNAPSHOT_DIR)).map_err(storage)?;
        snapshots.save(&wire::encode(&meta), &self.state.encode_snapshot()).map_err(storage)?;
        let mut log = open_log(config, &vfs, Presence::Optional)?;
        let saved = log.save_vote(&vote).await;
        log.close();
        saved.map_err(storage)?;
        Ok(end)
    }
}
