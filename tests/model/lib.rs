//! The safety protocol as small models, checked exhaustively before the code exists.
//!
//! PROTOCOL.md is the law; here it is small enough for a machine to try every order of every step
//! within stated bounds. What a model shows twice over: that with all rules S1, S2, S5, S6 and S8
//! hold, and that each rule is needed, because without it one of them breaks. A hole found here is
//! closed in PROTOCOL.md and here first, then in the code.
//!
//! Two models, each assuming what the other guarantees: [`lease`] is section C, with clocks and no
//! PostgreSQL; [`role_change`] is section D with parts of B and E, with PostgreSQL and no clock, as
//! quorum mode promises. [`certificate`] is the one place of quorum mode where a clock matters: F.

pub mod certificate;
pub mod lease;
pub mod role_change;
#[cfg(test)]
mod tests;
