//! Reads a log back, and decides the one hard question: was what is broken ever acknowledged?
//!
//! If not, it is the rest of a write that a power cut interrupted, and is cut off. If it was, the
//! node must not go on: a vote may be among it, and a node that forgets a vote can help to elect
//! two leaders in one term. When in doubt this file refuses. How the two are told apart is in
//! [`super::frame`].

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::cursor::Cursor;
use super::frame::{self, HEAD_BYTES, Head, HeadState, Kind};
use super::outcome::{OpenError, Recovered};
use super::record::{self, Record, Stored};
use super::sabotage::{self, Sabotage};
use super::segment::{self, HEADER_BYTES, HeaderFault, SegmentHeader};
use super::vfs::{OpenMode, VFile, Vfs};

/// How much of the tail is looked at in one go; a multiple of the size of a head.
const TAIL_STEP_BYTES: usize = 256 * 1024;

/// A segment before the last one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closed {
    /// Its number.
    pub number: u64,
    /// The highest entry in it, even if it was truncated later.
    pub max_index: Option<u64>,
}

/// What was found in the directory of a log.
pub(super) struct Found {
    pub recovered: Recovered,
    pub cursor: Cursor,
    pub closed: Vec<Closed>,
    /// The last segment, open.
    pub file: Box<dyn VFile>,
    pub path: PathBuf,
    pub header: SegmentHeader,
    pub max_index: Option<u64>,
    pub capacity: u64,
    /// Where the next group goes.
    pub position: u64,
    /// Its number.
    pub next_group: u64,
    /// Where the last group begins: the only one that may not be on the disk, because each is
    /// written after the one before it was synced.
    pub last_group: u64,
    /// Up to where there is something else than zeros.
    pub dirty_until: u64,
    /// The segment before the last one, if its continuation is not there: a crash came between.
    pub unsealed: Option<Unsealed>,
}

/// A segment that has a successor and does not say so.
pub(super) struct Unsealed {
    pub file: Box<dyn VFile>,
    pub salt: u64,
    pub capacity: u64,
    /// Where its groups end.
    pub position: u64,
    /// The group that its successor begins with.
    pub next_group: u64,
}

/// Reads the log in `dir`; `None` if there is none.
pub(super) fn read_log(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Found>, OpenError> {
    let names = vfs.list(dir).map_err(|e| cannot("list", dir, e))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|n| segment::number_of(n)).collect();
    numbers.sort_unstable();
    let mut segments = Vec::with_capacity(numbers.len());
    for number in numbers {
        segments.push(OpenSegment::open(vfs, dir, number)?);
    }
    for pair in segments.windows(2) {
        if pair[1].header.number != pair[0].header.number + 1 {
            return Err(OpenError::Corrupt {
                file: dir.join(segment::name(pair[0].header.number + 1)),
                offset: 0,
                what: format!(
                    "the file is missing, although {} exists",
                    segment::name(pair[1].header.number)
                ),
            });
        }
    }
    let Some(mut last) = segments.pop() else {
        return Ok(None);
    };
    let mut replay = Replay::default();
    let mut closed = Vec::with_capacity(segments.len());
    let mut expected = segments.first().unwrap_or(&last).header.first_group;
    let successors: Vec<u64> = segments
        .iter()
        .skip(1)
        .chain(std::iter::once(&last))
        .map(|segment| segment.header.first_group)
        .collect();
    let mut unsealed = None;
    for (mut segment, successor) in segments.into_iter().zip(successors) {
        segment.check_first_group(expected)?;
        let end = segment.read_groups(&mut replay, Some(successor))?;
        expected = end.next_group;
        let sealed = segment.is_sealed(&end)?;
        unsealed = (!sealed).then(|| Unsealed {
            salt: segment.header.salt,
            capacity: segment.reader.file_bytes,
            position: end.position,
            next_group: end.next_group,
            file: segment.reader.file,
        });
        closed.push(Closed { number: segment.header.number, max_index: replay.segment_max.take() });
    }
    last.check_first_group(expected)?;
    let end = last.read_groups(&mut replay, None)?;
    let max_index = replay.segment_max.take();
    let cursor = replay.cursor;
    let recovered = replay
        .finish(end.dirty_until.saturating_sub(end.position))
        .map_err(|what| last.corrupt(HEADER_BYTES, what))?;
    Ok(Some(Found {
        recovered,
        cursor,
        closed,
        header: last.header,
        max_index,
        capacity: last.reader.file_bytes,
        position: end.position,
        next_group: end.next_group,
        last_group: end.last_group,
        dirty_until: end.dirty_until,
        unsealed,
        path: last.path,
        file: last.reader.file,
    }))
}

