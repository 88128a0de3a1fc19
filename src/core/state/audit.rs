//! The audit chain: who, what, why, outcome; each record carries the hash of the one before (S14).
//!
//! What is in it: every change of services, partitions and elections' leadership (granted,
//! resigned, lost, void), preferences, incarnation, timing, feature level, boots, membership,
//! quarantine, people's acts, and every refused attempt at those (repeated ones counted, see
//! `refusals`).
//!
//! What is not, on purpose: opening, renewing and closing a session that leads nothing, a place in
//! a queue, and proclaimed values. These are the data that the cluster serves, 12,000 and more a
//! second; a chain that held them would be a second log that nobody reads, and would push the
//! records that matter out of the window within a second. Compare-and-set losers are not in it
//! either: they change nothing and are part of normal work.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::id::Revision;
use crate::limits::AUDIT_WINDOW;
use crate::time::WallMs;

/// SHA-256 of a record, over its fields and the hash of the record before.
pub type AuditHash = [u8; 32];

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Rises by one per record, over the whole life of the cluster; the first is 1.
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

impl AuditRecord {
    /// The hash its fields call for. Each text goes in with its length in front, so that no two
    /// different records share an encoding.
    pub fn computed_hash(&self) -> AuditHash {
        let mut hasher = Sha256::new();
        hasher.update(b"regent audit record 1");
        for number in [self.number, self.revision.0, self.incarnation, self.at.0] {
            hasher.update(number.to_be_bytes());
        }
        for text in [&self.who, &self.what, &self.resource, &self.why, &self.outcome] {
            hasher.update((text.len() as u64).to_be_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.update(self.before);
        hasher.finalize().into()
    }
}

/// A place in the chain: the last record known to be good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Its number; 0 before the first record.
    pub number: u64,
    /// Its hash; zeros before the first record.
    pub hash: AuditHash,
}

/// What is wrong with a chain, and at which record first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditFault {
    /// Records are missing, doubled or out of order.
    #[error("record {found} stands where record {expected} must be")]
    Gap {
        /// The number that must come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// A field was changed after the record was made.
    #[error("record {number} (revision {revision}) was changed: its fields do not give its hash")]
    Changed {
        /// Which record.
        number: u64,
        /// Its entry.
        revision: Revision,
    },
    /// The record before was exchanged, or the chain was cut and continued.
    #[error("record {number} (revision {revision}) does not follow record {} : its link differs", number - 1)]
    Broken {
        /// Which record.
        number: u64,
        /// Its entry.
        revision: Revision,
    },
}

/// Checks that `records` follow `anchor` without a gap or a change; returns the new end.
/// `Anchor::default()` is the beginning of the chain.
///
/// # Errors
/// [`AuditFault`] names the first record that is wrong.
pub fn verify<'a>(
    records: impl IntoIterator<Item = &'a AuditRecord>,
    anchor: Anchor,
) -> Result<Anchor, AuditFault> {
    let mut end = anchor;
    for record in records {
        let AuditRecord { number, revision, .. } = *record;
        let expected = end.number.saturating_add(1);
        if number != expected {
            return Err(AuditFault::Gap { expected, found: number });
        }
        if record.computed_hash() != record.hash {
            return Err(AuditFault::Changed { number, revision });
        }
        if record.before != end.hash {
            return Err(AuditFault::Broken { number, revision });
        }
        end = Anchor { number, hash: record.hash };
    }
    Ok(end)
}

/// What a handler wants recorded; number and hashes come when the entry is known to stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub who: String,
    pub what: &'static str,
    pub resource: String,
    pub why: String,
    pub outcome: String,
}

/// The newest [`AUDIT_WINDOW`] records and the end of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditLog {
    #[serde(serialize_with = "write_records", deserialize_with = "read_records")]
    records: VecDeque<Arc<AuditRecord>>,
    head: Anchor,
}

impl AuditLog {
    /// The records still held, oldest first.
    pub fn records(
        &self,
    ) -> impl DoubleEndedIterator<Item = &Arc<AuditRecord>> + ExactSizeIterator {
        self.records.iter()
    }

