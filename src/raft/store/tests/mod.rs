//! Tests of the store. They must fail when the store forgets or invents anything; `crash_states`
//! proves that they do, by breaking it on purpose.
#![allow(clippy::unwrap_used)]

mod crash_states;
mod damage;
mod disk_faults;
mod driver;
mod files;
mod workload;
