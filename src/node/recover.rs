//! `regent recover`: one surviving node of a cluster whose majority is gone for good goes on alone.
//!
//! It breaks what consensus promises (entries that only the lost majority held are lost), so it
//! shows first what would be kept, refuses while an old voter still answers, unless each one that
//! answers is named, and raises the incarnation, so that no epoch is ever granted twice and the old
//! majority, should it return, is another life of the cluster.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use regent_core::authz::Principal;
use regent_core::id::{Incarnation, NodeId, Revision};
use regent_raft::offline::{self, Holding};
use regent_raft::store::identity::{NAME, belongs, read_identity};
use regent_raft::store::quarantine;
use regent_raft::store::real_disk::RealDisk;
use regent_raft::{ConsensusConfig, StartError};
use regent_rpc::tls::{ExpectPeer, Tls};

use crate::config::{NodeConfig, RAFT_DIR};
use crate::identity::{self, IdentityError, random};
use crate::restore::{hold_ms, new_life, owed_ms};
use crate::run::{RunError, load_tls};

/// How long an old voter has to answer its port.
const REACH_TIMEOUT: Duration = Duration::from_secs(2);

/// Whom to recover, and what to override.
#[derive(Clone, Debug)]
pub struct RecoverOptions {
    /// The survivor's configuration; the node must be stopped.
    pub config: NodeConfig,
    /// Old voters that may still answer: named one by one by somebody who knows what he does.
    pub although_reachable: Vec<NodeId>,
    /// The highest incarnation counter heard of anywhere; 0: none.
    pub above: u64,
    /// Nothing is granted while a lease of before with so long a ttl may be believed in; `None`: as
    /// long as the longest one that the survivor knows, and a little at least.
    pub hold: Option<Duration>,
    /// Why, for the audit chain.
    pub reason: String,
    /// Who, for the audit chain.
    pub by: Principal,
    /// Only say what would happen.
    pub dry_run: bool,
}

/// What a recovery did, or would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoverReport {
    /// The survivor.
    pub node: NodeId,
    /// Last entry that is kept.
    pub last: Revision,
    /// Last entry of which the survivor knows that it was committed; later ones may not have been.
    pub committed: Revision,
    /// Members that are dropped, with their addresses; `true` for voters.
    pub dropped: Vec<(NodeId, String, bool)>,
    /// Those of them that still answered.
    pub reachable: Vec<NodeId>,
    /// The incarnation so far.
    pub from: Incarnation,
    /// The new one.
    pub to: Incarnation,
    /// Sessions that become void.
    pub sessions: usize,
    /// The longest ttl among them, in milliseconds: a holder that cannot be reached may believe in
    /// its lease for that long after the nodes that renewed it have stopped.
    pub longest_ttl_ms: u64,
    /// So long a ttl the survivor waits out before it grants anything, in milliseconds.
    pub grants_held_ms: u64,
    /// How long a ttl a holder of before may have, as far as is known, in milliseconds: a shorter wait
    /// is a risk.
    pub owed_ms: u64,
    /// Why the survivor was in quarantine. A recovery ends it: there is nobody left whom it could
    /// contradict, and nothing of what it forgot.
    pub quarantined: Option<String>,
    /// Services that become unadopted.
    pub services: Vec<String>,
    /// Where the old log was put; empty in a dry run.
    pub kept_in: PathBuf,
    /// Whether anything was written.
    pub written: bool,
}

