//! The end-to-end tests with real PostgreSQL: a lab with databases for each test, faults by pid, an
//! application that writes all the while and knows what it was promised.
//!
//! - [`rig`]: the lab of one test. [`load`]: its application. [`hand`]: what people do by hand.
//!   [`pulse`]: how the machine fared.
//! - [`death`]: processes end, also several at once. [`freeze`]: they stop and stay.
//!   [`handover`]: an operator asks. [`blind`]: the coordinators are gone. [`alone`]: the agent is.
//! - [`cut`]: packets are dropped, on a network of the lab's own.
//! - [`proxy`]: HAProxy stands between. [`pgbouncer`]: PgBouncer, which holds its clients. [`dns`]: names
//!   lead there.
//! - [`degraded`]: no standby is left.
//! - [`asks`]: a loss that people must allow. [`strange`]: what must be refused.
//! - [`fencer`]: the fencer ends or stops. [`rebuilt`]: a directory of no use is copied anew.
//! - [`tamper`]: commits wait for less than they should. [`holes`]: or their wait is cut short.
//! - [`adopt`]: what was there before Regent. [`release`]: what is there after it. [`reads`]: clients
//!   of standbys.

mod adopt;
mod alone;
mod asks;
mod blind;
mod cut;
mod death;
mod degraded;
mod dns;
pub mod envoy;
mod fencer;
mod fetch;
mod freeze;
mod hand;
mod handover;
mod holes;
mod load;
mod pgbouncer;
mod proxy;
mod pulse;
mod reads;
mod rebuilt;
mod release;
mod rig;
mod routes;
mod strange;
mod tamper;
