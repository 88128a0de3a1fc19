//! The words of a role change (PROTOCOL.md D): positions, sets, directives, receipts.

pub mod position;

pub use position::{Lsn, Position};
