//! The routes of Regent's services as DNS: a small authoritative responder, for those who can follow
//! a failover in no better way.
//!
//! ```text
//! bytes ─► answer (pure: zone + source) ─► bytes        serve: UDP and TCP around it, bounded
//!            │        └── records: what endpoints are in DNS
//!            └── zone: which names there are
//! ```
//!
//! It answers from what the [`Source`] says at that moment and keeps nothing, so no answer is older
//! than the question; what resolvers keep is bounded by the TTL alone. Who takes writes is the
//! routes' business: where they name nobody there is no record, never an old one.
//!
//! The wire's format is hickory-proto's, which is kept by the makers of Hickory DNS. Their server is
//! not used: it brings zone files, catalogs, transfers, updates and DNSSEC, of which nothing is
//! wanted here, and what is left of it are the two loops in `serve`.
//!
//! Nothing here knows a node, the log or a clock of the wall.

mod answer;
mod records;
mod serve;
#[cfg(test)]
mod tests;
mod zone;

use std::sync::Arc;

use regent_core::id::Locality;
use regent_core::route::table::Routes;

pub use answer::{MAX_UDP_ANSWER, Outcome, Over, answer};
pub use serve::{Bounds, Ports, serve};
pub use zone::{BadName, Zone, label_of};

/// What is known of a service.
#[derive(Clone, Debug)]
pub enum Known {
    /// Its routes.
    Routes(Arc<Routes>),
    /// There is no such service.
    Nothing,
    /// Nothing can be said here yet, or any more: whoever asks is to ask another node.
    NotHere,
}

/// What the responder needs of a node.
pub trait Source: Send + Sync + 'static {
    /// The service whose label ([`label_of`]) this is. It must not block, and is asked for every
    /// message that anybody sends.
    fn find(&self, label: &str) -> Known;

    /// Serial of the zone: it rises with what is applied.
    fn serial(&self) -> u32;

    /// Where those who ask are taken to be: standbys near to it come first.
    fn place(&self) -> Locality;

    /// A message was answered, or dropped.
    fn noted(&self, outcome: Outcome);
}
