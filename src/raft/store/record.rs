//! Records: what the log remembers, and their bytes inside a group.
//!
//! A record has no checksum of its own: it is covered by the one of its group (see `frame`).
//! Decoding never trusts a length; whatever it is given, it answers or refuses.

use bytes::Bytes;

/// One thing to remember.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A log entry. Indexes have no holes: each is one above the last.
    Entry {
        /// Its index.
        index: u64,
        /// Its bytes, opaque here.
        bytes: Bytes,
    },
    /// All entries above `index` are void; all of them if `None`.
    TruncateAfter {
        /// The last index that stays.
        index: Option<u64>,
    },
    /// The vote; the newest one counts.
    Vote(Bytes),
    /// What is known committed; the newest one counts. A hint, but kept like everything else.
    Committed(Bytes),
    /// All entries up to `index` are covered by a snapshot and may go.
    Purge {
        /// The last index that goes.
        index: u64,
        /// The log id as the layer above writes it, opaque here.
        bytes: Bytes,
    },
}