    /// The end of the chain.
    pub fn head(&self) -> Anchor {
        self.head
    }

    /// What the oldest record held follows; where [`verify`] of [`Self::records`] begins.
    pub fn anchor(&self) -> Anchor {
        self.records.front().map_or(self.head, |first| Anchor {
            number: first.number.saturating_sub(1),
            hash: first.before,
        })
    }

    /// Appends; the oldest record leaves the window.
    pub(super) fn push(
        &mut self,
        note: Note,
        revision: Revision,
        incarnation: u64,
        at: WallMs,
    ) -> Arc<AuditRecord> {
        let mut record = AuditRecord {
            number: self.head.number.saturating_add(1),
            revision,
            incarnation,
            at,
            who: note.who,
            what: note.what.to_owned(),
            resource: note.resource,
            why: note.why,
            outcome: note.outcome,
            before: self.head.hash,
            hash: [0; 32],
        };
        record.hash = record.computed_hash();
        self.head = Anchor { number: record.number, hash: record.hash };
        let record = Arc::new(record);
        self.records.push_back(Arc::clone(&record));
        while self.records.len() > AUDIT_WINDOW {
            self.records.pop_front();
        }
        record
    }
}

fn write_records<S: Serializer>(
    records: &VecDeque<Arc<AuditRecord>>,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_seq(records.iter().map(|record| &**record))
}

fn read_records<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<VecDeque<Arc<AuditRecord>>, D::Error> {
    Ok(Vec::<AuditRecord>::deserialize(from)?.into_iter().map(Arc::new).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(len: usize) -> (AuditLog, Vec<AuditRecord>) {
        let mut log = AuditLog::default();
        for n in 0..len {
            let note = Note {
                who: "admin/ann".into(),
                what: "act",
                resource: format!("thing-{n}"),
                why: "because".into(),
                outcome: "done".into(),
            };
            log.push(note, Revision(10 + n as u64), 1, WallMs(5));
        }
        let records = log.records().map(|r| AuditRecord::clone(r)).collect();
        (log, records)
    }

    #[test]
    fn an_untouched_chain_verifies_to_its_head() {
        let (log, records) = chain(5);
        assert_eq!(verify(&records, Anchor::default()), Ok(log.head()));
        let mid = Anchor { number: 2, hash: records[1].hash };
        assert_eq!(verify(&records[2..], mid), Ok(log.head()));
    }

    #[test]
    fn the_first_changed_record_is_named() {
        let (_, mut records) = chain(5);
        records[3].why = "other".into();
        let want = AuditFault::Changed { number: 4, revision: Revision(13) };
        assert_eq!(verify(&records, Anchor::default()), Err(want));
    }

    #[test]
    fn a_record_made_anew_does_not_link() {
        let (_, mut records) = chain(5);
        records[2].outcome = "refused".into();
        records[2].hash = records[2].computed_hash();
        let want = AuditFault::Broken { number: 4, revision: Revision(13) };
        assert_eq!(verify(&records, Anchor::default()), Err(want));
    }

    #[test]
    fn a_missing_record_is_a_gap() {
        let (_, mut records) = chain(5);
        records.remove(1);
        let want = AuditFault::Gap { expected: 2, found: 3 };
        assert_eq!(verify(&records, Anchor::default()), Err(want));
    }

    #[test]
    fn text_moved_from_one_field_to_the_next_changes_the_hash() {
        let (_, records) = chain(1);
        let mut moved = records[0].clone();
        moved.resource = format!("{}{}", moved.what, moved.resource);
        moved.what.clear();
        assert_ne!(moved.computed_hash(), records[0].computed_hash());
    }

    #[test]
    fn the_window_is_bounded_and_still_verifies_from_its_anchor() {
        let (log, _) = chain(AUDIT_WINDOW + 3);
        assert_eq!(log.records().len(), AUDIT_WINDOW);
        assert_eq!(log.anchor().number, 3);
        let got = verify(log.records().map(|r| &**r), log.anchor());
        assert_eq!(got, Ok(log.head()));
    }
}
