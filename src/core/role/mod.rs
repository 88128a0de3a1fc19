//! The words of a role change (PROTOCOL.md D): positions, sync sets, directives, receipts, starts,
//! proofs. Values only; who may change what is in [`crate::state::role`].

pub mod observe;
pub mod order;
pub mod plan;
pub mod position;
pub mod receipt;
pub mod renewal;
pub mod set;
pub mod start;

pub use order::{Directive, DirectiveNumber, Order};
pub use plan::{CompleteProof, Consent, FenceKind, Loss, OutProof, Phase};
pub use position::{Lsn, Position};
pub use receipt::{Proof, Receipt};
pub use renewal::{HolderInstant, HolderReport, MachineBoot, StopInstant, Watermark};
pub use set::SyncSet;
pub use start::{AgentStart, Armed, DataIdentity};
