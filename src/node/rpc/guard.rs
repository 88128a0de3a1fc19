//! The first line of every handler: who asks, may they, is there room, by when.
//!
//! The identity comes from the connection's certificate and from nothing in the request. A refusal
//! is answered, counted and goes into the audit chain ([`super::calls`] logs it); it never reaches
//! the code behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use regent_core::authz::{Principal, Role, Verb, allows};
use regent_core::id::NodeId;
use regent_rpc::convert::status::{self, rule};
use regent_rpc::tls::PeerIdentity;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use crate::admission::Pass;
use crate::http::metrics::Refused;
use crate::refuse::RETRY_AFTER;
use crate::shell::Shell;

/// Deadline of a request that names none.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
/// Longest deadline a request may name: nothing waits longer for a quorum.
pub const MAX_DEADLINE: Duration = Duration::from_secs(60);

/// By when a call that came inside a stream must be answered.
#[derive(Clone, Copy, Debug)]
pub struct Until(pub Instant);

/// Who asks, and by when the answer must be there. Holds a place among the requests under way.
#[derive(Debug)]
pub struct Caller {
    /// Who.
    pub principal: Principal,
    /// By when.
    pub until: Instant,
    _place: Place,
}

/// Requests under way on one node.
#[derive(Debug)]
pub struct Inflight {
    count: AtomicUsize,
    most: usize,
}

/// One of them; leaves when dropped.
#[derive(Debug)]
struct Place(Arc<Inflight>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Inflight {
    /// Room for `most` requests.
    pub fn new(most: usize) -> Self {
        Self { count: AtomicUsize::new(0), most }
    }

    /// Requests under way.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    fn enter(self: &Arc<Self>) -> Option<Place> {
        let before = self.count.fetch_add(1, Ordering::AcqRel);
        let place = Place(self.clone());
        (before < self.most).then_some(place)
    }
}

impl Shell {
    /// Admits a request for `verb` on `resource`.
    ///
    /// # Errors
    /// UNAUTHENTICATED without an identity, PERMISSION_DENIED without the right (both recorded),
    /// RESOURCE_EXHAUSTED when too much is under way, UNAVAILABLE when the node is stopping.
    pub fn admit<T>(
        &self,
        request: &Request<T>,
        verb: Verb,
        resource: &str,
    ) -> Result<Caller, Status> {
        let principal = self.authorize(request, verb, resource)?;
        if self.is_stopping() {
            return Err(status::unavailable(rule::NOT_READY, "this node is stopping", RETRY_AFTER));
        }
        // Its state may lack what was acknowledged, and no leader takes a proposal from it.
        if let Some(why) = self.admission.quarantine() {
            let why = format!("this node is quarantined: {why}");
            return Err(status::unavailable(rule::NOT_READY, why, RETRY_AFTER));
        }
        let place = self
            .inflight
            .enter()
            .ok_or_else(|| status::overloaded("too many requests are under way", RETRY_AFTER))?;
        let until = match request.extensions().get() {
            Some(Until(until)) => *until,
            None => Instant::now() + deadline(request.metadata()),
        };
        Ok(Caller { principal, until, _place: place })
    }

    /// Who asks, if they may do `verb`.
    ///
    /// # Errors
    /// UNAUTHENTICATED or PERMISSION_DENIED; recorded.
    pub fn authorize<T>(
        &self,
        request: &Request<T>,
        verb: Verb,
        resource: &str,
    ) -> Result<Principal, Status> {
        let Some(peer) = request.extensions().get::<PeerIdentity>() else {
            return Err(status::no_identity("the connection has no identity"));
        };
        let principal = match &peer.principal {
            Ok(principal) => principal,
            Err(problem) => {
                let by = if peer.spiffe.is_empty() { "(no identity)" } else { &peer.spiffe };
                self.refusals.note(by, verb, resource, &problem.to_string());
                return Err(status::no_identity(problem.to_string()));
            }
        };
        if !allows(principal.role, verb) {
            self.refusals.note(&principal.to_string(), verb, resource, "not allowed");
            let labels = Refused { role: principal.role.as_str(), verb: verb.as_str() };
            self.metrics.authz_refusals.get_or_create(&labels).inc();
            // Calls among nodes do not pass the place where clients' refusals are logged.
            if verb == Verb::Internal {
                tracing::warn!(who = %principal, "a call that is for nodes only was refused");
            }
            return Err(status::not_allowed(format!("{principal} may not {verb}")));
        }
        Ok(principal.clone())
    }

    /// Which node speaks, if it is one and its disk did not go back in time.
    ///
    /// # Errors
    /// PERMISSION_DENIED for everybody else.
    pub fn authorize_node<T>(&self, request: &Request<T>) -> Result<Pass, Status> {
        let principal = self.authorize(request, Verb::Internal, "raft")?;
        let node = principal
            .name
            .parse()
            .ok()
            .filter(|_| principal.role == Role::Node)
            .map(NodeId)
            .ok_or_else(|| status::not_allowed(format!("{principal} names no node id")))?;
        self.admission.pass(node, request.metadata()).map_err(went_back)
    }
}

/// A node's start is not one that may speak for it (any more).
pub fn went_back(why: String) -> Status {
    status::refused("disk_went_back", why, "give it a new node id")
}

/// How long the caller waits: `grpc-timeout`, at most [`MAX_DEADLINE`].
pub fn deadline(metadata: &MetadataMap) -> Duration {
    metadata
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok())
        .and_then(timeout)
        .unwrap_or(DEFAULT_DEADLINE)
        .min(MAX_DEADLINE)
}

/// Reads a `grpc-timeout`: up to 8 digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.saturating_mul(3600)),
        "M" => Duration::from_secs(number.saturating_mul(60)),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_read_as_grpc_writes_it_and_capped() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().expect("ascii"));
            deadline(&metadata)
        };
        assert_eq!(read("250m"), Duration::from_millis(250));
        assert_eq!(read("3S"), Duration::from_secs(3));
        assert_eq!(read("99999999H"), MAX_DEADLINE);
        for bad in ["", "5", "x", "123456789S", "-1S", "5é"] {
            let mut metadata = MetadataMap::new();
            if let Ok(value) = bad.parse() {
                metadata.insert("grpc-timeout", value);
            }
            assert_eq!(deadline(&metadata), DEFAULT_DEADLINE, "{bad:?}");
        }
    }

    #[test]
    fn no_more_requests_than_the_limit_are_let_in_and_places_come_back() {
        let inflight = Arc::new(Inflight::new(2));
        let one = inflight.enter();
        let two = inflight.enter();
        assert!(one.is_some() && two.is_some());
        assert!(inflight.enter().is_none());
        drop(one);
        assert!(inflight.enter().is_some());
    }
}
