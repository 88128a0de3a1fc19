//! regent-node: one coordinator process, `regent server`.
//!
//! A shell around [`regent_core`] and [`regent_raft`]: it takes requests over mTLS, asks who may,
//! turns them into log entries or linearizable reads, and answers. It decides nothing by itself:
//! what is granted, refused or expired is decided by `State::apply` from the log alone.

pub mod admission;
pub mod agents;
pub mod announced;
pub mod audit;
pub mod clocks;
pub mod come_up;
pub mod compare;
pub mod config;
pub mod disks;
pub mod dns;
pub mod duties;
pub mod figures;
pub mod forward;
pub mod history;
pub mod http;
pub mod identity;
pub mod leader;
pub mod leadership;
pub mod members;
pub mod peers;
pub mod proposals;
pub mod propose;
pub mod reads;
pub mod recover;
pub mod refusals;
pub mod refuse;
pub mod renewals;
pub mod restore;
pub mod roles;
pub mod routes;
pub mod rpc;
pub mod run;
pub mod server;
pub mod sessions;
pub mod shell;
pub mod sink;
pub mod start;
pub mod telemetry;
pub mod timing;
pub mod transport;
pub mod watch;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
