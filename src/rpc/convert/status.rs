//! What a refused call looks like on the wire, and reading it back.
//!
//! The details of the status are an encoded `regent.v1.Refused`, so that a client can follow a
//! leader hint and a person gets the rule's name and a hint. One table of codes, DESIGN.md 11.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use regent_core::id::NodeId;
use regent_core::reply::{Rejection, RejectionKind};
use tonic::{Code, Status};

use crate::pb::v1;

/// Names of the rules that are not the core's.
pub mod rule {
    /// The node has no leader's authority; the details say where the leader is, if known.
    pub const NOT_LEADER: &str = "not_leader";
    /// Too much is under way; try again later.
    pub const OVERLOADED: &str = "overloaded";
    /// The disk is full or failing.
    pub const STORAGE: &str = "storage";
    /// No answer in time; what was asked may still happen.
    pub const OUTCOME_UNKNOWN: &str = "outcome_unknown";
    /// The right is missing.
    pub const NOT_ALLOWED: &str = "not_allowed";
    /// The certificate names no principal.
    pub const NO_IDENTITY: &str = "no_identity";
    /// A watch asked to go on at a revision that is no longer kept, or of another incarnation.
    pub const COMPACTED: &str = "compacted";
    /// A watcher did not keep up and was cut off; it may go on where it stopped.
    pub const SLOW_WATCHER: &str = "slow_watcher";
    /// This node is stopping or not ready yet.
    pub const NOT_READY: &str = "not_ready";
}

/// The details of a refused call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Name of the rule: [`Rejection::rule`] or one of [`rule`].
    pub rule: String,
    /// Where the leader is, if the answering node knows.
    pub leader: Option<Leader>,
    /// Do not try again before this; `None`: no advice.
    pub retry_after: Option<Duration>,
    /// The field that is wrong; empty if it is not about one.
    pub field: String,
    /// What to do.
    pub hint: String,
}

/// A leader, as another node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Its id.
    pub node: NodeId,
    /// Its `host:port`.
    pub address: String,
}

impl Refused {
    /// A refusal by `rule`, nothing else known.
    pub fn of(rule: &str) -> Self {
        Self { rule: rule.to_owned(), ..Self::default() }
    }

    /// Makes it a status.
    pub fn into_status(self, code: Code, message: impl Into<String>) -> Status {
        let (leader_node, leader_address) =
            self.leader.map_or((0, String::new()), |l| (l.node.0, l.address));
        let retry_after_ms = self
            .retry_after
            .map_or(0, |after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX).max(1));
        let details = v1::Refused {
            rule: self.rule,
            leader_node,
            leader_address,
            retry_after_ms,
            field: self.field,
            hint: self.hint,
        };
        Status::with_details(code, message, Bytes::from(details.encode_to_vec()))
    }

    /// Reads the details of a status; `None` when they are not ours.
    pub fn from_status(status: &Status) -> Option<Self> {
        if status.details().is_empty() {
            return None;
        }
        let details = v1::Refused::decode(status.details()).ok()?;
        if details.rule.is_empty() {
            return None;
        }
        let leader = (!details.leader_address.is_empty()).then_some(Leader {
            node: NodeId(details.leader_node),
            address: details.leader_address,
        });
        let retry_after =
            (details.retry_after_ms > 0).then(|| Duration::from_millis(details.retry_after_ms));
        Some(Self {
            rule: details.rule,
            leader,
            retry_after,
            field: details.field,
            hint: details.hint,
        })
    }
}

/// The status of a command that the core rejected.
pub fn rejected(rejection: &Rejection) -> Status {
    let code = match rejection.kind() {
        RejectionKind::Conflict => Code::Aborted,
        RejectionKind::NotFound => Code::NotFound,
        RejectionKind::Refused => Code::FailedPrecondition,
        RejectionKind::Invalid => Code::InvalidArgument,
        RejectionKind::Quota => Code::ResourceExhausted,
    };
    let (field, hint) = match rejection {
        Rejection::Invalid { field, fix, .. } => (field.clone(), fix.clone()),
        Rejection::TtlTooShort { least_ms, .. } => {
            ("ttl_ms".to_owned(), format!("ask for at least {least_ms} ms"))
        }
        Rejection::Conflict { .. } => (String::new(), "read it again, then decide".to_owned()),
        Rejection::SessionGone { .. } | Rejection::NonceStale { .. } => {
            (String::new(), "open a new session".to_owned())
        }
        Rejection::Quarantined { service, .. } => {
            (String::new(), format!("look at `regent services show {service}` and release it"))
        }
        _ => (String::new(), String::new()),
    };
    Refused { field, hint, ..Refused::of(rejection.rule()) }
        .into_status(code, rejection.to_string())
}

/// This node does not lead; `leader` is where to go. UNAVAILABLE.
pub fn not_leader(leader: Option<Leader>, retry_after: Duration) -> Status {
    let message = match &leader {
        Some(leader) => format!("this node is not the leader; node {} is", leader.node),
        None => "there is no leader at the moment".to_owned(),
    };
    // With a hint there is nothing to wait for.
    let retry_after = leader.is_none().then_some(retry_after);
    Refused { leader, retry_after, ..Refused::of(rule::NOT_LEADER) }
        .into_status(Code::Unavailable, message)
}

/// The node cannot do it now and did not: try again, here or elsewhere. UNAVAILABLE.
pub fn unavailable(rule: &str, message: impl Into<String>, retry_after: Duration) -> Status {
    Refused { retry_after: Some(retry_after), ..Refused::of(rule) }
        .into_status(Code::Unavailable, message)
}

/// No answer in time; what was asked may still happen. DEADLINE_EXCEEDED.
pub fn outcome_unknown(message: impl Into<String>) -> Status {
    Refused::of(rule::OUTCOME_UNKNOWN).into_status(Code::DeadlineExceeded, message)
}

/// Too much is under way. RESOURCE_EXHAUSTED with advice when to come back.
pub fn overloaded(message: impl Into<String>, retry_after: Duration) -> Status {
    Refused { retry_after: Some(retry_after), ..Refused::of(rule::OVERLOADED) }
        .into_status(Code::ResourceExhausted, message)
}

/// A bound is reached; coming back later does not help by itself. RESOURCE_EXHAUSTED.
pub fn quota(rule: &str, message: impl Into<String>) -> Status {
    Refused::of(rule).into_status(Code::ResourceExhausted, message)
}

/// A rule says no. FAILED_PRECONDITION.
pub fn refused(rule: &str, message: impl Into<String>, hint: impl Into<String>) -> Status {
    Refused { hint: hint.into(), ..Refused::of(rule) }
        .into_status(Code::FailedPrecondition, message)
}

/// A watch cannot go on where it asked: begin with a snapshot. OUT_OF_RANGE.
pub fn compacted(message: impl Into<String>) -> Status {
    Refused { hint: "watch from revision 0".to_owned(), ..Refused::of(rule::COMPACTED) }
        .into_status(Code::OutOfRange, message)
}

/// The right is missing. PERMISSION_DENIED.
pub fn not_allowed(message: impl Into<String>) -> Status {
    Refused::of(rule::NOT_ALLOWED).into_status(Code::PermissionDenied, message)
}

/// The certificate names no principal. UNAUTHENTICATED.
pub fn no_identity(message: impl Into<String>) -> Status {
    Refused::of(rule::NO_IDENTITY).into_status(Code::Unauthenticated, message)
}

/// There is no such thing. NOT_FOUND.
pub fn not_found(what: &str, name: &str) -> Status {
    let rejection = Rejection::NotFound { what: what.to_owned(), name: name.to_owned() };
    rejected(&rejection)
}
