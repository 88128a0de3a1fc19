//! The order of entries: what may follow what. One rule book for writing and for reading back, so
//! that the log never writes what it would refuse to read.

use super::record::Record;

/// Where a log ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    /// The last entry, or the purge mark if that is higher; `None` for an empty log.
    pub last: Option<u64>,
    /// The purge mark.
    pub purged: Option<u64>,
}

impl Cursor {
    /// Takes the next record into account; the error says, for people, which rule it breaks.
    pub(super) fn step(&mut self, record: &Record) -> Result<(), String> {
        match record {
            Record::Entry { index, .. } => {
                if let Some(last) = self.last
                    && Some(*index) != last.checked_add(1)
                {
                    return Err(format!("entry {index} does not follow entry {last}"));
                }
                self.last = Some(*index);
            }
            Record::TruncateAfter { index } => {
                if self.purged.is_some() && *index < self.purged {
                    return Err(format!(
                        "a truncation after {index:?} would cut entries that were purged up to {:?}",
                        self.purged
                    ));
                }
                if *index < self.last {
                    self.last = *index;
                }
            }
            Record::Purge { index, .. } => {
                self.purged = self.purged.max(Some(*index));
                self.last = self.last.max(Some(*index));
            }
            Record::Vote(_) | Record::Committed(_) => {}
        }
        Ok(())
    }
}
