//! regent-core: everything Regent decides, as pure functions of what it was told.
//!
//! No tokio, tonic, clock, randomness, environment or file may enter here: two replicas given the
//! same entries must end byte-equal (S9), and a test must be able to replay any history. The shells
//! gather facts, ask this crate, do what it says and report back.
//!
//! # Map
//!
//! - [`id`], [`time`], [`limits`]: the words and the bounds.
//! - [`command`], [`reply`], [`effect`]: the whole vocabulary between core and shells.
//! - [`spec`]: what a service may be declared as, and how a wrong one is refused.
//! - [`timing`]: C6, the shortest ttl a cluster can keep.
//! - [`authz`]: who may do what (S15); deny by default.
//! - [`state`]: `State::apply(entry) -> Applied`, the replicated state machine.
//! - [`lease`]: the clocks of holders (C1) and nodes (C2, C3), half-dead links (C5), skew (C9).
//! - [`role`]: the words of a role change: positions, sets, directives, receipts, observations.
//! - [`decide`]: what the leader proposes by itself: the expiry of leases (C4, C8), role changes.
//! - [`agent`]: the sidecar of an instance: the next step, as a function of what it knows.
//! - [`route`]: where clients are sent: configurations for those who route.
//!
//! # Invariants kept here (numbers of DESIGN.md, section 4)
//!
//! S3 epochs strictly rise per key · S5 lease intervals of two holders do not overlap · S9 replicas
//! that applied the same index have byte-equal state · S12 a watcher sees every change once, in
//! order · S14 the audit chain holds every change and every refused attempt · S15 rights.

pub mod agent;
pub mod authz;
pub mod command;
pub mod decide;
pub mod effect;
pub mod id;
pub mod lease;
pub mod limits;
pub mod mutant;
pub mod reply;
pub mod role;
pub mod route;
pub mod spec;
pub mod state;
pub mod time;
pub mod timing;
