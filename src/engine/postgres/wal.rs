//! WAL on disk, read by `pg_waldump`: where a record ends, where all of it ends, which commits.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use regent_core::role::Lsn;

use super::durable;
use super::history::{self, Line};
use super::programs::{Ended, Programs};
use crate::error::DiskError;
use crate::facts::{CleanStop, Cluster, ClusterState, LostTransaction, LostTransactions};

/// Reading gigabytes of WAL takes a while; longer than this is a hung disk.
const SCAN: Duration = Duration::from_secs(300);
const PAGE: u64 = 8192;
const PAGE_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;
/// Most lost commits that are listed one by one.
const MAX_LISTED: usize = 1000;

/// How `pg_waldump` says that it read up to the last record, and that there was none.
const LAST_RECORD: &str = "error in WAL record at";
const NO_RECORD: &str = "could not find a valid record";

/// One line of `pg_waldump`.
struct Record<'a> {
    bytes: u64,
    xid: u32,
    at: Lsn,
    what: &'a str,
}

fn record(line: &str) -> Option<Record<'_>> {
    let after = |key: &str| line.split_once(key).map(|(_, rest)| rest.trim_start());
    let word = |text: &'static str| {
        after(text).map(|rest| rest.split([',', ' ']).next().unwrap_or_default())
    };
    // "len (rec/tot):    114/   114"
    let bytes = after("len (rec/tot):")?.split_once('/')?.1.trim_start();
    Some(Record {
        bytes: bytes.split(',').next()?.trim().parse().ok()?,
        xid: word(" tx:")?.parse().ok()?,
        at: word(" lsn:")?.parse().ok()?,
        what: after(" desc:")?,
    })
}

/// Where a record of `bytes` that begins at `at` ends, rounded up as the server does. Page headers
/// that it crosses are not part of its length.
fn end_of_record(at: Lsn, bytes: u64, segment_bytes: u64) -> Lsn {
    let mut left = bytes.next_multiple_of(8);
    let mut position = at.0;
    loop {
        let room = PAGE - position % PAGE;
        if left <= room {
            return Lsn(position + left);
        }
        left -= room;
        position += room;
        position += if position.is_multiple_of(segment_bytes) { LONG_HEADER } else { PAGE_HEADER };
    }
}

/// Where to read: records of one timeline, from a position to another or to the last one.
struct Stretch {
    timeline: u32,
    from: Lsn,
    to: Option<Lsn>,
    segment_bytes: u64,
}

impl Stretch {
    fn segment(&self, at: Lsn) -> String {
        format!("{:08X}{}", self.timeline, segment_number(at, self.segment_bytes))
    }

    /// The segments that it begins and ends in.
    fn ends(&self, dir: &Path) -> Result<(String, String), DiskError> {
        let first = self.segment(self.from);
        let last = match self.to {
            Some(to) => self.segment(Lsn(to.0.saturating_sub(1))),
            None => {
                let mut names = durable::names(&dir.join("pg_wal"))?;
                names.retain(|name| name.len() == 24 && name.get(..8) == first.get(..8));
                names.pop().unwrap_or_default()
            }
        };
        let last = last.max(first.clone());
        Ok((first, last))
    }
}

async fn dump(
    dir: &Path,
    programs: &Programs,
    stretch: &Stretch,
    more: &[&str],
    line: impl FnMut(&str),
) -> Result<Ended, DiskError> {
    let wal = dir.join("pg_wal");
    let (from, to) = (stretch.from.to_string(), stretch.to.map(|to| to.to_string()));
    // Segments are named: of a directory alone the program asks the first file it meets how large they
    // are, and that may be one that was prepared for later and has nothing in it.
    let (first, last) = stretch.ends(dir)?;
    let mut args: Vec<&OsStr> = vec!["-p".as_ref(), wal.as_os_str()];
    args.extend(["-s", &from].map(OsStr::new));
    args.extend(to.iter().flat_map(|to| ["-e", to.as_str()]).map(OsStr::new));
    args.extend(more.iter().map(OsStr::new));
    args.extend([&first, &last].map(OsStr::new));
    programs.run_lines("pg_waldump", &args, &[], SCAN, line).await
}

