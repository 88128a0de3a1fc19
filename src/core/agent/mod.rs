//! The sidecar's logic: what an instance does next, as a pure function of what it was told, what lies
//! on its disk and what runs. Tested without PostgreSQL, run under the simulator and the real agent
//! alike.
//!
//! It must never act as a primary on its own authority, only stop (PROTOCOL.md C, E, F).
//!
//! - [`notebook`]: what the agent itself keeps on disk, and which directives it takes (B, S4).
//! - [`local`]: what it knows of its database between looks; [`deeds`]: what its own steps change in that;
//!   [`lowered`]: commits that wait for less than they should.
//! - [`world`]: what it knows at one instant.
//! - [`step`]: the next step. Level-triggered: whatever happened before, the same world gives the
//!   same step, so that a crash between two steps costs nothing but time.
//! - [`pause`]: how the fencer loses its deadline under a pause, and gets it back (E5).
//! - [`reports`]: what renewals say of it, and which of that is known to be in the log (C4).
//! - [`right`]: until when it may serve writes, lease (C1) or certificate (F), and be named (S8).

pub mod deeds;
pub mod local;
pub mod lowered;
pub mod notebook;
pub mod pause;
pub mod reports;
pub mod right;
pub mod step;
#[cfg(test)]
pub(crate) mod tests;
pub mod world;

pub use local::{Found, Local, Seen, SeenReceiver, Told};
pub use lowered::{Lowered, LoweredSession, Override, Wanted};
pub use notebook::{Notebook, Pledge};
pub use pause::Pausing;
pub use reports::Reports;
pub use right::{Naming, Right, may_stay_shut};
pub use step::{Step, next};
pub use world::{Data, OnDisk, World};
