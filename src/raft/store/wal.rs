//! The write-ahead log: votes, entries and marks in one sequence of files, one write and one
//! fdatasync for each group.
//!
//! It must never say "durable" before the disk did, and never go on after the disk failed: after a
//! failed fdatasync nobody knows what is on the disk, and asking again may answer "fine" although
//! the data is gone. Votes and entries share one sequence, so that their order is physical.
//!
//! The last bytes of each segment are kept free of entries, so that a purge mark can be written
//! when the disk is full: purging is what makes room.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::cursor::Cursor;
use super::frame::{self, HEAD_BYTES, Head};
use super::record::{self, MAX_RECORD_BYTES, Record};
use super::recover::{self, Closed, Unsealed, cannot};
use super::sabotage::{self, Sabotage};
use super::segment::{
    self, AHEAD_NAME, HEADER_BYTES, NEW_NAME, Preparation, SegmentHeader, ZeroedFile,
};
use super::vfs::{VFile, Vfs, is_full};

pub use super::outcome::{OpenError, Recovered, WalError, WalOptions};

const LOCK_NAME: &str = "wal.lock";
/// The reserve of a segment for other things than entries: enough for thousands of marks.
const RESERVE_BYTES: u64 = 64 * 1024;

/// Whether a log has to be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// An empty one is made if there is none: this directory never had a log.
    Optional,
    /// Without one nothing is made or touched: an empty log would be a node that votes again.
    Required,
}

/// What a group changes once it is durable.
struct Pending {
    bytes: u64,
    cursor: Cursor,
    state: HeadState,
    max_index: Option<u64>,
    purges: bool,
    only_votes: bool,
}

/// What the head of each new segment repeats, so that older segments can go.
#[derive(Clone, Default)]
struct HeadState {
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    purged: Option<(u64, Bytes)>,
}

/// The log. One owner writes; it never blocks on anything but the disk.
pub struct Wal {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    options: WalOptions,
    file: Box<dyn VFile>,
    header: SegmentHeader,
    capacity: u64,
    position: u64,
    /// Bytes of all groups synced since the log was opened.
    written: u64,
    next_group: u64,
    /// A failed write may have left something up to here; it is zeroed before the next one.
    dirty_until: u64,
    cursor: Cursor,
    state: HeadState,
    closed: VecDeque<Closed>,
    max_index: Option<u64>,
    ahead: Option<ZeroedFile>,
    preparing: bool,
    pending: Option<Pending>,
    failed: Option<String>,
    trouble: Option<String>,
    buffer: Vec<u8>,
    _lock: Box<dyn Any + Send>,
}

impl Wal {
    /// Opens the log in `dir`, or makes an empty one if there is none. Whatever it returns is
    /// durable, also if it was not before: a process that was killed may have left an unsynced
    /// vote in the page cache, and telling it to anybody makes it a promise.
    pub fn open(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        options: WalOptions,
    ) -> Result<(Self, Recovered), OpenError> {
        Self::open_as(vfs, dir, options, Presence::Optional)
    }