/// Whether nothing was ever written to the segment that the stretch begins in.
fn is_blank(dir: &Path, stretch: &Stretch) -> Result<bool, DiskError> {
    let path = dir.join("pg_wal").join(stretch.segment(stretch.from));
    let mut head = [0; PAGE_HEADER as usize];
    let read = File::open(&path).and_then(|mut file| file.read_exact(&mut head));
    read.map_err(|source| DiskError::Io { what: "read", path, source })?;
    Ok(head.iter().all(|byte| *byte == 0))
}

/// An orderly stop as a primary, if that is how the server was left.
pub(super) async fn clean_stop(
    dir: &Path,
    programs: &Programs,
    cluster: &Cluster,
) -> Result<Option<CleanStop>, DiskError> {
    if cluster.state != ClusterState::ShutDown {
        return Ok(None);
    }
    let mut end = None;
    let stretch = Stretch {
        timeline: cluster.timeline,
        from: cluster.checkpoint,
        to: None,
        segment_bytes: cluster.segment_bytes,
    };
    let ended = dump(dir, programs, &stretch, &["-n", "1"], |line| {
        if let Some(r) = record(line)
            && r.what.starts_with("CHECKPOINT_SHUTDOWN")
            && r.at == cluster.checkpoint
        {
            end = Some(end_of_record(r.at, r.bytes, cluster.segment_bytes));
        }
    })
    .await?;
    match end {
        Some(end) => Ok(Some(CleanStop { end, timeline: cluster.timeline })),
        None => Err(ended.failure("pg_waldump")),
    }
}

/// The newest timeline that has WAL here. Segments prepared for later carry it too.
pub(super) fn newest_timeline(dir: &Path, at_least: u32) -> Result<u32, DiskError> {
    let names = durable::names(&dir.join("pg_wal"))?;
    let timelines = names
        .iter()
        .filter(|name| name.len() == 24)
        .filter_map(|name| u32::from_str_radix(name.get(..8)?, 16).ok());
    Ok(timelines.fold(at_least, u32::max))
}

/// Where the WAL in the directory ends, whole records only, and the line it is on.
pub(super) async fn end(
    dir: &Path,
    programs: &Programs,
    cluster: &Cluster,
) -> Result<(Lsn, Line), DiskError> {
    let known = cluster.timeline.max(cluster.min_recovery_timeline);
    let timeline = newest_timeline(dir, known)?;
    let line = history::line(dir, timeline)?;
    // A switch newer than the last checkpoint: its WAL begins where it left its parent.
    let switch = line.ancestors.last().map_or(Lsn(0), |a| a.end);
    let from = if timeline == cluster.timeline { cluster.checkpoint } else { switch };
    let segment_bytes = cluster.segment_bytes;
    let stretch = Stretch { timeline, from, to: None, segment_bytes };
    let mut end = from;
    let may_be_empty = timeline != cluster.timeline;
    // A switch at the very beginning of a segment, and nothing was written after it.
    if !(may_be_empty && is_blank(dir, &stretch)?) {
        let ended = dump(dir, programs, &stretch, &[], |line| {
            if let Some(r) = record(line) {
                end = end.max(end_of_record(r.at, r.bytes, segment_bytes));
            }
        })
        .await?;
        // It always ends with an error: there is no record after the last. No record at all is
        // another matter, unless nothing was written after the switch.
        let nothing = may_be_empty && ended.err.contains(NO_RECORD);
        if end == from && !nothing {
            return Err(ended.failure("pg_waldump"));
        }
    }
    let end = end.max(cluster.min_recovery_end);
    // A crash of the processes leaves WAL written and not flushed; only flushed ends are reported.
    for name in segments(&line, from, end, cluster.segment_bytes) {
        let path = dir.join("pg_wal").join(name);
        if let Ok(file) = File::open(&path) {
            file.sync_all().map_err(|source| DiskError::Io { what: "sync", path, source })?;
        }
    }
    Ok((end, line))
}