/// Wraps an error of the disk.
pub(super) fn cannot(doing: &'static str, path: &Path, source: io::Error) -> OpenError {
    OpenError::Io { doing, path: path.to_path_buf(), source }
}

/// State that is rebuilt record by record.
#[derive(Default)]
struct Replay {
    cursor: Cursor,
    started: bool,
    /// Entries up to here were in segments that are gone: a purge mark must cover them.
    absent_until: Option<u64>,
    recovered: Recovered,
    segment_max: Option<u64>,
}

impl Replay {
    fn step(&mut self, stored: Stored) -> Result<(), String> {
        let record = match stored {
            Stored::Position(last) => {
                if !self.started {
                    self.started = true;
                    self.cursor.last = last;
                    self.absent_until = last;
                } else if self.cursor.last != last {
                    return Err(format!(
                        "this segment continues after entry {last:?}, but the one before it ends \
                         with {:?}",
                        self.cursor.last
                    ));
                }
                return Ok(());
            }
            Stored::Record(record) => record,
        };
        self.cursor.step(&record)?;
        match record {
            Record::Entry { index, bytes } => {
                self.segment_max = self.segment_max.max(Some(index));
                self.recovered.entries.push((index, bytes));
            }
            Record::TruncateAfter { index } => {
                let entries = &mut self.recovered.entries;
                let keep = entries.partition_point(|(at, _)| Some(*at) <= index);
                entries.truncate(keep);
                self.absent_until = self.absent_until.min(index);
            }
            Record::Vote(bytes) => self.recovered.vote = Some(bytes),
            Record::Committed(bytes) => self.recovered.committed = Some(bytes),
            Record::Purge { index, bytes } => {
                let old = self.recovered.purged.as_ref().map(|(index, _)| *index);
                if old <= Some(index) {
                    self.recovered.purged = Some((index, bytes));
                }
            }
        }
        Ok(())
    }

    fn finish(mut self, cut_bytes: u64) -> Result<Recovered, String> {
        let purged = self.recovered.purged.as_ref().map(|(index, _)| *index);
        if self.absent_until > purged {
            return Err(format!(
                "entries up to {:?} are missing, but only those up to {purged:?} were purged: an \
                 older file of the log is gone",
                self.absent_until
            ));
        }
        let entries = &mut self.recovered.entries;
        let gone = entries.partition_point(|(at, _)| Some(*at) <= purged);
        entries.drain(..gone);
        self.recovered.cut_bytes = cut_bytes;
        Ok(self.recovered)
    }
}

/// Where the groups of a segment end.
struct End {
    position: u64,
    next_group: u64,
    last_group: u64,
    dirty_until: u64,
}

struct OpenSegment {
    path: PathBuf,
    header: SegmentHeader,
    reader: Reader,
}

impl OpenSegment {
    fn open(vfs: &dyn Vfs, dir: &Path, number: u64) -> Result<Self, OpenError> {
        let path = dir.join(segment::name(number));
        let (header, reader) = open_header(vfs, &path)?;
        if header.bytes > reader.file_bytes {
            return Err(OpenError::Corrupt {
                file: path,
                offset: reader.file_bytes,
                what: format!("the file was cut, it had {} bytes", header.bytes),
            });
        }
        if header.number != number {
            return Err(OpenError::Corrupt {
                file: path,
                offset: 16,
                what: format!("the header says that this is segment {}", header.number),
            });
        }
        Ok(Self { path, header, reader })
    }