    /// [`Wal::open`], which refuses with [`OpenError::Missing`] if a log is required and not there.
    pub fn open_as(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        options: WalOptions,
        presence: Presence,
    ) -> Result<(Self, Recovered), OpenError> {
        let there = segment::any(&*vfs, dir).map_err(|e| cannot("list", dir, e))?;
        if presence == Presence::Required && !there {
            return Err(OpenError::Missing { dir: dir.to_path_buf() });
        }
        vfs.create_dir_all(dir).map_err(|e| cannot("make", dir, e))?;
        let lock = vfs.lock(&dir.join(LOCK_NAME)).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => OpenError::Locked { dir: dir.to_path_buf() },
            _ => cannot("lock", dir, e),
        })?;
        for leftover in [NEW_NAME, AHEAD_NAME] {
            let path = dir.join(leftover);
            match vfs.remove(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(cannot("remove", &path, e));
                }
                _ => {}
            }
        }
        let (found, created) = match recover::read_log(&*vfs, dir)? {
            Some(found) => (found, false),
            None if presence == Presence::Required => {
                return Err(OpenError::Missing { dir: dir.to_path_buf() });
            }
            None => {
                create_first(&*vfs, dir, &options)?;
                let found = recover::read_log(&*vfs, dir)?;
                (found.expect("the first segment was just made"), true)
            }
        };
        let mut recovered = found.recovered;
        recovered.created = created;
        let mut wal = Self {
            state: HeadState {
                vote: recovered.vote.clone(),
                committed: recovered.committed.clone(),
                purged: recovered.purged.clone(),
            },
            vfs,
            dir: dir.to_path_buf(),
            options,
            file: found.file,
            header: found.header,
            capacity: found.capacity,
            position: found.position,
            written: 0,
            next_group: found.next_group,
            dirty_until: found.dirty_until,
            cursor: found.cursor,
            closed: found.closed.into(),
            max_index: found.max_index,
            ahead: None,
            preparing: false,
            pending: None,
            failed: None,
            trouble: None,
            buffer: Vec::new(),
            _lock: lock,
        };
        if !sabotage::is(Sabotage::RecoveredNotSynced) {
            // In this order: a mark, or a continuation, says that all before it was synced.
            if !sabotage::is(Sabotage::MarkedBeforeSynced) {
                wal.resync(found.last_group).map_err(|e| cannot("sync", &found.path, e))?;
            }
            if let Some(Unsealed { mut file, salt, capacity, position, next_group }) =
                found.unsealed
            {
                seal(&mut *file, salt, capacity, position, next_group)
                    .map_err(|e| cannot("close the segment before", &found.path, e))?;
            }
            wal.wipe_tail().map_err(|e| cannot("write", &found.path, e))?;
            wal.vfs.sync_dir(&wal.dir).map_err(|e| cannot("sync", &wal.dir, e))?;
        }
        wal.drop_purged_segments();
        Ok((wal, recovered))
    }

    /// Writes the last group once more, as it was read, and syncs it. A process that was killed may
    /// have left it in the page cache; one whose sync failed may have left it there marked clean,
    /// and a sync alone would then write nothing.
    fn resync(&mut self, from: u64) -> io::Result<()> {
        const STEP: u64 = 1024 * 1024;
        let mut at = from;
        while at < self.position {
            let mut bytes = vec![0u8; STEP.min(self.position - at) as usize];
            if self.file.read_at(&mut bytes, at)? != bytes.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.file.write_all_at(&bytes, at)?;
            at += bytes.len() as u64;
        }
        self.file.sync_data()
    }

    /// Makes all records durable: one write, one fdatasync. All or nothing, in one group.
    pub fn append(&mut self, records: &[Record]) -> Result<(), WalError> {
        self.write_group(records)?;
        self.sync_group()
    }

    /// The first half of [`Wal::append`]: writes, and promises nothing yet.
    pub fn write_group(&mut self, records: &[Record]) -> Result<(), WalError> {
        if let Some(failed) = &self.failed {
            return Err(WalError::Fatal(failed.clone()));
        }
        if self.pending.is_some() {
            return Err(self.fail("a group was written before the one before it was synced"));
        }
        let pending = self.plan(records)?;
        if self.dirty_until > self.position {
            self.wipe_tail().map_err(|e| self.judge("clean up after a failed write", &e))?;
        }
        let has_entries = records.iter().any(|r| matches!(r, Record::Entry { .. }));
        self.make_room(pending.bytes, has_entries, pending.purges)?;
        self.encode(records);
        debug_assert_eq!(self.buffer.len() as u64, pending.bytes);
        if let Err(error) = self.file.write_all_at(&self.buffer, self.position) {
            self.dirty_until = self.position + pending.bytes;
            return Err(self.judge("write to the log", &error));
        }
        self.pending = Some(pending);
        Ok(())
    }

    /// The second half of [`Wal::append`]: waits for the disk. Without a written group it does
    /// nothing.
    pub fn sync_group(&mut self) -> Result<(), WalError> {
        if let Some(failed) = &self.failed {
            return Err(WalError::Fatal(failed.clone()));
        }
        let Some(pending) = self.pending.take() else {
            return Ok(());
        };
        let skip = sabotage::is(Sabotage::AckBeforeSync)
            || (sabotage::is(Sabotage::VoteNotSynced) && pending.only_votes);
        if !skip && let Err(error) = self.file.sync_data() {
            return Err(self.fail(&format!("cannot sync the log: {error}")));
        }
        self.position += pending.bytes;
        self.written += pending.bytes;
        self.next_group += 1;
        self.cursor = pending.cursor;
        self.state = pending.state;
        self.max_index = self.max_index.max(pending.max_index);
        if pending.purges {
            self.drop_purged_segments();
        }
        Ok(())
    }

    /// The last durable entry, or the purge mark if that is higher.
    pub fn last_index(&self) -> Option<u64> {
        self.cursor.last
    }

    /// Bytes of all groups made durable since the log was opened.
    pub fn written_bytes(&self) -> u64 {
        self.written
    }

    /// What is wrong but does not stop the log, such as an old file that cannot be removed.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The next segment, to be zeroed ahead of need; `None` while it is too early or under way.
    /// Give the outcome to [`Wal::prepared`].
    pub fn preparation(&mut self) -> Option<Preparation> {
        let early = self.position < self.capacity / 2;
        if early || self.ahead.is_some() || self.preparing || self.failed.is_some() {
            return None;
        }
        self.preparing = true;
        Some(Preparation::new(self.vfs.clone(), &self.dir, self.options.segment_bytes))
    }

    /// Takes what became of a preparation. A failure costs nothing but speed.
    pub fn prepared(&mut self, outcome: io::Result<ZeroedFile>) {
        self.preparing = false;
        self.ahead = outcome.ok();
    }

    /// Leaves a durable mark that all groups before it were synced, so that damage to the very last
    /// one is told from a torn write. For an orderly end; nothing depends on it.
    pub fn close(mut self) -> io::Result<()> {
        if self.failed.is_some() || self.pending.is_some() {
            return Ok(());
        }
        self.wipe_tail()
    }

    /// Checks the records against the order of entries and works out what they change.
    fn plan(&self, records: &[Record]) -> Result<Pending, WalError> {
        let mut cursor = self.cursor;
        let mut state = self.state.clone();
        let mut max_index = None;
        let mut body = 0usize;
        for record in records {
            let bytes = record::payload_bytes(record);
            if bytes > MAX_RECORD_BYTES {
                return Err(WalError::Invalid(format!(
                    "a record of {bytes} bytes is above the limit of {MAX_RECORD_BYTES}"
                )));
            }
            body = body.saturating_add(record::RECORD_HEADER_BYTES + bytes);
            cursor.step(record).map_err(WalError::Invalid)?;
            match record {
                Record::Entry { index, .. } => max_index = max_index.max(Some(*index)),
                Record::Vote(bytes) => state.vote = Some(bytes.clone()),
                Record::Committed(bytes) => state.committed = Some(bytes.clone()),
                Record::Purge { index, bytes } if cursor.purged == Some(*index) => {
                    state.purged = Some((*index, bytes.clone()));
                }
                Record::Purge { .. } | Record::TruncateAfter { .. } => {}
            }
        }
        if body > frame::MAX_BODY_BYTES || u32::try_from(records.len()).is_err() {
            return Err(WalError::Invalid(format!(
                "a group of {body} bytes is above the limit of {}",
                frame::MAX_BODY_BYTES
            )));
        }
        // The fill is 1 to 32 bytes and ends at a multiple of 32.
        let bytes = ((HEAD_BYTES + body) / HEAD_BYTES + 1) * HEAD_BYTES;
        Ok(Pending {
            bytes: bytes as u64,
            cursor,
            state,
            max_index,
            purges: records.iter().any(|r| matches!(r, Record::Purge { .. })),
            only_votes: records.iter().all(|r| matches!(r, Record::Vote(_))),
        })
    }

    fn encode(&mut self, records: &[Record]) {
        self.buffer.clear();
        self.buffer.resize(HEAD_BYTES, 0);
        for record in records {
            record::encode_record(record, &mut self.buffer);
        }
        let count = u32::try_from(records.len()).expect("checked in plan");
        frame::seal_group(
            &mut self.buffer,
            self.next_group,
            count,
            self.header.salt,
            self.position,
        );
    }

    /// Makes sure that a group of `bytes` fits, in a new segment if need be.
    fn make_room(&mut self, bytes: u64, has_entries: bool, purges: bool) -> Result<(), WalError> {
        // 64 bytes stay free for the mark behind the last group.
        let end = self.position + bytes + 2 * HEAD_BYTES as u64;
        let reserve = RESERVE_BYTES.min(self.capacity / 16);
        if end + reserve <= self.capacity {
            return Ok(());
        }
        // Marks may use the reserve when there is no space for a segment; the second half of it
        // is for purge marks alone, because they make space.
        let own_reserve = match (has_entries, purges) {
            (true, _) => reserve,
            (false, false) => reserve / 2,
            (false, true) => 0,
        };
        match self.roll(bytes) {
            Err(WalError::Full(_)) if end + own_reserve <= self.capacity => Ok(()),
            outcome => outcome,
        }
    }

    /// Goes on in a new segment that has room for a group of `bytes`.
    fn roll(&mut self, bytes: u64) -> Result<(), WalError> {
        let number = self.header.number + 1;
        let header = SegmentHeader {
            number,
            first_group: self.next_group,
            salt: segment::salt_of(self.options.salt, number),
            bytes: 0,
        };
        let head = segment_head(&header, self.cursor.last, &self.state);
        let least = head.len() as u64 + bytes + 4 * HEAD_BYTES as u64;
        let wanted = self.options.segment_bytes.max(least + RESERVE_BYTES.min(least / 8));
        let fresh = match self.ahead.take() {
            Some(ahead) if ahead.bytes >= wanted => Ok(ahead),
            _ => ZeroedFile::create_now(&*self.vfs, &self.dir, wanted),
        };
        let mut fresh = fresh.map_err(|e| self.judge("make the next segment of the log", &e))?;
        let header = SegmentHeader { bytes: fresh.bytes, ..header };
        let head = segment_head(&header, self.cursor.last, &self.state);
        let path = self.dir.join(segment::name(number));
        if let Err(error) = fresh.file.write_all_at(&head, 0) {
            let _ = self.vfs.remove(&fresh.path);
            return Err(self.judge("write the next segment of the log", &error));
        }
        if let Err(error) = fresh.file.sync_data() {
            return Err(self.fail(&format!("cannot sync the next segment: {error}")));
        }
        if let Err(error) = self.vfs.rename(&fresh.path, &path) {
            let _ = self.vfs.remove(&fresh.path);
            return Err(self.judge("name the next segment of the log", &error));
        }
        if let Err(error) = sync_dir(&*self.vfs, &self.dir) {
            return Err(self.fail(&format!("cannot sync {}: {error}", self.dir.display())));
        }
        // Only now, with the next file durable: otherwise a crash would look like its loss.
        let sealed =
            seal(&mut *self.file, self.header.salt, self.capacity, self.position, self.next_group);
        self.closed
            .push_back(Closed { number: self.header.number, max_index: self.max_index.take() });
        self.file = fresh.file;
        self.capacity = fresh.bytes;
        self.header = header;
        self.position = head.len() as u64;
        self.dirty_until = self.position;
        self.next_group += 1;
        // The log goes on in the new file in any case: the old one must not get another group.
        match sealed {
            Err(error) if !is_full(&error) => {
                return Err(self.fail(&format!("cannot close the segment before: {error}")));
            }
            // Full, although it was allocated: the next start closes it.
            _ => {}
        }
        self.drop_purged_segments();
        Ok(())
    }

    /// Zeroes what lies behind the end, leaves a mark there, and syncs.
    fn wipe_tail(&mut self) -> io::Result<()> {
        let mark_end = self.position + HEAD_BYTES as u64;
        if mark_end <= self.capacity {
            const STEP: u64 = 1024 * 1024;
            let mut bytes = Head::mark(self.next_group).encode(self.header.salt).to_vec();
            let mut at = self.position;
            loop {
                let end = self.dirty_until.min(at + STEP);
                bytes.resize(bytes.len().max(end.saturating_sub(at) as usize), 0);
                self.file.write_all_at(&bytes, at)?;
                at += bytes.len() as u64;
                if at >= self.dirty_until {
                    break;
                }
                bytes.clear();
            }
        }
        self.file.sync_data()?;
        self.dirty_until = self.position;
        Ok(())
    }

    /// Removes the segments whose entries are all purged, oldest first, each durably before the
    /// next: a gap would look like a lost file.
    fn drop_purged_segments(&mut self) {
        let Some(purged) = self.cursor.purged else {
            return;
        };
        self.trouble = None;
        while let Some(oldest) = self.closed.front().copied() {
            if oldest.max_index > Some(purged) {
                return;
            }
            let path = self.dir.join(segment::name(oldest.number));
            let removed = match self.vfs.remove(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            };
            if let Err(error) = removed.and_then(|()| self.vfs.sync_dir(&self.dir)) {
                self.trouble = Some(format!("cannot remove {}: {error}", path.display()));
                return;
            }
            self.closed.pop_front();
        }
    }

    fn judge(&mut self, doing: &str, error: &io::Error) -> WalError {
        if is_full(error) {
            WalError::Full(format!("cannot {doing}: {error}"))
        } else {
            self.fail(&format!("cannot {doing}: {error}"))
        }
    }

    fn fail(&mut self, what: &str) -> WalError {
        self.failed = Some(what.to_string());
        WalError::Fatal(what.to_string())
    }
}

