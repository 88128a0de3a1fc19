//! The WAL of one instance, as records with identities: two instances share a record only if one got
//! it from the other, whatever timelines and positions say. That is what the judge compares.

use regent_core::id::Epoch;
use regent_core::role::{Lsn, Position};

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Unique in a run.
    pub id: u64,
    pub kind: Kind,
}

/// What a record says, as far as anybody looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A transaction.
    Write,
    /// Regent's own: this epoch is led from here on.
    Epoch(Epoch),
    /// A promotion: the timeline begins here.
    Timeline(u32),
    /// An orderly shutdown.
    Shutdown,
}

/// Records from the beginning; the position of a record's end is its place, counted from one.
#[derive(Clone, Debug, Default)]
pub struct Wal {
    records: Vec<Record>,
    /// Epochs and timelines among them, with their places.
    marks: Vec<(usize, Kind)>,
    /// So many survive a power cut.
    pub flushed: usize,
}

impl Wal {
    /// How many records are written.
    pub fn end(&self) -> usize {
        self.records.len()
    }

    /// Appends a record; returns its end.
    pub fn push(&mut self, record: Record) -> usize {
        self.records.push(record);
        if matches!(record.kind, Kind::Epoch(_) | Kind::Timeline(_)) {
            self.marks.push((self.records.len(), record.kind));
        }
        self.records.len()
    }

    /// Forgets everything after `end`.
    pub fn truncate(&mut self, end: usize) {
        self.records.truncate(end);
        self.marks.retain(|(at, _)| *at <= end);
        self.flushed = self.flushed.min(end);
    }

    /// Whether an orderly shutdown was the last thing written.
    pub fn ends_with_shutdown(&self) -> bool {
        self.records.last().is_some_and(|record| record.kind == Kind::Shutdown)
    }

    /// Takes what `from` has from the own end up to `upto`; whether that continues the own history.
    pub fn extend(&mut self, from: &Self, upto: usize) -> bool {
        let begin = self.end();
        let fits = begin == 0 || from.holds(begin, self.records[begin - 1].id);
        for record in from.records.get(begin..upto).unwrap_or_default() {
            self.push(*record);
        }
        fits
    }

    /// Whether the record that ends at `end` is this one, and flushed or not.
    pub fn holds(&self, end: usize, id: u64) -> bool {
        end > 0 && self.records.get(end - 1).is_some_and(|record| record.id == id)
    }

    /// How many records two histories share.
    pub fn shared(&self, other: &Self) -> usize {
        let most = self.end().min(other.end());
        // Histories that agree at a place agree before it.
        let (mut low, mut high) = (0, most);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if self.records[middle - 1].id == other.records[middle - 1].id {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }

    /// The highest epoch written up to `upto`.
    pub fn epoch(&self, upto: usize) -> Epoch {
        let mark = self.marks.iter().rev().find_map(|(at, kind)| match kind {
            Kind::Epoch(epoch) if *at <= upto => Some(*epoch),
            _ => None,
        });
        mark.unwrap_or(Epoch::NONE)
    }

    /// The timeline at `upto`.
    pub fn timeline(&self, upto: usize) -> u32 {
        let mark = self.marks.iter().rev().find_map(|(at, kind)| match kind {
            Kind::Timeline(timeline) if *at <= upto => Some(*timeline),
            _ => None,
        });
        mark.unwrap_or(1)
    }

    /// How far `upto` is, as an agent reports it.
    pub fn position(&self, upto: usize) -> Position {
        Position { epoch: self.epoch(upto), end: Lsn(upto as u64), timeline: self.timeline(upto) }
    }

    /// Each timeline with the place where it begins, as a history file has it.
    fn line(&self, upto: usize) -> Vec<(u32, usize)> {
        let mut line = vec![(1, 0)];
        for (at, kind) in &self.marks {
            if let Kind::Timeline(timeline) = kind
                && *at <= upto
            {
                line.push((*timeline, at - 1));
            }
        }
        line
    }

    /// Where this WAL parts from another's line *by the numbers of timelines*, as the engine and
    /// `pg_rewind` find out (`src/engine/postgres/history.rs`): numbers may repeat, and then lie.
    pub fn parts_from(&self, other: &Self) -> usize {
        let (mine, theirs) = (self.line(self.end()), other.line(other.end()));
        let end_of = |line: &[(u32, usize)], timeline: u32| -> Option<Option<usize>> {
            let at = line.iter().rposition(|(number, _)| *number == timeline)?;
            Some(line.get(at + 1).map(|(_, begin)| *begin))
        };
        for (timeline, _) in mine.iter().rev() {
            let (Some(here), Some(there)) = (end_of(&mine, *timeline), end_of(&theirs, *timeline))
            else {
                continue;
            };
            let here = here.unwrap_or(self.end());
            return there.map_or(here, |there| there.min(here));
        }
        0
    }
}
