//! openraft's log storage: a map in memory that is readable at once, over a [`Writer`] that says
//! when things are on disk.
//!
//! It must never say "flushed" for a vote, an entry or a truncation that a power cut could undo
//! (S10), and never let a later write overtake an earlier one: everything goes down one queue.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytes::Bytes;
use openraft::OptionalSend;
use openraft::entry::RaftEntry as _;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::held::Held;
use crate::store::figures::LogFigures;
use crate::store::record::Record;
use crate::store::wal::Recovered;
use crate::store::writer::Writer;
use crate::types::{Entry, LogId, Types, Vote};

/// First byte of everything this module writes; a later format gets another one.
const FORMAT: u8 = 1;

/// Entries of one replication message, at most this many bytes (and at least one entry): stays
/// well below what a gRPC message may have.
const BATCH_BYTES: u64 = 1024 * 1024;

/// What an entry costs in memory beside its bytes.
const ENTRY_OVERHEAD: u64 = 64;

fn encode<T: Serialize>(value: &T) -> Bytes {
    let bytes = postcard::to_extend(value, vec![FORMAT]);
    Bytes::from(bytes.expect("log records have no type postcard refuses"))
}

fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> io::Result<T> {
    let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {why}"));
    match bytes.split_first() {
        Some((&FORMAT, body)) => postcard::from_bytes(body).map_err(|e| bad(e.to_string())),
        Some((format, _)) => Err(bad(format!("format {format}, this version reads {FORMAT}"))),
        None => Err(bad("it is empty".into())),
    }
}

/// The log store; clones share it.
#[derive(Clone)]
pub(crate) struct LogStore(Arc<Shared>);

struct Shared {
    log: RwLock<Log>,
    writer: Writer,
    /// Why nothing will ever be written again; empty while the log works or may heal.
    failed: Mutex<String>,
    /// What was promised and is on disk.
    held: Mutex<Held>,
}

impl Shared {
    /// Notes a failure. A full disk is none: the writer holds on to what it has and tries again.
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            let mut failed = self.failed.lock();
            if failed.is_empty() {
                *failed = error.to_string();
            }
        }
        result
    }

    /// Something promised is on disk now.
    fn hold(&self, held: Held) {
        let mut known = self.held.lock();
        *known = held.max(*known);
    }
}

struct Slot {
    entry: Entry,
    /// Bytes on disk and in memory, roughly.
    cost: u64,
}

#[derive(Default)]
struct Log {
    /// Entries in order, without holes; the first is one above `purged`.
    slots: VecDeque<Slot>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// `committed` is newer than what was last written.
    committed_dirty: bool,
    purged: Option<LogId>,
    bytes: u64,
}

impl Log {
    /// Index of the first slot.
    fn first(&self) -> u64 {
        match self.slots.front() {
            Some(slot) => slot.entry.index(),
            None => self.purged.map_or(0, |id| id.index() + 1),
        }
    }

    fn last(&self) -> Option<LogId> {
        self.slots.back().map(|slot| slot.entry.log_id()).or(self.purged)
    }

    /// The slots of `start..end`, as positions.
    fn positions(&self, start: u64, end: u64) -> std::ops::Range<usize> {
        let first = self.first();
        let at = |index: u64| (index.saturating_sub(first)).min(self.slots.len() as u64) as usize;
        let from = at(start);
        from..at(end).max(from)
    }

    fn push(&mut self, entry: Entry, cost: u64) {
        self.bytes += cost;
        self.slots.push_back(Slot { entry, cost });
    }
}