/// Counts the commits between `from` and `to` on `line`.
pub(super) async fn commits(
    dir: &Path,
    programs: &Programs,
    line: &Line,
    (from, to): (Lsn, Lsn),
    segment_bytes: u64,
) -> Result<LostTransactions, DiskError> {
    let mut lost = LostTransactions { from, to, ..Default::default() };
    for (timeline, begin, end) in line.pieces(from, to) {
        let stretch = Stretch { timeline, from: begin, to: Some(end), segment_bytes };
        let ended = dump(dir, programs, &stretch, &["-r", "Transaction"], |text| {
            let Some(r) = record(text) else { return };
            if r.xid == 0 || !r.what.starts_with("COMMIT") || r.at < begin || r.at >= end {
                return;
            }
            lost.count += 1;
            if lost.listed.len() < MAX_LISTED {
                let rest =
                    r.what.trim_start_matches("COMMIT_PREPARED").trim_start_matches("COMMIT");
                let time = rest.split(';').next().unwrap_or_default().trim().to_owned();
                lost.listed.push(LostTransaction { xid: r.xid, at: r.at, time });
            }
        })
        .await?;
        // Segments that are gone already: what they held cannot be counted.
        let whole = ended.ok || [LAST_RECORD, NO_RECORD].iter().any(|m| ended.err.contains(m));
        lost.cut_short |= !whole;
    }
    Ok(lost)
}

/// The name of the segment that holds `at`, without its timeline.
pub(super) fn segment_number(at: Lsn, segment_bytes: u64) -> String {
    let (per_id, number) = ((1u64 << 32) / segment_bytes, at.0 / segment_bytes);
    format!("{:08X}{:08X}", number / per_id, number % per_id)
}

/// The files that hold `from..to` on `line`, oldest first.
pub(super) fn segments(line: &Line, from: Lsn, to: Lsn, segment_bytes: u64) -> Vec<String> {
    let mut names = Vec::new();
    for (timeline, begin, end) in line.pieces(from, to) {
        for number in begin.0 / segment_bytes..=(end.0 - 1) / segment_bytes {
            let at = Lsn(number * segment_bytes);
            names.push(format!("{timeline:08X}{}", segment_number(at, segment_bytes)));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_line_of_the_dump_is_read() {
        let text = "rmgr: Transaction len (rec/tot):     34/    34, tx:        731, \
            lsn: 0/030001A8, prev 0/03000160, desc: COMMIT 2026-11-21 19:00:00.123456 UTC";
        let r = record(text).unwrap();
        assert_eq!((r.bytes, r.xid, r.at), (34, 731, Lsn(0x0300_01A8)));
        assert!(r.what.starts_with("COMMIT 2026"));
    }

    #[test]
    fn a_record_that_crosses_a_page_is_longer_by_the_header() {
        let segment = 16 << 20;
        assert_eq!(end_of_record(Lsn(0x28), 114, segment), Lsn(0x28 + 120));
        assert_eq!(end_of_record(Lsn(8192 - 16), 34, segment), Lsn(8192 + 24 + 24));
        assert_eq!(end_of_record(Lsn(segment - 8), 24, segment), Lsn(segment + 40 + 16));
        assert_eq!(end_of_record(Lsn(8192 - 120), 114, segment), Lsn(8192));
    }

    #[test]
    fn segments_are_named_as_the_server_names_them() {
        let line = Line::parse(2, "1\t0/5000000\tx\n");
        assert_eq!(
            segments(&line, Lsn(0x4ff_ffff), Lsn(0x600_0001), 16 << 20),
            ["000000010000000000000004", "000000020000000000000005", "000000020000000000000006"]
        );
    }
}
