//! The client against fake nodes, over real TLS and gRPC.

#![allow(clippy::unwrap_used)]

mod calls;
mod fake;
mod leases;
mod watches;
