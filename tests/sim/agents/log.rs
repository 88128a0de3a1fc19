//! The abstract log: one committed sequence, one leader that can commit, entries in flight whose
//! fate a change of leader decides by chance. What Raft promises, and nothing more.

use std::collections::VecDeque;

use super::queue::{CallId, Flight};

/// Who waits for an entry, on the node that proposed it.
#[derive(Clone, Debug)]
pub enum Tag {
    /// Nobody.
    None,
    /// These renewals, each from this node.
    Renewals(Vec<(usize, Flight)>),
    /// This call, from this node.
    Call(usize, CallId),
}

/// One entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Empty: a leader's first entry.
    pub bytes: Vec<u8>,
    pub tag: Tag,
    /// Which node proposed it, and which start of it.
    pub by: (usize, u64),
}

/// The log.
#[derive(Debug)]
pub struct Log {
    /// Index of the first kept entry.
    first: u64,
    kept: VecDeque<Entry>,
    /// Who leads, really.
    pub leader: usize,
    pub term: u64,
    /// Index of the term's first entry.
    pub opened: u64,
    /// Proposed, not committed.
    pub flying: VecDeque<Entry>,
}

/// Entries kept for nodes that lag; one further behind gets a snapshot.
const KEPT: usize = 3_000;

impl Log {
    /// An empty log under a first leader.
    pub fn new() -> Self {
        Self {
            first: 1,
            kept: VecDeque::new(),
            leader: 0,
            term: 1,
            opened: 1,
            flying: VecDeque::new(),
        }
    }

    /// Index of the last committed entry.
    pub fn last(&self) -> u64 {
        self.first + self.kept.len() as u64 - 1
    }

    /// Commits an entry; returns its index.
    pub fn append(&mut self, entry: Entry) -> u64 {
        self.kept.push_back(entry);
        if self.kept.len() > KEPT {
            self.kept.pop_front();
            self.first += 1;
        }
        self.last()
    }

    /// The entry at `index`, if it is committed and still kept.
    pub fn get(&self, index: u64) -> Option<&Entry> {
        self.kept.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }
}
