//! The node's HTTP port: metrics for Prometheus, liveness and readiness for whoever restarts or
//! routes to nodes.
//!
//! It reads, it never changes anything, and nothing waits for it. It is served over the same mTLS
//! as every other port; plaintext is possible on loopback only (see [`server::Plaintext`]).

pub mod health;
pub mod metrics;
pub mod process;
pub mod server;

pub use health::{Health, Readiness};
pub use metrics::{MetricRow, Metrics, metric_table};
