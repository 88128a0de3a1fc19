//! regent-lab: a whole cluster on this machine, for people, tests and fault injection alike.
//!
//! `up` makes certificates, configurations and processes in one directory; everything about them
//! is in `<dir>/lab.json`, so that any later call (`status`, `heal`, `down`), by any process, works
//! from that file alone. The lab never ends a process it did not start: [`process::Process`] names
//! a process for ever, not only by its pid.
//!
//! - [`cluster`]: up, heal, down. [`layout`]: what is kept on disk. [`config`]: a node's file.
//! - [`network`]: links between its machines that can be cut.
//! - [`databases`]: PostgreSQL instances with their agents. [`writer`]: a client that writes into
//!   them and knows which rows were acknowledged.
//! - [`observe`]: what is running now. [`process`], [`ports`], [`spawn`]: of this machine.

pub mod cluster;
pub mod config;
pub mod databases;
pub mod layout;
pub mod network;
pub mod observe;
pub mod ports;
pub mod process;
pub mod spawn;
pub mod writer;

pub use cluster::{Healed, LabError, Plan, down, heal, restart, signal, up, up_with, wait_ready};
pub use layout::{Lab, LabNode, Profile};
pub use observe::{Connections, View, view, view_nodes};
