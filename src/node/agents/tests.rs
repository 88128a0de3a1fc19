//! How streams of agents, the relay and the desk behave.
#![allow(clippy::unwrap_used)]
