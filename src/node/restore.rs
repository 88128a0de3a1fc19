//! `regent restore`: a backup becomes the first node of a new cluster, in an empty directory.
//!
//! The new cluster is another life of the old one: its incarnation is higher and its random id new,
//! so every epoch it grants is above every one before, every session and lease of before is void,
//! and two restores of one backup are two clusters (S3). The node gets an id that the old cluster
//! never gave out: if old nodes still run, no certificate lets them and this one take each other for
//! members.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use regent_core::authz::Principal;
use regent_core::id::{Incarnation, NodeId, Revision};
use regent_core::state::State;
use regent_core::state::snapshot::SnapshotError;
use regent_raft::ConsensusConfig;
use regent_raft::api::Member;
use regent_raft::offline::{FoundError, Holding, NewLife};
use regent_raft::store::identity as disk;
use regent_raft::store::real_disk::RealDisk;
use regent_rpc::clock::{Clock as _, SystemClock};

use crate::config::NodeConfig;
use crate::identity::{self, IdentityError, random};

/// What to restore, and as what.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The file that `regent backup` wrote.
    pub backup: PathBuf,
    /// The first node of the new cluster; its data directory must be empty or not there.
    pub config: NodeConfig,
    /// The highest incarnation counter heard of anywhere since the backup; 0: none.
    pub above: u64,
    /// Nothing is granted while a lease of before with so long a ttl may be believed in; `None`: as
    /// long as the longest one that the backup knows, and a little at least.
    pub hold: Option<Duration>,
    /// Why, for the audit chain.
    pub reason: String,
    /// Who, for the audit chain.
    pub by: Principal,
    /// Only say what would happen.
    pub dry_run: bool,
}

