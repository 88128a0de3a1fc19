//! The routes of Regent's services as xDS: Envoy and gRPC clients follow a failover by themselves.
//!
//! ```text
//! Routes ─► resources (pure) ─► session (a state machine per stream) ─► serve (tonic)
//!                 ▲                   ▲
//!              client: who asks    names: what a resource is called
//! ```
//!
//! Each service is two resources of every kind, `<service>.write` and `<service>.read`: listener,
//! route configuration, cluster and endpoints share the name. What is sent follows only from the
//! routes and from who asks, so any node's answer has the version that any other node's has.
//!
//! Nothing here knows a clock, a node or the log; whom a caller may ask about is the [`Source`]'s
//! business, and so is making addresses of host names: EDS takes IP addresses only.
//!
//! [`Source`]: serve::Source

pub mod bootstrap;
pub mod client;
pub mod names;
pub mod resources;
pub mod serve;
pub mod session;
#[cfg(test)]
mod testing;
pub mod tuning;
