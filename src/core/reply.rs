//! What a command is answered with: done, or a fact that says why not.
//!
//! A rejection is a value, deterministic like everything else `apply` makes, and is kept for the
//! deduplication of retries. Shells turn [`Rejection::kind`] into their status codes.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, Incarnation, NodeId, RenewalNumber, Revision, SessionId};

/// The answer to one command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It took effect; nothing more to say.
    Done { revision: Revision },
    /// A session is open under this id.
    SessionOpened { session: SessionId, revision: Revision },
    /// One outcome per renewal, in the order of the command.
    Renewed { outcomes: Vec<RenewalOutcome>, revision: Revision },
    /// The candidate leads under `epoch` (it may act once a renewal naming it is acknowledged), or
    /// the partition has its new owner under it.
    Granted { epoch: Epoch, revision: Revision },
    /// The candidate waits; `ahead` others come first.
    Queued { ahead: u32, revision: Revision },
    /// A node id was allocated.
    NodeAllocated { node: NodeId, revision: Revision },
    /// How many of the named sessions or grants really ended.
    Expired { count: u32, revision: Revision },
    /// Nothing was changed.
    Rejected(Rejection),
    /// It was so already, since `revision`; nothing was changed, and nothing is wrong.
    Unchanged { revision: Revision },
    /// An agent's start is accepted: the counter to persist, and the lease mark of its session (0:
    /// it holds nothing).
    StartAccepted { boot: u64, mark: Revision, revision: Revision },
    /// An agent's start is not accepted, and its instance is quarantined from this entry on: nothing
    /// of it may start. It is no rejection, because it was written down.
    StartQuarantined { why: String, revision: Revision },
}

/// What became of one renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenewalOutcome {
    /// Extended; `grant` is the highest grant the session holds (0: none), for the client to name
    /// in its next renewal.
    Extended { number: RenewalNumber, grant: Revision },
    /// No such session (ended, expired, or of an earlier incarnation), or it is the lease of a role
    /// that is being changed: such a one is never extended again (PROTOCOL.md D).
    SessionGone,
    /// The session belongs to another start of the client.
    NonceStale,
    /// Not above the newest number already applied; nothing changed.
    NumberStale { have: RenewalNumber },
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    /// There is no such row.
    #[error("{what} {name:?} does not exist")]
    NotFound { what: String, name: String },
    /// `Expect::Absent` met a row.
    #[error("{what} {name:?} exists already (revision {revision})")]
    AlreadyExists { what: String, name: String, revision: Revision },
    /// `Expect::Revision` met another revision.
    #[error("{what} {name:?} was changed at revision {found}, not at the expected {expected}")]
    Conflict { what: String, name: String, expected: Revision, found: Revision },
    /// The command is of an epoch that is over.
    #[error("epoch {got} is stale: {have} is in force")]
    EpochStale { have: Epoch, got: Epoch },
    /// The session ended, expired, or never was.
    #[error("session {session} is not open")]
    SessionGone { session: SessionId },
    /// The session belongs to another start of the client.
    #[error("session {session} was opened by another start of this client")]
    NonceStale { session: SessionId },
    /// The session belongs to somebody else.
    #[error("session {session} belongs to {owner}")]
    NotOwner { session: SessionId, owner: String },
    /// Somebody else, or nobody, leads.
    #[error("session {session} does not hold {election:?}")]
    NotHolder { election: String, session: SessionId },
    /// C6: the cluster could not keep such a short lease through a change of leader.
    #[error(
        "a ttl of {ttl_ms} ms is too short: this cluster needs at least {least_ms} ms ({terms})"
    )]
    TtlTooShort { ttl_ms: u64, least_ms: u64, terms: String },
    /// A field has a value that cannot be.
    #[error("{field}: {problem}; {fix}")]
    Invalid { field: String, problem: String, fix: String },
    /// A bound of `limits` was reached.
    #[error("{what}: the limit of {limit} is reached")]
    Quota { what: String, limit: u64 },
    /// The service is quarantined after a broken invariant or an unreadable entry.
    #[error("service {service:?} is quarantined since revision {since}: {why}")]
    Quarantined { service: String, since: Revision, why: String },
    /// This entry itself broke an invariant or could not be read; it was rolled back.
    #[error("the entry was rolled back: {why}")]
    Poisoned { why: String },
    /// The command needs members that all know it.
    #[error("this needs feature level {need}; the cluster is at {have}")]
    FeatureLevel { need: u32, have: u32 },
    /// The lane already ran a later command.
    #[error("this command lane already ran number {last}")]
    SerialStale { last: u64 },
    /// A node's disk or boot counter went back in time: it may not vote.
    #[error("node {node} came up with an old disk: recorded boot {recorded}, reported {reported}")]
    DiskWentBack { node: NodeId, recorded: u64, reported: u64 },
    /// Another life of the cluster.
    #[error("incarnation {got} is not above {have}")]
    IncarnationStale { have: Incarnation, got: Incarnation },
    /// The thing is in use.
    #[error("{what} {name:?} is in use: {by}")]
    InUse { what: String, name: String, by: String },
    /// An instance's disk went back in time, or forgot a pledge: it has no role until cloned anew.
    #[error("instance {instance:?} is quarantined: {why}")]
    InstanceQuarantined { instance: String, why: String },
    /// A rule of the role change says no.
    #[error("{rule}: {why}")]
    RoleRule { rule: RoleRule, why: String },
}

