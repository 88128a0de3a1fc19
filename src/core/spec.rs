//! What a service may be declared as: the one type behind `regent services apply -f`.
//!
//! Validation happens here and nowhere else, before the command is proposed (so that people get
//! every problem at once) and again in `apply` (so that no path around it exists): the rules are in
//! `spec/validate.rs` and `spec/survival.rs`, the words of each choice in `spec/words.rs`.

mod safer;
mod stored;
mod survival;
mod validate;
mod words;

pub use words::WordError;

use serde::{Deserialize, Serialize};

use crate::id::{InstanceName, Locality, PartitionName, ServiceName};
use crate::timing::TtlAsk;

/// A service as declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Its name.
    pub name: ServiceName,
    /// Free text for people.
    pub description: String,
    /// What runs it.
    pub engine: Engine,
    /// One primary, or one owner per partition.
    pub topology: TopologyKind,
    /// Its database servers.
    pub instances: Vec<InstanceSpec>,
    /// Shares of an active-active service; empty for an active-passive one.
    pub partitions: Vec<PartitionName>,
    /// How it is to be run.
    pub policy: Policy,
}

/// Which engine an agent drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Engine {
    /// PostgreSQL 13 to 18.
    Postgres,
    /// Commands that the operator supplies.
    Exec,
}

/// Who may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TopologyKind {
    /// One primary at a time.
    ActivePassive,
    /// One owner per partition at a time.
    ActiveActive,
}

/// One database server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Unique in the service.
    pub name: InstanceName,
    /// Where it runs.
    pub locality: Locality,
    /// `host:port` for clients.
    pub address: String,
    /// Higher is preferred as primary; 0 is never promoted.
    pub priority: u32,
}

/// How a service is to be run. Defaults are PROTOCOL.md's. How it is written is `spec/stored.rs`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "stored::Stored", into = "stored::Stored")]
pub struct Policy {
    /// Lease mode or quorum mode (DESIGN.md 4).
    pub mode: Mode,
    /// The primary's lease, in milliseconds; checked against C6.
    pub ttl_ms: u64,
    /// Acknowledgements a commit waits for in quorum mode (k of the sync set).
    pub sync_standbys: u32,
    /// Fewest acknowledgements ever accepted (k_min).
    pub min_sync_standbys: u32,
    /// What to do when fewer than `min_sync_standbys` are left.
    pub on_too_few_sync: TooFewSync,
    /// What the primary does about commits that wait for less than their set.
    pub on_lowered_sync: LoweredSync,
    /// What the agent does when it cannot reach the coordinators (F).
    pub on_coordinator_loss: CoordinatorLoss,
    /// What a failover may lose.
    pub loss_bound: LossBound,
    /// How far an automatic failover may go.
    pub max_failover_scope: Scope,
    /// What the loss of must be survivable.
    pub survive: Survive,
    /// Time for an orderly restart before a failover begins, in milliseconds.
    pub restart_grace_ms: u64,
    /// Least time between two automatic failovers, in milliseconds.
    pub failover_cooldown_ms: u64,
    /// How far operations wait for routers.
    pub await_routers: AwaitRouters,
}

/// How long an operation waits for those who follow the service's routes: before a planned fence
/// begins, until they have taken the old primary out; before it is called done, until they send to
/// the new one. Nothing of safety rests on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitRouters {
    /// The share of them that must have said so, in percent; 0: it waits for none.
    pub percent: u32,
    /// Longest wait, in milliseconds: what a router knows is taken for expired then.
    pub within_ms: u64,
}

impl AwaitRouters {
    /// It waits for none.
    pub const NONE: Self = Self { percent: 0, within_ms: 1_000 };
}

impl Policy {
    /// PROTOCOL.md's defaults for a mode (sections F and H).
    pub fn default_for(mode: Mode) -> Self {
        let ttl_ms = 3_000;
        let common = Self {
            mode,
            ttl_ms,
            sync_standbys: 1,
            min_sync_standbys: 1,
            on_too_few_sync: TooFewSync::Block,
            on_lowered_sync: LoweredSync::Report,
            on_coordinator_loss: CoordinatorLoss::Hold,
            loss_bound: LossBound { max_bytes: 0, max_ms: 0, on_violation: OnViolation::Ask },
            max_failover_scope: Scope::Region,
            survive: Survive::Instance,
            restart_grace_ms: 10_000,
            failover_cooldown_ms: 600_000,
            await_routers: AwaitRouters::NONE,
        };
        match mode {
            Mode::Quorum => common,
            Mode::Lease => Self {
                sync_standbys: 0,
                min_sync_standbys: 0,
                on_coordinator_loss: CoordinatorLoss::Stop,
                loss_bound: LossBound {
                    max_bytes: LossBound::ANY_BYTES,
                    max_ms: LossBound::usual_ms(ttl_ms),
                    on_violation: OnViolation::Ask,
                },
                ..common
            },
        }
    }
}

impl LossBound {
    /// No bound on the estimated bytes. Not `u64::MAX`: TOML's integers end here.
    pub const ANY_BYTES: u64 = i64::MAX as u64;

    /// What a failover by lapse may lose at most under a lease of `ttl_ms`: ttl + 2 renew
    /// intervals, in milliseconds (PROTOCOL.md H).
    pub fn usual_ms(ttl_ms: u64) -> u64 {
        ttl_ms.saturating_add(2 * TtlAsk::default_interval_ms(ttl_ms))
    }
}

/// Which protocol keeps one primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Asynchronous replication; failover waits for a proof.
    Lease,
    /// Synchronous replication; safe without clocks.
    Quorum,
}

/// Too few synchronous standbys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TooFewSync {
    /// Writes wait.
    Block,
    /// Writes go on unprotected, shown as such.
    Degrade,
}

/// Somebody lowered `synchronous_commit`, or changed the names (D).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoweredSync {
    /// It is said that nothing is promised of such commits.
    Report,
    /// Such sessions are ended, and such roles and databases refused.
    Strict,
}

/// Loss of the coordinators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CoordinatorLoss {
    /// Stop when the lease ends.
    Stop,
    /// Go on as PROTOCOL.md F allows.
    Hold,
}

/// What promoting a candidate may lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossBound {
    /// Bytes of WAL (an estimate).
    pub max_bytes: u64,
    /// Milliseconds (a guarantee).
    pub max_ms: u64,
    /// When it would be more.
    pub on_violation: OnViolation,
}

/// Above the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnViolation {
    /// Never.
    Refuse,
    /// Open an approval.
    Ask,
    /// Go on, and say so.
    Accept,
}

/// How far an automatic failover may move the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// Inside its zone.
    Zone,
    /// Inside its region.
    Region,
    /// Anywhere.
    Any,
}

/// What the service must survive the loss of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Survive {
    /// One instance.
    Instance,
    /// One zone.
    Zone,
    /// One region.
    Region,
}

/// Something wrong with a declaration: which field, what, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{field}: {problem}; {fix}")]
pub struct Problem {
    /// Path of the field, as in the TOML file: `instances[1].address`.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub fix: String,
}
