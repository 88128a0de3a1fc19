#![allow(clippy::unwrap_used)]

mod calls;
mod fake;
mod leases;
mod watches;
