//! regent-raft: consensus and its durable storage, behind a small non-generic surface.
//!
//! openraft is generic over its types, so the code that instantiates it is compiled where that
//! happens: here, once. Nothing outside this crate names `openraft::`, and nothing here knows
//! gRPC: the network is a [`api::Transport`], the disk a [`store::vfs::Vfs`], so that the simulator
//! runs the very same code.
//!
//! | file | what it is |
//! |---|---|
//! | [`api`] | what the shells and the simulator plug in and get out |
//! | `consensus`, `serve`, `members`, `reads`, `status`, `keeper` | the handle and its parts |
//! | `log_store`, `machine`, `network`, `wire`, `types` | openraft's traits, implemented |
//! | [`runtime`] | tokio with hooks for the simulator |
//! | [`store`] | the log and the snapshots on disk |

// An error that says who leads carries that member by value: it is read at once and rare beside the
// answers, so a box would only add a step for every caller.
#![allow(clippy::result_large_err)]

pub mod api;
mod config;
mod consensus;
mod followers;
pub mod held;
mod keeper;
mod log_store;
mod machine;
mod members;
mod network;
pub mod offline;
mod reads;
pub mod runtime;
mod serve;
mod status;
pub mod store;
mod types;
mod wire;

#[cfg(test)]
mod testing;

pub use config::{ConsensusConfig, RunMode, StartError};
pub use consensus::Consensus;
