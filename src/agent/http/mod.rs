//! The port for health checks of load balancers: the paths that Patroni's users know, HAProxy's
//! agent-check on the same port, and the metrics of this one instance.
//!
//! - [`accept`] tells the two protocols apart and bounds connections; [`check`] is agent-check.

mod accept;
mod check;
mod metrics;

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Json, Router};
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer};
use tokio::net::TcpListener;

use crate::status::{Page, Published};

type Shared = Arc<Mutex<Page>>;

#[derive(Deserialize)]
struct Lag {
    /// Most bytes that may be received and not replayed: a number, or with a unit as PostgreSQL
    /// writes it (`16MB`).
    #[serde(default, deserialize_with = "bytes")]
    lag: Option<u64>,
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(from)?;
    parse_bytes(&text).map(Some).ok_or_else(|| {
        serde::de::Error::custom(format!("{text:?} is no number of bytes, as 1048576 or 16MB"))
    })
}

fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "kB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Serves until the agent ends.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: TcpListener, shared: Shared) -> std::io::Result<()> {
    let app = paths(shared.clone());
    axum::serve(accept::Accepted::new(listener, shared)?, app).await
}

/// HAProxy asks with OPTIONS unless told otherwise.
fn asked(yes: fn(&Published, &Lag) -> bool) -> MethodRouter<Shared> {
    let answer = move |State(page): State<Shared>, Query(wanted): Query<Lag>| async move {
        let now = page.lock().at(regent_fencer::clock::now());
        let code = match yes(&now, &wanted) {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        (code, Json(now))
    };
    on(MethodFilter::GET.or(MethodFilter::HEAD).or(MethodFilter::OPTIONS), answer)
}

fn is_primary(now: &Published, _: &Lag) -> bool {
    now.open && now.run == "primary"
}

fn is_replica(now: &Published, wanted: &Lag) -> bool {
    now.takes_reads && wanted.lag.is_none_or(|most| now.lag_bytes <= most)
}

/// A word means what it means to Patroni; what Regent has no like of is not there.
fn paths(shared: Shared) -> Router {
    let mut app = Router::new();
    for path in ["/", "/primary", "/master", "/leader", "/read-write"] {
        app = app.route(path, asked(is_primary));
    }
    for path in ["/replica", "/standby"] {
        app = app.route(path, asked(is_replica));
    }
    for path in ["/sync", "/synchronous"] {
        app = app.route(path, asked(|now, wanted| is_replica(now, wanted) && now.is_sync));
    }
    for path in ["/async", "/asynchronous"] {
        app = app.route(path, asked(|now, wanted| is_replica(now, wanted) && !now.is_sync));
    }
    let reads = |now: &Published, wanted: &Lag| is_primary(now, wanted) || is_replica(now, wanted);
    app.route("/read-only", asked(reads))
        .route("/readiness", asked(reads))
        .route("/health", asked(|now, _| now.answers))
        .route("/liveness", asked(|_, _| true))
        .route("/metrics", axum::routing::get(metrics_page))
        .with_state(shared)
}

async fn metrics_page(State(page): State<Shared>) -> impl IntoResponse {
    let now = page.lock().at(regent_fencer::clock::now());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::text(&now))
}

#[cfg(test)]
mod tests;
