//! The end-to-end tests with real PostgreSQL: a lab with databases for each test, faults by pid, an
//! application that writes all the while and knows what it was promised.
//!
//! - [`rig`]: the lab of one test. [`load`]: its application. [`hand`]: what people do by hand.
//! - [`death`]: processes end, also several at once. [`freeze`]: they stop and stay.
//!   [`handover`]: an operator asks. [`blind`]: the coordinators are gone. [`alone`]: the agent is.
//! - [`cut`]: packets are dropped, on a network of the lab's own.
//! - [`asks`]: a loss that people must allow. [`strange`]: what must be refused.

mod alone;
mod asks;
mod blind;
mod cut;
mod death;
mod freeze;
mod hand;
mod handover;
mod load;
mod rig;
mod strange;