/// Why nothing was recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Certificates.
    #[error("configuration")]
    Config(#[from] RunError),
    /// The data directory is in use or not this node's.
    #[error("data directory")]
    Identity(#[from] IdentityError),
    /// There is nothing to recover.
    #[error("{dir} holds no cluster", dir = .0.display())]
    Nothing(PathBuf),
    /// A recovery ended between its renames: the new log is complete, but has not its name.
    #[error(
        "a recovery was interrupted here: {old} was moved away and {fresh} is complete. Rename {fresh} \
         to {old} to finish it; nothing else is missing",
        old = .old.display(), fresh = .fresh.display()
    )]
    Interrupted {
        /// Where the log should be.
        old: PathBuf,
        /// Where the new one waits.
        fresh: PathBuf,
    },
    /// The node is no voter: it may lack what voters acknowledged.
    #[error("node {0} is no voter of this cluster; recover from a voter")]
    NotVoter(NodeId),
    /// Old voters answer.
    #[error(
        "node {} still answers: stop it, or name it as overridden; a majority that lives would go \
         on granting epochs",
        .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Reachable(Vec<NodeId>),
    /// The log could not be read or written.
    #[error("the log")]
    Log(#[from] StartError),
    /// A directory could not be moved.
    #[error("cannot move {path}", path = .path.display())]
    Move {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Looks at the survivor and, unless `dry_run`, makes it a cluster of one.
///
/// # Errors
/// [`RecoverError`]; the old log is untouched, or still there under another name.
pub async fn recover(options: &RecoverOptions) -> Result<RecoverReport, RecoverError> {
    let config = &options.config;
    let dir = config.data_dir.clone();
    let tls = load_tls(config)?;
    if !dir.exists() {
        return Err(RecoverError::Nothing(dir));
    }
    let _lock = identity::lock(&dir)?;
    let found = read_identity(&RealDisk, &dir).map_err(IdentityError::from)?;
    let record = found.ok_or_else(|| RecoverError::Nothing(dir.clone()))?;
    belongs(&record, &dir.join(NAME), &config.cluster, config.node_id)
        .map_err(IdentityError::from)?;
    let (old, fresh) = (config.raft_dir(), dir.join(format!("{RAFT_DIR}.new")));
    if !old.exists() && fresh.exists() {
        return Err(RecoverError::Interrupted { old, fresh });
    }
    let settings = ConsensusConfig::new(config.node_id, old.clone(), config.timing());
    let held = offline::read(&settings, Arc::new(RealDisk)).await?;
    if !held.state.cluster().is_bootstrapped() {
        return Err(RecoverError::Nothing(dir));
    }
    if !held.members.iter().any(|(id, _, voter)| *id == config.node_id && *voter) {
        return Err(RecoverError::NotVoter(config.node_id));
    }
    let mut report = look(options, &held, &tls).await;
    report.quarantined = quarantine::read(&RealDisk, &dir).map_err(IdentityError::from)?;
    let unnamed: Vec<NodeId> = report
        .reachable
        .iter()
        .copied()
        .filter(|id| !options.although_reachable.contains(id))
        .collect();
    if options.dry_run {
        return Ok(report);
    }
    if !unnamed.is_empty() {
        return Err(RecoverError::Reachable(unnamed));
    }
    let moved = |path: &PathBuf| {
        let path = path.clone();
        move |source| RecoverError::Move { path, source }
    };
    // Left over from a try that was interrupted before anything was exchanged.
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh).map_err(moved(&fresh))?;
    }
    let life = new_life(config, report.to, options.hold, &options.reason, &options.by);
    let settings = ConsensusConfig { dir: fresh.clone(), ..settings };
    held.begin(&life, &settings, Arc::new(RealDisk)).await?;
    let kept = dir.join(format!("{RAFT_DIR}.before-incarnation-{}", report.to));
    std::fs::rename(&old, &kept).map_err(moved(&old))?;
    std::fs::rename(&fresh, &old).map_err(moved(&fresh))?;
    let folder = std::fs::File::open(&dir).map_err(moved(&dir))?;
    folder.sync_all().map_err(moved(&dir))?;
    quarantine::lift(&RealDisk, &dir).map_err(IdentityError::from)?;
    report.kept_in = kept;
    report.written = true;
    Ok(report)
}

async fn look(options: &RecoverOptions, held: &Holding, tls: &Arc<Tls>) -> RecoverReport {
    let node = options.config.node_id;
    let row = held.state.cluster();
    let others: Vec<_> = held.members.iter().filter(|(id, _, _)| *id != node).collect();
    let asked = others.iter().map(|(id, member, _)| async move {
        let expect = ExpectPeer::Node(*id);
        let dialled = tls.dial(&member.address, &expect);
        let answered = tokio::time::timeout(REACH_TIMEOUT, dialled).await;
        matches!(answered, Ok(Ok(_))).then_some(*id)
    });
    let reachable = futures::future::join_all(asked).await.into_iter().flatten().collect();
    RecoverReport {
        node,
        last: held.state.revision(),
        committed: held.committed,
        dropped: others.iter().map(|(id, m, voter)| (*id, m.address.clone(), *voter)).collect(),
        reachable,
        from: row.incarnation,
        to: Incarnation { counter: row.incarnation.counter.max(options.above) + 1, id: random() },
        sessions: held.state.sessions().len(),
        longest_ttl_ms: held.state.longest_ttl_ms(),
        grants_held_ms: hold_ms(&held.state, options.hold),
        owed_ms: owed_ms(&held.state),
        quarantined: None,
        services: held.state.services().keys().map(ToString::to_string).collect(),
        kept_in: PathBuf::new(),
        written: false,
    }
}