/// Writes the continuation of a segment whose successor is durable, where its groups end.
fn seal(
    file: &mut dyn VFile,
    salt: u64,
    capacity: u64,
    position: u64,
    next_group: u64,
) -> io::Result<()> {
    // `make_room` leaves room for it; a file that was made by somebody else may have none.
    if position + HEAD_BYTES as u64 > capacity {
        return Ok(());
    }
    file.write_all_at(&Head::continued(next_group).encode(salt), position)?;
    file.sync_data()
}

/// The first bytes of a segment: header, and a group with the state so far.
fn segment_head(header: &SegmentHeader, last: Option<u64>, state: &HeadState) -> Vec<u8> {
    let mut group = vec![0u8; HEAD_BYTES];
    record::encode_position(last, &mut group);
    let mut count = 1;
    let records = [
        state.vote.clone().map(Record::Vote),
        state.committed.clone().map(Record::Committed),
        state.purged.clone().map(|(index, bytes)| Record::Purge { index, bytes }),
    ];
    for record in records.into_iter().flatten() {
        record::encode_record(&record, &mut group);
        count += 1;
    }
    frame::seal_group(&mut group, header.first_group, count, header.salt, HEADER_BYTES);
    let mut out = header.encode();
    out.extend_from_slice(&group);
    out
}

/// Makes the first segment of a new log.
fn create_first(vfs: &dyn Vfs, dir: &Path, options: &WalOptions) -> Result<(), OpenError> {
    let bytes = options.segment_bytes.max(4 * HEADER_BYTES);
    let salt = segment::salt_of(options.salt, 1);
    let header = SegmentHeader { number: 1, first_group: 1, salt, bytes };
    let head = segment_head(&header, None, &HeadState::default());
    let path = dir.join(segment::name(1));
    let make = || -> io::Result<()> {
        let mut fresh = ZeroedFile::create_now(vfs, dir, bytes)?;
        fresh.file.write_all_at(&head, 0)?;
        fresh.file.sync_data()?;
        vfs.rename(&fresh.path, &path)?;
        sync_dir(vfs, dir)
    };
    make().map_err(|e| cannot("make", &path, e))
}

fn sync_dir(vfs: &dyn Vfs, dir: &Path) -> io::Result<()> {
    if sabotage::is(Sabotage::DirNotSynced) {
        return Ok(());
    }
    vfs.sync_dir(dir)
}