    fn check_first_group(&self, expected: u64) -> Result<(), OpenError> {
        if self.header.first_group != expected {
            return Err(self.corrupt(
                24,
                format!(
                    "the segment begins with group {}, expected {expected}",
                    self.header.first_group
                ),
            ));
        }
        Ok(())
    }

    fn corrupt(&self, offset: u64, what: String) -> OpenError {
        OpenError::Corrupt { file: self.path.clone(), offset, what }
    }

    /// Reads groups until `until` (in a segment that has a successor) or until the log ends.
    fn read_groups(&mut self, replay: &mut Replay, until: Option<u64>) -> Result<End, OpenError> {
        let mut position = HEADER_BYTES;
        let mut last_group = position;
        let mut group = self.header.first_group;
        while until != Some(group) {
            match self.read_group(position, group, replay)? {
                Some(next) => {
                    last_group = position;
                    position = next;
                    group += 1;
                }
                None => {
                    if let Some(until) = until {
                        return Err(self.corrupt(
                            position,
                            format!(
                                "group {group} is missing; the next segment begins with group \
                                 {until}, so it was acknowledged"
                            ),
                        ));
                    }
                    if group == self.header.first_group {
                        return Err(self.corrupt(
                            position,
                            "the first group is missing; a segment gets its name only when its \
                             first group is synced"
                                .to_string(),
                        ));
                    }
                    let dirty_until = self.check_tail(position, group)?;
                    return Ok(End { position, next_group: group, last_group, dirty_until });
                }
            }
        }
        Ok(End { position, next_group: group, last_group, dirty_until: position })
    }

    /// Whether the segment says where its groups end that the log goes on in the next one.
    fn is_sealed(&mut self, end: &End) -> Result<bool, OpenError> {
        let bytes = self.get(end.position, HEAD_BYTES as u64)?;
        let seal = HeadState::Intact(Head::continued(end.next_group));
        Ok(Head::read(&bytes, self.header.salt) == seal)
    }

    /// Reads one group; `None` when the log ends before it, as far as this place can tell.
    fn read_group(
        &mut self,
        at: u64,
        group: u64,
        replay: &mut Replay,
    ) -> Result<Option<u64>, OpenError> {
        let bytes = self.get(at, HEAD_BYTES as u64)?;
        let head = match Head::read(&bytes, self.header.salt) {
            HeadState::Intact(head) => head,
            HeadState::Absent | HeadState::Partial => return Ok(None),
            HeadState::Damaged => {
                return Err(self
                    .corrupt(at, format!("the head of group {group} was written and is damaged")));
            }
        };
        if head.group != group {
            return Err(
                self.corrupt(at, format!("found group {}, expected group {group}", head.group))
            );
        }
        match head.kind {
            Kind::Group => {}
            Kind::Mark => return Ok(None),
            Kind::Continued => {
                let next = segment::name(self.header.number + 1);
                return Err(self.corrupt(
                    at,
                    format!(
                        "the log continues in {next} with group {group}, and that file is gone"
                    ),
                ));
            }
        }
        let start = at + HEAD_BYTES as u64;
        let end = start + u64::from(head.body_bytes);
        if end > self.reader.file_bytes {
            return Err(self.corrupt(
                at,
                format!("group {group} reaches beyond the end of the file: the file was cut"),
            ));
        }
        let body = self.get(start, u64::from(head.body_bytes))?;
        if frame::body_crc(self.header.salt, group, &body) != head.body_crc {
            let torn = frame::looks_torn(&head, &body, start);
            if torn && !sabotage::is(Sabotage::TornTailAccepted) {
                return Ok(None);
            }
            if !torn && !sabotage::is(Sabotage::CrcIgnored) {
                return Err(self.corrupt(
                    at,
                    format!(
                        "group {group} ({} records) was written completely and its checksum is \
                         wrong",
                        head.records
                    ),
                ));
            }
        }
        record::decode_records(&body, head.records, |stored| replay.step(stored))
            .map_err(|what| self.corrupt(at, format!("group {group}: {what}")))?;
        Ok(Some(end))
    }

