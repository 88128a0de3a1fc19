//! What a consensus node is started with, and why it may refuse to start.
//!
//! Every bound is named here with its reason; nothing else in this crate invents one.

use std::path::PathBuf;
use std::time::Duration;

use regent_core::id::NodeId;
use regent_core::timing::Timing;

/// How the parts that block (disk flushes, encoding a snapshot) are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunMode {
    /// On threads of their own, so that the runtime never stalls. Production.
    #[default]
    Threads,
    /// In tasks, so that a run is a function of its seed. Simulator and tests.
    Inline {
        /// Shortest time a flush takes, in microseconds of the (virtual) clock.
        flush_min_us: u64,
        /// Longest time a flush takes.
        flush_max_us: u64,
    },
}

impl RunMode {
    /// In tasks, with flushes that take no time.
    pub const INSTANT: Self = Self::Inline { flush_min_us: 0, flush_max_us: 0 };
}

/// Settings of one consensus node. [`ConsensusConfig::new`] gives the ones to ship.
#[derive(Clone, Debug)]
pub struct ConsensusConfig {
    /// This node; must be the id its data directory was made for.
    pub id: NodeId,
    /// The data directory; the log and the snapshots live below it.
    pub dir: PathBuf,
    /// Whether this directory had a log before: then a start that finds none is refused before one
    /// is made, because an empty one has forgotten how this node voted.
    pub has_log: bool,
    /// Heartbeat and election times; the same on every node (C6 is computed from it).
    pub timing: Timing,
    /// Whether this node may vote and campaign from the start; see
    /// [`crate::Consensus::set_votes_allowed`].
    pub votes_allowed: bool,
    /// How blocking work is run.
    pub mode: RunMode,
    /// A snapshot is taken after this many bytes of log: bounds the replay at start.
    pub snapshot_after_bytes: u64,
    /// A snapshot is taken after this many entries: bounds the replay at start.
    pub snapshot_after_entries: u64,
    /// Entries kept behind a snapshot, so that a member that was away briefly is sent log, not a
    /// snapshot.
    pub keep_entries: u64,
    /// Bytes kept behind a snapshot, at most; whichever of the two is reached first counts.
    pub keep_bytes: u64,
    /// Proposals under way at once; one more is refused as overloaded. At 10,000/s this is what
    /// piles up in 0.4 s, longer than any healthy round.
    pub max_proposals: usize,
    /// Size of one file of the log.
    pub segment_bytes: u64,
    /// Longest time a snapshot may take beside its way: to be made, decoded and saved. On its way
    /// to another node it has the time of its bytes as well; see
    /// `snapshot_travel`.
    pub snapshot_timeout: Duration,
    /// A learner is promoted only if it holds all but this many entries of the leader's log.
    pub promote_lag_entries: u64,
}

impl ConsensusConfig {
    /// The shipped settings for node `id`.
    pub fn new(id: NodeId, dir: impl Into<PathBuf>, timing: Timing) -> Self {
        Self {
            id,
            dir: dir.into(),
            has_log: false,
            timing,
            votes_allowed: true,
            mode: RunMode::Threads,
            // The log since the snapshot before the last one is in memory: two of these, at most.
            snapshot_after_bytes: 16 * 1024 * 1024,
            snapshot_after_entries: 100_000,
            keep_entries: 10_000,
            keep_bytes: 8 * 1024 * 1024,
            max_proposals: 4_096,
            segment_bytes: 64 * 1024 * 1024,
            snapshot_timeout: Duration::from_secs(60),
            promote_lag_entries: 1_000,
        }
    }
}

/// The slowest way between two nodes on which a snapshot is still expected to arrive, in bytes a
/// second: a tenth of a 100 Mbit/s line, shared with everything else.
const SLOWEST_BYTES_PER_SECOND: u64 = 1024 * 1024;

impl ConsensusConfig {
    /// Longest time that a snapshot of `bytes` may take to another node. It grows with the size,
    /// because every try begins anew: under a fixed limit a snapshot that is too large for it would
    /// be sent again and again, and never arrive.
    pub(crate) fn snapshot_travel(timeout: Duration, bytes: usize) -> Duration {
        timeout + Duration::from_millis(bytes as u64 * 1000 / SLOWEST_BYTES_PER_SECOND)
    }
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The timing profile contradicts itself.
    #[error("timing profile: {0}")]
    Timing(#[from] regent_core::timing::TimingError),
    /// A setting that consensus refuses.
    #[error("settings: {0}")]
    Config(String),
    /// The data directory could not be opened or read; the text says what and where.
    #[error("storage: {0}")]
    Storage(String),
    /// The newest snapshot does not decode into a state.
    #[error("snapshot: {0}")]
    Snapshot(String),
    /// The consensus engine refused what it found (log, vote and snapshot do not fit together).
    #[error("consensus: {0}")]
    Engine(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_snapshot_has_the_time_that_a_slow_way_takes() {
        let travel = |bytes| ConsensusConfig::snapshot_travel(Duration::from_secs(60), bytes);
        assert_eq!(travel(0), Duration::from_secs(60));
        assert_eq!(travel(4 * 1024 * 1024 * 1024), Duration::from_secs(60 + 4096));
    }
}
