//! Where clients are sent: what is derived from a service and its instances for those who route.
//!
//! Nothing here is a proof. A router that errs meets an instance that refuses: what keeps one
//! primary is the role change (`state/role`), never a proxy's configuration.
//!
//! - [`table`]: the one table that all answers to routers are made from.
//! - [`fitness`]: which standbys take reads, with hysteresis, as the leader sees them.
//! - [`near`]: the table as a client in some place sees it.
//! - [`haproxy`], [`pgbouncer`], [`libpq`]: configurations of HAProxy and PgBouncer, connection strings
//!   of clients.

pub mod fitness;
pub mod haproxy;
pub mod libpq;
pub mod near;
pub mod pgbouncer;
pub mod table;
