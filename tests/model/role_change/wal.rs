//! PostgreSQL's write-ahead log as a short list of records, and positions in it.
//!
//! Replay, pages and timelines are left out: what an instance holds is the list. The WAL-borne
//! epoch is a record, as PROTOCOL.md D has it: the first transaction of every new primary.

use std::fmt;

/// A client's write, by its number.
pub type WriteId = u8;

const BITS: u32 = 4;
const MASK: u32 = 0xf;
/// Codes below are writes.
const SHUTDOWN: u32 = 7;
/// Codes from here on are epochs.
const EPOCH: u32 = 8;

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A client's write.
    Write(WriteId),
    /// The orderly end of a primary.
    Shutdown,
    /// What a new primary writes first.
    Epoch(u8),
}

/// Up to eight records, four bits each, the first one lowest.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Wal(u32);

/// How far a WAL reaches: what candidates are compared by (B, D).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The WAL-borne epoch.
    pub epoch: u8,
    /// The flushed end.
    pub end: u8,
}

impl Record {
    fn code(self) -> u32 {
        match self {
            Self::Write(id) => u32::from(id) + 1,
            Self::Shutdown => SHUTDOWN,
            Self::Epoch(epoch) => EPOCH + u32::from(epoch),
        }
    }

    fn of(code: u32) -> Self {
        match code {
            SHUTDOWN => Self::Shutdown,
            code if code < SHUTDOWN => Self::Write((code - 1) as u8),
            code => Self::Epoch((code - EPOCH) as u8),
        }
    }
}

impl Wal {
    /// Records in it.
    pub fn len(self) -> u8 {
        (u32::BITS - self.0.leading_zeros()).div_ceil(BITS) as u8
    }

    /// The record at `at`, from 0.
    pub fn get(self, at: u8) -> Record {
        Record::of(self.0 >> (u32::from(at) * BITS) & MASK)
    }

    /// Writes and flushes one record more.
    pub fn push(&mut self, record: Record) {
        let len = self.len();
        assert!(len < 8, "the bounds of the models keep a WAL within eight records");
        self.0 |= record.code() << (u32::from(len) * BITS);
    }

    /// What both begin with.
    pub fn common(self, other: Self) -> Self {
        let differ = (self.0 ^ other.0).trailing_zeros() / BITS;
        if differ >= u32::BITS / BITS { self } else { Self(self.0 & ((1 << (differ * BITS)) - 1)) }
    }

    /// All records, in order.
    pub fn records(self) -> impl Iterator<Item = Record> {
        (0..self.len()).map(move |at| self.get(at))
    }

    /// Whether a write is in it.
    pub fn holds(self, id: WriteId) -> bool {
        self.records().any(|record| record == Record::Write(id))
    }

    /// How far it reaches.
    pub fn position(self) -> Position {
        let epochs = self.records().filter_map(|record| match record {
            Record::Epoch(epoch) => Some(epoch),
            _ => None,
        });
        Position { epoch: epochs.max().unwrap_or(1), end: self.len() }
    }
}

impl fmt::Debug for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for record in self.records() {
            match record {
                Record::Write(id) => write!(f, "w{id} ")?,
                Record::Shutdown => f.write_str("shutdown ")?,
                Record::Epoch(epoch) => write!(f, "epoch{epoch} ")?,
            }
        }
        f.write_str("]")
    }
}
