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

/// Bytes in front of each record's payload: length, kind, three zeros, index.
pub(super) const RECORD_HEADER_BYTES: usize = 16;

/// The largest payload of one record. Far above what an entry may be; keeps lengths in range.
pub const MAX_RECORD_BYTES: usize = 256 * 1024 * 1024;

const ENTRY: u8 = 1;
const TRUNCATE_AFTER: u8 = 2;
const TRUNCATE_ALL: u8 = 3;
const VOTE: u8 = 4;
const COMMITTED: u8 = 5;
const PURGE: u8 = 6;
const POSITION: u8 = 7;
const POSITION_EMPTY: u8 = 8;

/// What lies in a group: what the caller gave, or what the log itself put at the head of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// From the caller.
    Record(Record),
    /// The index of the last entry before this segment, so that a segment can be read without the
    /// ones before it.
    Position(Option<u64>),
}

/// Appends the bytes of a record to `out`.
pub(super) fn encode_record(record: &Record, out: &mut Vec<u8>) {
    match record {
        Record::Entry { index, bytes } => put(out, ENTRY, *index, bytes),
        Record::TruncateAfter { index: Some(index) } => put(out, TRUNCATE_AFTER, *index, &[]),
        Record::TruncateAfter { index: None } => put(out, TRUNCATE_ALL, 0, &[]),
        Record::Vote(bytes) => put(out, VOTE, 0, bytes),
        Record::Committed(bytes) => put(out, COMMITTED, 0, bytes),
        Record::Purge { index, bytes } => put(out, PURGE, *index, bytes),
    }
}

/// Appends the bytes of a segment's starting position to `out`.
pub(super) fn encode_position(last: Option<u64>, out: &mut Vec<u8>) {
    match last {
        Some(index) => put(out, POSITION, index, &[]),
        None => put(out, POSITION_EMPTY, 0, &[]),
    }
}

/// The payload of a record.
pub(super) fn payload_bytes(record: &Record) -> usize {
    match record {
        Record::Entry { bytes, .. }
        | Record::Vote(bytes)
        | Record::Committed(bytes)
        | Record::Purge { bytes, .. } => bytes.len(),
        Record::TruncateAfter { .. } => 0,
    }
}

fn put(out: &mut Vec<u8>, kind: u8, index: u64, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("checked against MAX_RECORD_BYTES");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Reads `count` records from a group's body; what follows them is padding. The payloads share the
/// body's memory. The error is for people.
pub(super) fn decode_records(
    body: &Bytes,
    count: u32,
    mut each: impl FnMut(Stored) -> Result<(), String>,
) -> Result<(), String> {
    let mut at = 0usize;
    for _ in 0..count {
        let Some(head) = body.get(at..at + RECORD_HEADER_BYTES) else {
            return Err("a record's head reaches beyond its group".to_string());
        };
        let length = u32_at(head, 0) as usize;
        let index = u64_at(head, 8);
        if head[5..8] != [0, 0, 0] {
            return Err("a record's reserved bytes are not zero".to_string());
        }
        let start = at + RECORD_HEADER_BYTES;
        let end = start.saturating_add(length);
        if end > body.len() {
            return Err("a record's length reaches beyond its group".to_string());
        }
        let bytes = || body.slice(start..end);
        let stored = match head[4] {
            ENTRY => Stored::Record(Record::Entry { index, bytes: bytes() }),
            TRUNCATE_AFTER => Stored::Record(Record::TruncateAfter { index: Some(index) }),
            TRUNCATE_ALL => Stored::Record(Record::TruncateAfter { index: None }),
            VOTE => Stored::Record(Record::Vote(bytes())),
            COMMITTED => Stored::Record(Record::Committed(bytes())),
            PURGE => Stored::Record(Record::Purge { index, bytes: bytes() }),
            POSITION => Stored::Position(Some(index)),
            POSITION_EMPTY => Stored::Position(None),
            kind => return Err(format!("unknown kind of record {kind}")),
        };
        each(stored)?;
        at = end;
    }
    Ok(())
}

/// Reads a little-endian number; the caller has checked the length.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Reads a little-endian number; the caller has checked the length.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
