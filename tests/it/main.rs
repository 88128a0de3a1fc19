//! The end-to-end tests: one binary, real processes, real certificates, loopback only.
//!
//! Each test has a cluster of its own in a directory of its own, so they run side by side. None
//! sleeps to wait: each waits for a condition, with a deadline.

#![allow(clippy::unwrap_used)]

mod clients;
mod cluster;
mod cut_off;
mod database;
mod drain;
mod elections;
mod follow;
mod full_disk;
mod http_port;
mod lost_log;
mod members;
mod old_disk;
mod own;
mod power;
mod restore;
mod revoked;
mod routing;
mod security;
mod services;
mod survive;
mod traces;
mod verbs;
mod writers;