impl LogStore {
    /// Takes over what the log held when it was opened.
    ///
    /// # Errors
    /// A record that this version cannot read; the text names it.
    pub(crate) fn new(writer: Writer, recovered: Recovered) -> io::Result<Self> {
        let committed = recovered.committed.map(|b| decode("the committed mark", &b));
        let purged = recovered.purged.map(|(_, b)| decode("the purge mark", &b));
        let mut log = Log {
            vote: recovered.vote.map(|b| decode("the vote", &b)).transpose()?,
            committed: committed.transpose()?,
            purged: purged.transpose()?,
            ..Log::default()
        };
        for (index, bytes) in recovered.entries {
            let entry: Entry = decode(&format!("entry {index}"), &bytes)?;
            log.push(entry, bytes.len() as u64 + ENTRY_OVERHEAD);
        }
        let failed = Mutex::default();
        // The log's tail may be cut by the leader that this node voted for, so it is no promise.
        let held = Mutex::new(Held::of(log.vote, None));
        Ok(Self(Arc::new(Shared { log: RwLock::new(log), writer, failed, held })))
    }

    /// What the disk holds, given the last entry of the newest snapshot; asked before anything else
    /// is written.
    pub(crate) fn opened_with(&self, snapshot: Option<LogId>) -> Held {
        let log = self.0.log.read();
        Held::of(log.vote, log.last().max(snapshot))
    }

    /// What was promised and is on disk.
    pub(crate) fn held(&self) -> Held {
        *self.0.held.lock()
    }

