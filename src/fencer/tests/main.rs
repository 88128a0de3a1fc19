//! Real processes under a real fencer. As root each test runs in a PID namespace; without the right to
//! make one the same tests run `armed=weak`, and say so.

#![allow(clippy::unwrap_used)]

mod attach;
mod deadline;
mod frozen;
mod hostile;
mod postgres;
mod rig;
mod start;
mod unprivileged;
mod watchdog;
mod weak;
