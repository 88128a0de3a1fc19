//! The audit chain: who, what, why, outcome; each record carries the hash of the one before (S14).

use serde::{Deserialize, Serialize};

use crate::id::Revision;
use crate::time::WallMs;

/// SHA-256 of a record, over its fields and the hash of the record before.
pub type AuditHash = [u8; 32];

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Rises by one per record, over the whole life of the cluster.
    pub number: u64,
    /// The entry that made it.
    pub revision: Revision,
    /// Incarnation counter at that time.
    pub incarnation: u64,
    /// The proposer's wall clock, for people.
    pub at: WallMs,
    /// Who: `<role>/<name>`.
    pub who: String,
    /// What: a verb, as `services.write` or `election.granted`.
    pub what: String,
    /// On what.
    pub resource: String,
    /// Why: a person's reason, or the rule that made it happen.
    pub why: String,
    /// What came of it: `done`, `refused: ...`.
    pub outcome: String,
    /// Hash of the record before; zeros for the first.
    pub before: AuditHash,
    /// Hash of this record.
    pub hash: AuditHash,
}
