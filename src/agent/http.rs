//! The port for health checks of load balancers, with the paths that Patroni's users know.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::net::TcpListener;

use crate::status::Published;

type Shared = Arc<Mutex<Published>>;

#[derive(Deserialize)]
struct Lag {
    /// Most bytes that may be received and not replayed.
    lag: Option<u64>,
}

/// Serves until the agent ends.
///
/// # Errors
/// The listener's.
pub async fn serve(listener: TcpListener, published: Shared) -> std::io::Result<()> {
    let app = Router::new()
        .route("/primary", get(primary))
        .route("/replica", get(replica))
        .route("/health", get(health))
        .route("/liveness", get(|| async { StatusCode::OK }))
        .with_state(published);
    axum::serve(listener, app).await
}

fn answer(yes: bool, published: Published) -> (StatusCode, Json<Published>) {
    let code = if yes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(published))
}

async fn primary(State(published): State<Shared>) -> (StatusCode, Json<Published>) {
    let now = published.lock().clone();
    answer(now.open && now.run == "primary", now)
}

async fn replica(
    State(published): State<Shared>,
    Query(wanted): Query<Lag>,
) -> (StatusCode, Json<Published>) {
    let now = published.lock().clone();
    let near = wanted.lag.is_none_or(|most| now.lag_bytes <= most);
    answer(now.run == "standby" && now.streams && near, now)
}

async fn health(State(published): State<Shared>) -> (StatusCode, Json<Published>) {
    let now = published.lock().clone();
    answer(now.answers, now)
}
