//! The gRPC services of a node, one file each. A handler authorizes, converts, proposes or reads,
//! and answers; it decides nothing.

pub mod ads;
pub mod agent;
pub mod audit;
pub mod calls;
pub mod carried;
pub mod cluster;
pub mod election;
pub mod forwarded;
pub mod guard;
pub mod mux;
pub mod operation;
pub mod page;
pub mod peer;
pub mod raft;
pub mod routing;
pub mod topology;
pub mod watches;
