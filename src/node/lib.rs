//! regent-node: one coordinator process, `regent server`.
//!
//! A shell around [`regent_core`] and [`regent_raft`]: it takes requests over mTLS, asks who may,
//! turns them into log entries or linearizable reads, and answers. It decides nothing by itself:
//! what is granted, refused or expired is decided by `State::apply` from the log alone.

pub mod config;
pub mod identity;

#[cfg(test)]
mod testing;
