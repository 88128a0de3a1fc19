//! Whole nodes in one process, over real mTLS on loopback.
#![allow(clippy::unwrap_used)]

mod agents;
mod carried;
mod cluster;
mod dns;
pub(crate) mod figures;
mod lives;
mod members;
mod poison;
pub(crate) mod rig;
mod routes;
mod services;
mod timing;