/// The rules of PROTOCOL.md D that refuse, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RoleRule {
    /// The role change named is not open, or another is.
    FenceNotOpen,
    /// One role change at a time.
    FenceOpen,
    /// S6: the old holder may still acknowledge.
    NotOut,
    /// S2, S6: the candidate may lack what was acknowledged.
    NotComplete,
    /// The candidate may not be primary now.
    NotFree,
    /// S7: what could be lost is above the bound, and nobody approved it.
    LossBound,
    /// A receipt of another fence, start or instance.
    ReceiptVoid,
    /// The way back is closed: the holder has stopped.
    TooLate,
    /// Not before every declared instance has reported, or not with these reports (G).
    NotAdopted,
    /// People keep Regent's hands off.
    Paused,
    /// The phase does not follow.
    WrongPhase,
    /// The data directory is of another cluster than the service's.
    OtherCluster,
}

impl RoleRule {
    /// The rule's name, for the details of a status and for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FenceNotOpen => "fence_not_open",
            Self::FenceOpen => "fence_open",
            Self::NotOut => "not_out",
            Self::NotComplete => "not_complete",
            Self::NotFree => "not_free",
            Self::LossBound => "loss_bound",
            Self::ReceiptVoid => "receipt_void",
            Self::TooLate => "too_late",
            Self::NotAdopted => "not_adopted",
            Self::Paused => "paused",
            Self::WrongPhase => "wrong_phase",
            Self::OtherCluster => "other_cluster",
        }
    }
}

impl std::fmt::Display for RoleRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The class of a rejection, for status codes and exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectionKind {
    /// Compare-and-set lost: read again, try again.
    Conflict,
    /// There is no such thing.
    NotFound,
    /// A rule says no; trying again unchanged is of no use.
    Refused,
    /// The request itself is wrong.
    Invalid,
    /// A bound was reached.
    Quota,
}

impl Rejection {
    /// The class of this rejection.
    pub fn kind(&self) -> RejectionKind {
        match self {
            Self::Conflict { .. } | Self::AlreadyExists { .. } => RejectionKind::Conflict,
            Self::NotFound { .. } => RejectionKind::NotFound,
            Self::Invalid { .. } | Self::TtlTooShort { .. } => RejectionKind::Invalid,
            Self::Quota { .. } => RejectionKind::Quota,
            Self::EpochStale { .. }
            | Self::SessionGone { .. }
            | Self::NonceStale { .. }
            | Self::NotOwner { .. }
            | Self::NotHolder { .. }
            | Self::Quarantined { .. }
            | Self::Poisoned { .. }
            | Self::FeatureLevel { .. }
            | Self::SerialStale { .. }
            | Self::DiskWentBack { .. }
            | Self::IncarnationStale { .. }
            | Self::InUse { .. }
            | Self::InstanceQuarantined { .. }
            | Self::RoleRule { .. } => RejectionKind::Refused,
        }
    }

    /// The rule's name, for the details of a status and for metrics.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not_found",
            Self::AlreadyExists { .. } => "already_exists",
            Self::Conflict { .. } => "conflict",
            Self::EpochStale { .. } => "epoch_stale",
            Self::SessionGone { .. } => "session_gone",
            Self::NonceStale { .. } => "nonce_stale",
            Self::NotOwner { .. } => "not_owner",
            Self::NotHolder { .. } => "not_holder",
            Self::TtlTooShort { .. } => "c6_ttl_too_short",
            Self::Invalid { .. } => "invalid",
            Self::Quota { .. } => "quota",
            Self::Quarantined { .. } => "quarantined",
            Self::Poisoned { .. } => "poisoned",
            Self::FeatureLevel { .. } => "feature_level",
            Self::SerialStale { .. } => "serial_stale",
            Self::DiskWentBack { .. } => "disk_went_back",
            Self::IncarnationStale { .. } => "incarnation_stale",
            Self::InUse { .. } => "in_use",
            Self::InstanceQuarantined { .. } => "instance_quarantined",
            Self::RoleRule { rule, .. } => rule.as_str(),
        }
    }
}

impl Reply {
    /// The revision at which the command, or an equal one before it, took effect, if it did.
    pub fn revision(&self) -> Option<Revision> {
        match self {
            Self::Done { revision }
            | Self::Unchanged { revision }
            | Self::SessionOpened { revision, .. }
            | Self::Renewed { revision, .. }
            | Self::Granted { revision, .. }
            | Self::Queued { revision, .. }
            | Self::NodeAllocated { revision, .. }
            | Self::Expired { revision, .. }
            | Self::StartAccepted { revision, .. }
            | Self::StartQuarantined { revision, .. } => Some(*revision),
            Self::Rejected(_) => None,
        }
    }
}