    /// Looks behind the end for the proof that it is not the end; returns up to where there is
    /// something else than zeros.
    fn check_tail(&mut self, from: u64, group: u64) -> Result<u64, OpenError> {
        // One buffer for all: a fresh one for each step costs more in page faults than the reading.
        let mut buffer = vec![0u8; TAIL_STEP_BYTES];
        let mut dirty_until = from;
        let mut at = from;
        while at < self.reader.file_bytes {
            let step = (buffer.len() as u64).min(self.reader.file_bytes - at) as usize;
            let bytes = &mut buffer[..step];
            let read = self.reader.file.read_at(bytes, at);
            let got = read.map_err(|e| cannot("read", &self.path, e))?;
            let bytes = &bytes[..got];
            if got == 0 {
                break;
            }
            // Zero nearly always, and far the longest part of most files.
            let slots = if frame::is_zero(bytes) { &[] } else { bytes };
            for (nth, slot) in slots.chunks(HEAD_BYTES).enumerate() {
                let offset = at + (nth * HEAD_BYTES) as u64;
                if !frame::is_zero(slot) {
                    dirty_until = offset + slot.len() as u64;
                }
                if Head::starts_like_one(slot)
                    && let HeadState::Intact(head) = Head::read(slot, self.header.salt)
                    && head.group > group
                {
                    return Err(self.corrupt(
                        from,
                        format!(
                            "group {group} is broken, but group {} at byte {offset} was begun \
                             after it: it was acknowledged",
                            head.group
                        ),
                    ));
                }
            }
            at += got as u64;
        }
        Ok(dirty_until)
    }

    fn get(&mut self, at: u64, bytes: u64) -> Result<Bytes, OpenError> {
        self.reader.get(at, bytes).map_err(|e| cannot("read", &self.path, e))
    }
}

fn open_header(vfs: &dyn Vfs, path: &Path) -> Result<(SegmentHeader, Reader), OpenError> {
    let file = vfs.open(path, OpenMode::Existing).map_err(|e| cannot("open", path, e))?;
    let mut reader = Reader::new(file).map_err(|e| cannot("read", path, e))?;
    let bytes = reader.get(0, HEADER_BYTES).map_err(|e| cannot("read", path, e))?;
    match SegmentHeader::decode(&bytes) {
        Ok(header) => Ok((header, reader)),
        Err(HeaderFault::Version(found)) => {
            Err(OpenError::Version { file: path.to_path_buf(), found, known: segment::FORMAT })
        }
        Err(HeaderFault::Damaged(what)) => {
            Err(OpenError::Corrupt { file: path.to_path_buf(), offset: 0, what: what.to_string() })
        }
    }
}

/// Reads a file in large chunks and hands out slices of them: entries keep a chunk alive, not the
/// whole segment, and nothing is copied.
struct Reader {
    file: Box<dyn VFile>,
    file_bytes: u64,
    chunk: Bytes,
    chunk_at: u64,
}

impl Reader {
    const CHUNK_BYTES: u64 = 1024 * 1024;

    fn new(file: Box<dyn VFile>) -> io::Result<Self> {
        Ok(Self { file_bytes: file.len()?, file, chunk: Bytes::new(), chunk_at: 0 })
    }

    /// The bytes at `at`; fewer than asked for only at the end of the file.
    fn get(&mut self, at: u64, bytes: u64) -> io::Result<Bytes> {
        let bytes = bytes.min(self.file_bytes.saturating_sub(at));
        let chunk_end = self.chunk_at + self.chunk.len() as u64;
        if at < self.chunk_at || at + bytes > chunk_end {
            let want = bytes.max(Self::CHUNK_BYTES).min(self.file_bytes.saturating_sub(at));
            let mut chunk = vec![0u8; want as usize];
            let got = self.file.read_at(&mut chunk, at)?;
            if got as u64 != want {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.chunk = Bytes::from(chunk);
            self.chunk_at = at;
        }
        let start = (at - self.chunk_at) as usize;
        Ok(self.chunk.slice(start..start + bytes as usize))
    }
}
