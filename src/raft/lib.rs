//! regent-raft: consensus and its durable storage, behind a small non-generic surface.
//!
//! openraft is generic over its types, so the code that instantiates it is compiled where that
//! happens: here, once. Nothing outside this crate names `openraft::`, and nothing here knows
//! gRPC: the network is a [`api::Transport`], the disk a [`store::vfs::Vfs`], so that the simulator
//! runs the very same code.

pub mod api;
mod config;
mod consensus;
pub mod store;

pub use config::{ConsensusConfig, RunMode, StartError};
pub use consensus::Consensus;
