//! Request ids: every call gets one, in its span and in its answer, so that what a user saw and
//! what a log says can be laid side by side.
//!
//! A caller may send its own id; it is taken only if it is short and plain, for it goes into logs.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Header (gRPC metadata) that carries the id, both ways.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id taken from a caller: a UUID and a prefix.
const MAX_ID_BYTES: usize = 64;

/// The caller's id if it is fit for a log line, else a new one.
pub fn request_id(headers: &HeaderMap) -> HeaderValue {
    headers
        .get(&REQUEST_ID)
        .filter(|id| {
            let bytes = id.as_bytes();
            let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            !bytes.is_empty() && bytes.len() <= MAX_ID_BYTES && bytes.iter().all(plain)
        })
        .cloned()
        .unwrap_or_else(|| {
            let text = format!("{:016x}", rand::random::<u64>());
            HeaderValue::try_from(text).expect("hexadecimal digits are a header value")
        })
}

/// A span for one call: method, request id, caller; a child of the caller's trace if it sent one
/// (W3C `traceparent`).
pub fn span(method: &str, id: &HeaderValue, caller: &str, headers: &HeaderMap) -> tracing::Span {
    let id = id.to_str().unwrap_or("");
    let span = tracing::info_span!(target: "regent::request", "request", method, id, caller);
    if headers.contains_key("traceparent") {
        let parent = TraceContextPropagator::new().extract(&Headers(headers));
        // Fails only when no trace layer is set up, and then there is nothing to link.
        let _ = span.set_parent(parent);
    }
    span
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
        request_id(&headers).to_str().expect("plain").to_owned()
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
