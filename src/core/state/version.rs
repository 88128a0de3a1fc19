//! Which entries may be applied: the rule that keeps nodes of different releases byte-equal.
//!
//! Three numbers. `Entry::version` says what an entry needs to be read. The replicated
//! `ClusterRow::feature_level` says what *every* member can read. [`FEATURE_LEVEL`] says what this
//! binary can read. Two releases, N-1 and N, run together, and both must end with the same bytes,
//! so the answer may depend on replicated facts only, never on the binary:
//!
//! 1. **An entry above the replicated level is refused, by every binary alike** (`FeatureLevel`).
//!    A node of release N that *could* read it refuses it all the same, because its peer of N-1
//!    must. Proposers therefore wait for the level; the refusal is the net below them.
//! 2. **The version is the first thing in an entry**, a varint, in every release to come. It is
//!    read before the envelope, so an envelope of another layout is never misread.
//! 3. **`RaiseFeatureLevel` is applied by every binary alike**, also by one that is too old for the
//!    new level. From then on that binary is behind a barrier: [`super::State::barrier`] says so,
//!    and `apply` changes nothing, not even the revision, because refusing an entry that its peers
//!    apply would be divergence, and applying it would be misreading. The shell must stop the node;
//!    it comes back with the newer binary and goes on from its log.
//! 4. A snapshot above [`FEATURE_LEVEL`] is not read (`SnapshotError::TooNew`): same reason.
//!
//! Rejected: skipping unknown entries (diverges); letting each node decide by its own binary
//! (diverges); rolling the level back (old entries of the higher level are still in the logs).
//!
//! The same rule binds every judgement inside `apply`: a release that changes what a handler
//! accepts, or what `ServiceSpec::validate` and C6 accept, must switch on the feature level.

use crate::limits::MAX_ENTRY_BYTES;

/// Level of a cluster of the first release.
pub const FIRST_FEATURE_LEVEL: u32 = 1;

/// Highest level this binary can read. 2: the roles of services; 3: what renewals of roles say;
/// 4: switchovers that are prepared before their fence, and cut by the resignation itself;
/// 5: policies that are strict about lowered commits; 6: a start that is said again takes over no lease
/// that another start holds, or that lasts longer than its session; 7: switchovers that wait for
/// routers before their fence.
pub const FEATURE_LEVEL: u32 = 7;

/// The level from which snapshots hold the roles of services.
pub const ROLES_LEVEL: u32 = 2;

/// The level from which renewals of roles carry reports, proofs rest on them, and snapshots hold them.
pub const REPORTS_LEVEL: u32 = 3;

/// The level from which a switchover is prepared before its fence, and its resignation cuts.
pub const PREPARE_LEVEL: u32 = 4;
/// The level from which a declaration may say that lowered commits are refused.
pub const STRICT_LEVEL: u32 = 5;
/// The level from which a stranger that says its start twice is a stranger still.
pub const STRANGER_LEVEL: u32 = 6;
/// The level from which an operation may wait for routers.
pub const DRAIN_LEVEL: u32 = 7;

/// This binary is too old for the cluster's level; it must stop before it misreads an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the cluster is at feature level {cluster}, this binary reads up to {binary}: install the newer release"
)]
pub struct Barrier {
    /// The replicated level.
    pub cluster: u32,
    /// [`FEATURE_LEVEL`].
    pub binary: u32,
}

/// Reads the version in front of an entry, whatever the rest looks like. `None` when there is none.
pub(super) fn of_entry(bytes: &[u8]) -> Option<u16> {
    if bytes.len() > 2 * MAX_ENTRY_BYTES {
        return None;
    }
    postcard::take_from_bytes::<u16>(bytes).ok().map(|(version, _)| version)
}
