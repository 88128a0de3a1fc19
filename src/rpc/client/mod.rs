//! Talking to the cluster: any node will do, a retry never does a thing twice.
//!
//! - A call has a deadline ([`ClientOptions::timeout`]) and tries nodes until then: jittered,
//!   exponential pauses, or what the node advises; a leader hint is followed at once.
//! - A *read* may be asked anywhere, again and again.
//! - A *write* carries a request id (`lane`): every attempt of it the same, so that the cluster
//!   answers a second attempt with the first one's outcome.
//! - An *act* without a request id (membership) is tried again only after an answer that says it
//!   was not done.
//!
//! Sessions and leases are in [`lease`], watches in [`watch`], an agent's stream is
//! [`AgentStream`], and what it holds [`SessionLease`].

mod agent;
mod audit;
mod call;
mod clocks;
mod cluster;
mod election;
mod hold;
mod keeper;
mod lane;
pub mod lease;
mod nodes;
mod operations;
mod resign;
mod seat;
#[cfg(test)]
mod tests;
mod topology;
pub mod watch;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::channel::{BadAddress, ChannelOptions};
use crate::clock::{Clock, SystemClock};
use crate::convert::status::{Refused, rule};
use crate::tls::{Tls, Watching};

use keeper::Keeper;
use lane::Lanes;
use nodes::Nodes;

pub use agent::{AgentReceiver, AgentSender, AgentStream, StreamBroken};
pub use cluster::AddedMember;
pub use hold::{Deadline, SessionLease};
pub use lease::{CampaignOptions, Lease, LeaseError, Session, SessionOptions};
pub use operations::Wanted;
pub use watch::{Seen, Watch};

/// How a client behaves.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// Deadline of one call, all attempts together.
    pub timeout: Duration,
    /// Deadline of the first attempt of a read or write; doubled with each that got no answer, so
    /// that a frozen node costs little and a slow network is still given time.
    pub attempt: Duration,
    /// Nodes to which the keep-alive holds a second connection open, so that a change of node needs
    /// no dial and no handshake.
    pub spares: usize,
    /// How to dial.
    pub channel: ChannelOptions,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            attempt: Duration::from_millis(250),
            spares: 2,
            channel: ChannelOptions::default(),
        }
    }
}

/// A handle on a cluster. Clones share connections, lanes and the keep-alive stream.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    options: ClientOptions,
}

struct Inner {
    nodes: Arc<Nodes>,
    lanes: Lanes,
    clock: Arc<dyn Clock>,
    keeper: OnceLock<Keeper>,
    agent: agent::AgentLane,
    /// A leaf or authority that is replaced while the client runs must reach it without a restart:
    /// one that cannot dial any more loses its leases.
    _fresh: Arc<Watching>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("endpoints", &self.endpoints()).finish_non_exhaustive()
    }
}

/// The endpoints are not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// None was given.
    #[error("no endpoint is given; name at least one node as <host>:<port>")]
    NoEndpoint,
    /// One of them is no address.
    #[error(transparent)]
    Address(#[from] BadAddress),
}

impl Client {
    /// A client of the nodes at `endpoints` (`host:port`). Nothing is dialled yet. Certificate
    /// files that change are read again within seconds, for as long as the client lives. Must be
    /// called in a tokio runtime.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn new(
        endpoints: &[String],
        tls: Arc<Tls>,
        options: ClientOptions,
    ) -> Result<Self, OpenError> {
        Self::with_clock(endpoints, tls, options, Arc::new(SystemClock))
    }

    /// The same with another clock for leases; for tests and simulators.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn with_clock(
        endpoints: &[String],
        tls: Arc<Tls>,
        options: ClientOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpenError> {
        let fresh = tls.keep_fresh();
        let nodes = Arc::new(Nodes::new(endpoints, tls, options.channel)?);
        let keeper = OnceLock::new();
        let (lanes, agent) = (Lanes::default(), agent::AgentLane::default());
        let inner = Inner { nodes, lanes, clock, keeper, agent, _fresh: fresh };
        Ok(Self { inner: Arc::new(inner), options })
    }

    /// The same client with another deadline.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        let options = ClientOptions { timeout, ..self.options };
        Self { inner: Arc::clone(&self.inner), options }
    }

    /// Addresses of the nodes known by now: those given, and those that hints named.
    pub fn endpoints(&self) -> Vec<String> {
        self.inner.nodes.addresses()
    }

    /// The channel to each node known by now, for questions to a certain one.
    pub fn channels(&self) -> Vec<(String, Channel)> {
        self.inner.nodes.channels()
    }

    fn keeper(&self) -> &Keeper {
        self.inner.keeper.get_or_init(|| {
            let nodes = Arc::clone(&self.inner.nodes);
            Keeper::start(nodes, Arc::clone(&self.inner.clock), self.options.spares)
        })
    }
}

/// A call that was not answered with success.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", self.text())]
pub struct CallError {
    /// The last answer.
    pub status: Status,
    /// Its details, if a node of this cluster gave it.
    pub refused: Option<Refused>,
    /// Who gave it.
    pub endpoint: String,
    /// Attempts made.
    pub attempts: u32,
}

/// What a failed call means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallErrorKind {
    /// A rule says no; unchanged it will say so again.
    Refused,
    /// The right or the identity is missing.
    NotAllowed,
    /// Compare-and-set lost: read again.
    Conflict,
    /// There is no such thing.
    NotFound,
    /// The request is wrong.
    Invalid,
    /// A bound is reached.
    Quota,
    /// A watch must begin with a snapshot again.
    Compacted,
    /// Nobody did it: no node could be reached, or there is no leader.
    Unreachable,
    /// It may have been done, or may yet be.
    OutcomeUnknown,
    /// A defect.
    Internal,
}

impl CallError {
    /// What it means.
    pub fn kind(&self) -> CallErrorKind {
        let rule = self.refused.as_ref().map(|refused| refused.rule.as_str());
        match self.status.code() {
            Code::FailedPrecondition => CallErrorKind::Refused,
            Code::PermissionDenied | Code::Unauthenticated => CallErrorKind::NotAllowed,
            Code::Aborted | Code::AlreadyExists => CallErrorKind::Conflict,
            Code::NotFound => CallErrorKind::NotFound,
            Code::InvalidArgument => CallErrorKind::Invalid,
            Code::ResourceExhausted if rule == Some(rule::OVERLOADED) => CallErrorKind::Unreachable,
            Code::ResourceExhausted => CallErrorKind::Quota,
            Code::OutOfRange => CallErrorKind::Compacted,
            Code::Unavailable if rule.is_some() => CallErrorKind::Unreachable,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
                CallErrorKind::OutcomeUnknown
            }
            _ => CallErrorKind::Internal,
        }
    }

    /// Whether the same call may be answered a little later: it was not a refusal.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind(), CallErrorKind::Unreachable | CallErrorKind::OutcomeUnknown)
    }

    fn text(&self) -> String {
        let mut text = self.status.message().to_owned();
        if text.is_empty() {
            text = self.status.code().to_string();
        }
        // The transport's own message says only "transport error"; the cause is in the source.
        let mut source = std::error::Error::source(&self.status);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.ends_with(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        format!("{}: {text}", self.endpoint)
    }
}
