//! Request ids: every client's call gets one, which stands in the log lines of what the call causes
//! and in the answer, so that what a user saw and what a log says can be laid side by side.
//!
//! A caller may send its own id; it is taken only if it is short and plain, for it goes into logs.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use regent_core::id::NodeId;
use regent_rpc::tls::PeerIdentity;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Header (gRPC metadata) that carries the id, both ways.
pub const REQUEST_ID: HeaderName = HeaderName::from_static(regent_rpc::calls::REQUEST_ID);
/// The target of the spans of calls, for log directives: `regent::request=debug` shows those of the
/// frequent calls too.
pub const REQUEST_TARGET: &str = "regent::request";

/// Longest id taken from a caller: a UUID and a prefix.
const MAX_ID_BYTES: usize = 64;

/// What tells one call from all others. Made and copied without an allocation.
#[derive(Clone, Debug)]
pub enum RequestId {
    /// As the caller sent it; short and plain.
    Theirs(HeaderValue),
    /// Drawn here.
    Ours(u64),
}

impl RequestId {
    /// The caller's id if it is fit for a log line, else a new one.
    pub fn of(headers: &HeaderMap) -> Self {
        let sent = headers.get(&REQUEST_ID).filter(|id| is_plain(id.as_bytes()));
        sent.map_or_else(Self::drawn, |id| Self::Theirs(id.clone()))
    }

    /// The same for an id that came inside a message.
    pub fn given(id: &str) -> Self {
        match HeaderValue::try_from(id) {
            Ok(id) if is_plain(id.as_bytes()) => Self::Theirs(id),
            _ => Self::drawn(),
        }
    }

    fn drawn() -> Self {
        Self::Ours(rand::random())
    }

    /// For an answer.
    pub fn to_header(&self) -> HeaderValue {
        match self {
            Self::Theirs(id) => id.clone(),
            Self::Ours(_) => HeaderValue::try_from(self.to_string())
                .expect("hexadecimal digits are a header value"),
        }
    }
}

fn is_plain(id: &[u8]) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !id.is_empty() && id.len() <= MAX_ID_BYTES && id.iter().all(plain)
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Theirs(id) => f.write_str(id.to_str().unwrap_or_default()),
            Self::Ours(id) => write!(f, "{id:016x}"),
        }
    }
}

tokio::task_local! {
    static CURRENT: RequestId;
}

/// The id of the call on whose behalf this runs; none where the node acts by itself.
pub fn current() -> Option<RequestId> {
    CURRENT.try_with(RequestId::clone).ok()
}

/// `work` on behalf of the call `id`: [`current`] tells it.
pub fn on_behalf_of<F: Future>(id: RequestId, work: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(id, work)
}

/// The same for what does not wait.
pub fn at_once_on_behalf_of<T>(id: &RequestId, work: impl FnOnce() -> T) -> T {
    CURRENT.sync_scope(id.clone(), work)
}

/// How often calls of a service come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// People and their tools: each call has a span wherever `info` is logged.
    Rare,
    /// Thousands a second: a span only where [`REQUEST_TARGET`] is logged at `debug`, or traced.
    Frequent,
}

/// A span for one call: method, request id, caller; a child of the caller's trace if it sent one
/// (W3C `traceparent`). Costs nothing to speak of where nobody looks at it.
pub fn span<B>(pace: Pace, id: &RequestId, request: &http::Request<B>) -> tracing::Span {
    let span = call_span(pace, id, request.uri().path(), request.extensions().get());
    if !span.is_disabled() && request.headers().contains_key("traceparent") {
        let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
        // Fails only when no trace layer is set up, and then there is nothing to link.
        let _ = span.set_parent(parent);
    }
    span
}

/// A span for one call by `peer`, nobody's child.
pub fn call_span(
    pace: Pace,
    id: &RequestId,
    method: &str,
    peer: Option<&PeerIdentity>,
) -> tracing::Span {
    let caller = || Caller(peer);
    match pace {
        Pace::Rare => tracing::info_span!(
            target: REQUEST_TARGET, "request", method, %id, caller = %caller()
        ),
        Pace::Frequent => tracing::debug_span!(
            target: REQUEST_TARGET, "request", method, %id, caller = %caller()
        ),
    }
}

/// A span for an entry that `from` handed over on behalf of its call `id`.
pub fn forwarded_span(id: &RequestId, from: NodeId) -> tracing::Span {
    tracing::debug_span!(target: REQUEST_TARGET, "forwarded", %id, %from)
}

/// Who calls, for a log line.
struct Caller<'a>(Option<&'a PeerIdentity>);

impl fmt::Display for Caller<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(PeerIdentity { principal: Ok(principal), .. }) => principal.fmt(f),
            Some(peer) => f.write_str(&peer.spiffe),
            None => Ok(()),
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }
    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_for(sent: &'static str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static(sent));
        let id = RequestId::of(&headers);
        assert_eq!(id.to_header().to_str().expect("plain"), id.to_string());
        id.to_string()
    }

    #[tokio::test]
    async fn what_runs_on_behalf_of_a_call_knows_its_id() {
        assert!(current().is_none());
        let work = async {
            tokio::task::yield_now().await;
            current().map(|id| id.to_string())
        };
        let told = on_behalf_of(RequestId::given("deploy-42"), work).await;
        assert_eq!(told.as_deref(), Some("deploy-42"));
        let told = at_once_on_behalf_of(&RequestId::Ours(7), current);
        assert_eq!(told.map(|id| id.to_string()).as_deref(), Some("0000000000000007"));
        assert!(current().is_none());
    }

    #[test]
    fn a_plain_id_is_kept_and_anything_else_is_replaced() {
        assert_eq!(id_for("deploy-42.a_b"), "deploy-42.a_b");
        for bad in ["", "two words", "quote\"", "a=b;c"] {
            let id = id_for(bad);
            assert_ne!(id, bad);
            assert_eq!(id.len(), 16);
        }
        let long: &'static str = Box::leak("x".repeat(MAX_ID_BYTES + 1).into_boxed_str());
        assert_eq!(id_for(long).len(), 16);
    }
}
