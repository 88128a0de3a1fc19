//! The durable log and snapshots, over a disk that can be simulated.
