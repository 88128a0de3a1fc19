//! The engine against real PostgreSQL servers on this machine.

#![allow(clippy::unwrap_used)]

mod adopt;
mod disk;
mod failover;
mod names;
mod rig;
mod secure;
mod timelines;
