//! Instance agents, as one node sees them (DESIGN.md 3, PROTOCOL.md D).
//!
//! ```text
//! apply ─► Board: rows of services ──────► Stream (one per agent): instructions, answers to asks
//!                                            │ observations, loss
//!                                            ▼
//!          Desk (leader): Facts ◄── batches ─ Relay (every node with streams)
//! ```
//!
//! Nothing here decides: what an agent asks for is judged by `apply`, what it is told is the row of
//! the applied state, and what it sees goes into the leader's memory. A node that is behind tells an
//! old directive; the agent refuses whatever is below what it has obeyed (S4).

pub mod board;
pub mod desk;
pub mod instruct;
pub mod relay;
pub mod report;
pub mod stream;
#[cfg(test)]
pub(crate) mod tests;

pub use board::Board;
pub use desk::Desk;
pub use relay::Relay;
pub use report::Reports;
