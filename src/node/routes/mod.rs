//! Routes, as this node serves them: derived from what is applied here, from what the leader says
//! of standbys, and from this node's own belief (C3, S8).
//!
//! ```text
//! apply (state locked) ──► RouteHub: one table per followed service ──► watch channel ──► streams
//! leader's judges ─► fitness stream of peers ─┘        └── sweep: belief begins and ends by the clock
//! ```
//!
//! A table is made when something it is made from changes, so a change costs work for its own
//! service only. Levels, not events: whoever is slow sees the newest table and misses nothing that
//! still matters. What the leader said of standbys outlives it: reads are fail-static.

mod awaited;
pub mod encoded;
mod fits;
mod hub;
mod routers;
pub mod spread;
#[cfg(test)]
mod tests;

pub use hub::{LOOK_FIRST, RouteHub, Told, Writable};
pub use routers::{Count, Following, Routers};