    /// Checks that no entry is missing between the snapshot's last one and the log's first one.
    ///
    /// # Errors
    /// Says what is missing, and what to do.
    pub(crate) fn check_covered(&self, snapshot: Option<LogId>) -> io::Result<()> {
        let purged = self.0.log.read().purged;
        if purged > snapshot {
            let index =
                |id: Option<LogId>| id.map_or("nothing".into(), |id| id.index().to_string());
            let text = format!(
                "entries up to {} were removed from the log, but the newest intact snapshot covers \
                 {}: remove this node from the cluster and add it again empty under a new node id",
                index(purged),
                index(snapshot)
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(())
    }

    /// What is wrong with the disk; empty when it is well.
    pub(crate) fn problem(&self) -> String {
        self.0.writer.problem()
    }

    /// What is wrong with the disk and stops nothing.
    pub(crate) fn trouble(&self) -> String {
        self.0.writer.trouble()
    }

    /// What the log has done since it was opened.
    pub(crate) fn figures(&self) -> LogFigures {
        self.0.writer.figures()
    }

    /// Why nothing will ever be written again; empty while the log works or may heal.
    pub(crate) fn failed(&self) -> String {
        self.0.failed.lock().clone()
    }

    /// Submits records; `done` hears when they are durable. Failures are noted even where nobody
    /// waits, so that a node whose log has failed does not go on as if it were only slow.
    fn submit(&self, records: Vec<Record>, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        let shared = self.0.clone();
        self.0.writer.submit(records, Box::new(move |result| done(shared.note(result))));
    }

    /// Finishes what is queued and ends the driver. Blocks.
    pub(crate) fn close(&self) {
        let committed = self.0.log.write().take_committed();
        if let Some(record) = committed {
            self.submit(vec![record], drop);
        }
        self.0.writer.close();
    }

    /// The index that everything up to which may be purged so that at most `keep_entries` entries
    /// and `keep_bytes` bytes at or below `snapshot` stay; `None` when nothing needs to go.
    pub(crate) fn purge_target(
        &self,
        snapshot: u64,
        keep_entries: u64,
        keep_bytes: u64,
    ) -> Option<u64> {
        let log = self.0.log.read();
        let end = log.positions(0, snapshot + 1).end;
        let mut kept = 0;
        for position in (0..end).rev() {
            kept += log.slots[position].cost;
            if kept > keep_bytes || (end - position) as u64 > keep_entries {
                return Some(log.slots[position].entry.index());
            }
        }
        None
    }

    /// Entries and bytes above `index`.
    pub(crate) fn size_above(&self, index: Option<u64>) -> (u64, u64) {
        let log = self.0.log.read();
        let from = log.positions(index.map_or(0, |i| i + 1), u64::MAX).start;
        let entries = (log.slots.len() - from) as u64;
        if from == 0 {
            return (entries, log.bytes);
        }
        (entries, log.slots.range(from..).map(|slot| slot.cost).sum())
    }

    /// Submits one record and waits until it is durable.
    async fn write_durably(&self, record: Record) -> io::Result<()> {
        let (done, flushed) = oneshot::channel();
        self.submit(vec![record], move |result| {
            // The receiver is gone only when the node stops.
            let _ = done.send(result);
        });
        flushed.await.map_err(|_| io::Error::other("the log has been closed"))?
    }
}

impl Log {
    /// The committed mark, if it was not written yet.
    fn take_committed(&mut self) -> Option<Record> {
        let dirty = std::mem::take(&mut self.committed_dirty);
        self.committed.filter(|_| dirty).map(|id| Record::Committed(encode(&id)))
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let start = match range.start_bound() {
            Bound::Included(i) => *i,
            Bound::Excluded(i) => i.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(i) => i.saturating_add(1),
            Bound::Excluded(i) => *i,
            Bound::Unbounded => u64::MAX,
        };
        let log = self.0.log.read();
        Ok(log.slots.range(log.positions(start, end)).map(|slot| slot.entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.log.read().vote)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        let log = self.0.log.read();
        let mut bytes = 0;
        let within = |slot: &&Slot| {
            let first = bytes == 0;
            bytes += slot.cost;
            first || bytes <= BATCH_BYTES
        };
        let slots = log.slots.range(log.positions(start, end)).take_while(within);
        Ok(slots.map(|slot| slot.entry.clone()).collect())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let log = self.0.log.read();
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: log.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.write_durably(Record::Vote(encode(vote))).await?;
        self.0.log.write().vote = Some(*vote);
        self.0.hold(Held::of(Some(*vote), None));
        Ok(())
    }

    /// The mark is a hint that shortens the time after a restart in which state is behind; it
    /// rides with the next append instead of costing a flush of its own.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut log = self.0.log.write();
        log.committed_dirty |= log.committed != committed;
        log.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.0.log.read().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        let held = {
            let mut log = self.0.log.write();
            records.extend(log.take_committed());
            for entry in entries {
                let index = entry.index();
                // An empty log may begin anywhere; openraft has checked what comes before it.
                let due = log.last().map_or(index, |id| id.index() + 1);
                if index != due {
                    let text = format!("entry {index} where {due} was due");
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
                }
                let bytes = encode(&entry);
                log.push(entry, bytes.len() as u64 + ENTRY_OVERHEAD);
                records.push(Record::Entry { index, bytes });
            }
            // What is appended under a vote agrees with its leader's log.
            Held::of(log.vote, log.last())
        };
        let shared = self.0.clone();
        self.submit(records, move |result| {
            if result.is_ok() {
                shared.hold(held);
            }
            callback.io_completed(result);
        });
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        {
            let mut log = self.0.log.write();
            let keep = log.positions(0, last.map_or(0, |id| id.index() + 1)).end;
            let cut: u64 = log.slots.drain(keep..).map(|slot| slot.cost).sum();
            log.bytes -= cut;
        }
        self.write_durably(Record::TruncateAfter { index: last.map(|id| id.index()) }).await
    }

    /// Not waited for: if the mark is lost in a power cut, entries that a durable snapshot covers
    /// are merely kept.
    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        {
            let mut log = self.0.log.write();
            if log.purged >= Some(upto) {
                return Ok(());
            }
            let gone = log.positions(0, upto.index() + 1).end;
            let cut: u64 = log.slots.drain(..gone).map(|slot| slot.cost).sum();
            log.bytes -= cut;
            log.purged = Some(upto);
        }
        let record = Record::Purge { index: upto.index(), bytes: encode(&upto) };
        self.submit(vec![record], drop);
        Ok(())
    }
}
