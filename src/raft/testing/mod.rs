//! Whole nodes in one process: virtual time, simulated disks, a network that can be cut.

mod cluster;
mod disk;
mod membership;
mod mesh;
mod offline;
mod reversion;
mod suite;