/// What a restore did, or would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreReport {
    /// The cluster's name.
    pub cluster: String,
    /// Up to which revision the backup goes.
    pub revision: Revision,
    /// The incarnation of the backup.
    pub from: Incarnation,
    /// The new incarnation.
    pub to: Incarnation,
    /// The node that begins the new cluster.
    pub node: NodeId,
    /// Services that become unadopted.
    pub services: Vec<String>,
    /// Sessions that are void, and with them their leases.
    pub sessions: usize,
    /// The longest ttl among them, in milliseconds: a holder that cannot be reached may believe in
    /// its lease for that long after the nodes that renewed it have stopped.
    pub longest_ttl_ms: u64,
    /// So long a ttl the new cluster waits out before it grants anything, in milliseconds.
    pub grants_held_ms: u64,
    /// How long a ttl a holder of before may have, as far as is known, in milliseconds: a shorter wait
    /// is a risk.
    pub owed_ms: u64,
    /// Elections whose holder is void.
    pub held_elections: usize,
    /// Whether anything was written.
    pub written: bool,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup cannot be read.
    #[error("cannot read the backup {path}", path = .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The backup is not one, or is damaged.
    #[error("{path} is no intact backup", path = .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: SnapshotError,
    },
    /// The backup is of another cluster.
    #[error("the backup is of cluster {found:?}, the configuration of {wanted:?}")]
    OtherCluster {
        /// Whose it is.
        found: String,
        /// What was configured.
        wanted: String,
    },
    /// The node id was given out before.
    #[error(
        "node id {node} was given out by the old cluster: use {least} or higher (node_id, and a \
         certificate for it), so that old nodes cannot take the new one for a member"
    )]
    UsedId {
        /// What was configured.
        node: NodeId,
        /// What would do.
        least: u64,
    },
    /// The directory is in use or holds something.
    #[error(
        "{dir} is not empty; restore into an empty directory (what an interrupted restore left may go)",
        dir = .0.display()
    )]
    NotEmpty(PathBuf),
    /// The directory could not be locked.
    #[error("data directory")]
    Identity(#[from] IdentityError),
    /// Identity, snapshot or log could not be written.
    #[error("writing the restored state failed; empty the data directory and restore again")]
    Write(#[from] FoundError),
}

/// Checks the backup and, unless `dry_run`, writes the first node of the new cluster.
///
/// # Errors
/// [`RestoreError`]; a directory that was begun must be removed.
pub async fn restore(options: &RestoreOptions) -> Result<RestoreReport, RestoreError> {
    let path = options.backup.clone();
    let bytes =
        std::fs::read(&path).map_err(|source| RestoreError::Read { path: path.clone(), source })?;
    let state =
        State::decode_snapshot(&bytes).map_err(|source| RestoreError::Damaged { path, source })?;
    let config = &options.config;
    let row = state.cluster();
    if row.name != config.cluster {
        return Err(RestoreError::OtherCluster {
            found: row.name.clone(),
            wanted: config.cluster.clone(),
        });
    }
    if config.node_id <= row.highest_node {
        let least = row.highest_node.0 + 1;
        return Err(RestoreError::UsedId { node: config.node_id, least });
    }
    if !is_empty(&config.data_dir) {
        return Err(RestoreError::NotEmpty(config.data_dir.clone()));
    }
    let to = Incarnation { counter: row.incarnation.counter.max(options.above) + 1, id: random() };
    let mut report = RestoreReport {
        cluster: row.name.clone(),
        revision: state.revision(),
        from: row.incarnation,
        to,
        node: config.node_id,
        services: state.services().keys().map(ToString::to_string).collect(),
        sessions: state.sessions().len(),
        longest_ttl_ms: state.longest_ttl_ms(),
        grants_held_ms: hold_ms(&state, options.hold),
        owed_ms: owed_ms(&state),
        held_elections: state.elections().values().filter(|e| e.holder.is_some()).count(),
        written: false,
    };
    if options.dry_run {
        return Ok(report);
    }
    let life = new_life(config, to, options.hold, &options.reason, &options.by);
    let timing = row.timing;
    let _lock = identity::lock(&config.data_dir)?;
    let settings = ConsensusConfig::new(config.node_id, config.raft_dir(), timing);
    let own = disk::Identity::new(&config.cluster, config.node_id, random());
    let dir = &config.data_dir;
    Holding::of_backup(state).found(&life, dir, own, &settings, Arc::new(RealDisk)).await?;
    report.written = true;
    Ok(report)
}

/// How `config`'s node goes on alone.
pub(crate) fn new_life(
    config: &NodeConfig,
    incarnation: Incarnation,
    hold: Option<Duration>,
    reason: &str,
    by: &Principal,
) -> NewLife {
    let or = |advertised: &String, listened: &String| match advertised.is_empty() {
        true => listened.clone(),
        false => advertised.clone(),
    };
    let own = config.initial_members.iter().find(|m| m.id == config.node_id);
    let member = match own {
        Some(m) => Member {
            address: m.address.clone(),
            http_address: m.http_address.clone(),
            locality: m.locality.clone().into(),
            label: m.label.clone(),
        },
        None => Member {
            address: or(&config.advertise.grpc, &config.listen.grpc),
            http_address: or(&config.advertise.http, &config.listen.http),
            locality: config.locality.clone().into(),
            label: config.label.clone(),
        },
    };
    NewLife {
        node: config.node_id,
        member,
        incarnation,
        hold_ms: hold.map(millis),
        reason: reason.to_owned(),
        by: by.clone(),
        at: SystemClock.wall(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How long a ttl the new life waits out: what the operator says, else what the state knows.
pub(crate) fn hold_ms(state: &State, said: Option<Duration>) -> u64 {
    said.map_or_else(|| state.hold_for_next_life_ms(), millis)
}

/// How long a ttl a holder of before may have, as far as the state knows: of its own life, or of the
/// one before that it was still waiting for.
pub(crate) fn owed_ms(state: &State) -> u64 {
    state.longest_ttl_ms().max(state.grants_held_ms())
}

/// Whether nothing of a node is in `dir`.
fn is_empty(dir: &Path) -> bool {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}
