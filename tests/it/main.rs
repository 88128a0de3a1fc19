//! The end-to-end tests: one binary, real processes, real certificates, loopback only.
//!
//! Each test has a cluster of its own in a directory of its own, so they run side by side. None
//! sleeps to wait: each waits for a condition, with a deadline.

#![allow(clippy::unwrap_used)]

mod clients;
mod cluster;
mod cut_off;
mod old_disk;
mod restore;
mod security;
mod survive;
mod verbs;
