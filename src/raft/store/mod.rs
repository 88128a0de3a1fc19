//! The durable log and snapshots, over a disk that can be simulated.
//!
//! Everything that a node must not forget goes through here: votes, log entries, snapshots and the
//! identity of the disk. Nothing here knows Raft's types; it keeps bytes, in order, and says
//! exactly when they are safe. All access to the disk goes through [`vfs::Vfs`], so that a
//! simulated disk can lose, tear and reorder what was not synced.
//!
//! | file | what it is |
//! |---|---|
//! | [`vfs`], [`real_disk`] | the disk as a trait, and the operating system's |
//! | [`sim_disk`] | a disk in memory with seeded faults and enumerable crash states |
//! | [`record`], `frame`, [`segment`], `cursor` | the format: records, groups of them, files, order |
//! | `recover` | reads it back; tells a torn write from damage |
//! | `outcome` | settings, answers, errors |
//! | [`wal`] | the log itself: one write and one fdatasync per group |
//! | [`writer`], [`figures`] | group commit on a thread, or inline for the simulator; its figures |
//! | [`snapshot`], [`identity`] | snapshot files; who this disk belongs to |
//! | [`quarantine`] | the mark of a disk that went back in time |

mod cursor;
pub mod figures;
mod frame;
pub mod identity;
mod outcome;
pub mod quarantine;
pub mod real_disk;
pub mod record;
mod recover;
mod sabotage;
pub mod segment;
pub mod sim_disk;
pub mod snapshot;
#[cfg(test)]
mod tests;
pub mod vfs;
pub mod wal;
pub mod writer;

/// Where the log lives, below the data directory.
pub const LOG_DIR: &str = "log";
/// Where snapshots live, below the data directory.
pub const SNAPSHOT_DIR: &str = "snapshots";
