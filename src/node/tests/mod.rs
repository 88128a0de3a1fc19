//! Whole nodes in one process, over real mTLS on loopback.
#![allow(clippy::unwrap_used)]

mod carried;
mod cluster;
mod figures;
mod lives;
mod members;
mod poison;
mod rig;
mod services;
mod timing;
