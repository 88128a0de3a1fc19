//! Timeline histories: who descends from whom, and where two of them part.
//!
//! A history file of timeline T lists T's ancestors, each with the position where its successor
//! leaves it. T itself goes on from the last of these.

use std::path::{Path, PathBuf};

use regent_core::role::Lsn;

use super::durable::{self, Owner};
use crate::error::DiskError;
use crate::facts::{HistoryEntry, HistoryFile};

/// A timeline with its ancestors, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub timeline: u32,
    pub ancestors: Vec<HistoryEntry>,
}

impl Line {
    /// Reads the text of a history file; lines that are no entry are skipped, as the server does.
    pub(super) fn parse(timeline: u32, text: &str) -> Self {
        let ancestors = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let timeline = words.next()?.parse().ok()?;
                Some(HistoryEntry { timeline, end: words.next()?.parse().ok()? })
            })
            .collect();
        Self { timeline, ancestors }
    }

    /// Where `timeline` ends on the way to this one: none when it is this one and has no end.
    /// `Err` when it is not on the way.
    fn end_of(&self, timeline: u32) -> Result<Option<Lsn>, ()> {
        if timeline == self.timeline {
            return Ok(None);
        }
        self.ancestors.iter().find(|a| a.timeline == timeline).map(|a| Some(a.end)).ok_or(())
    }

    /// The last position that both have, given where the WAL of this one ends; none when they
    /// share no timeline.
    pub(super) fn parts_from(&self, end: Lsn, other: &Self) -> Option<Lsn> {
        let mine = self.ancestors.iter().map(|a| a.timeline).chain([self.timeline]);
        for timeline in mine.rev() {
            let (Ok(here), Ok(there)) = (self.end_of(timeline), other.end_of(timeline)) else {
                continue;
            };
            let here = here.unwrap_or(end);
            return Some(there.map_or(here, |there| there.min(here)));
        }
        None
    }

    /// The pieces of this line from `from` to `to`: timeline, begin, end.
    pub(super) fn pieces(&self, from: Lsn, to: Lsn) -> Vec<(u32, Lsn, Lsn)> {
        let mut begin = Lsn(0);
        let mut pieces = Vec::new();
        let last = HistoryEntry { timeline: self.timeline, end: to };
        for entry in self.ancestors.iter().chain([&last]) {
            let (a, b) = (begin.max(from), entry.end.min(to));
            if a < b {
                pieces.push((entry.timeline, a, b));
            }
            begin = entry.end;
        }
        pieces
    }
}

fn wal_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("pg_wal")
}

fn file_name(timeline: u32) -> String {
    format!("{timeline:08X}.history")
}

/// All histories in the WAL directory.
pub(super) fn read_all(data_dir: &Path) -> Result<Vec<HistoryFile>, DiskError> {
    let dir = wal_dir(data_dir);
    let mut files = Vec::new();
    for name in durable::names(&dir)? {
        let Some(timeline) = name.strip_suffix(".history") else { continue };
        let Ok(timeline) = u32::from_str_radix(timeline, 16) else { continue };
        if let Some(text) = durable::read(&dir.join(&name))? {
            files.push(HistoryFile { timeline, text });
        }
    }
    Ok(files)
}

/// The line of one timeline, from its history file; without one it has no ancestors.
pub(super) fn line(data_dir: &Path, timeline: u32) -> Result<Line, DiskError> {
    let text = durable::read(&wal_dir(data_dir).join(file_name(timeline)))?.unwrap_or_default();
    Ok(Line::parse(timeline, &text))
}

/// Puts histories in place that are not there yet. One that is there stays: the server wrote it.
pub(super) fn install(
    data_dir: &Path,
    files: &[HistoryFile],
    owner: Owner,
) -> Result<(), DiskError> {
    for file in files {
        let path = wal_dir(data_dir).join(file_name(file.timeline));
        if durable::read(&path)?.is_none() {
            durable::write(&path, &file.text, owner)?;
        }
    }
    Ok(())
}

/// Copies all histories into another directory.
pub(super) fn copy_all(data_dir: &Path, into: &Path, owner: Owner) -> Result<(), DiskError> {
    for file in read_all(data_dir)? {
        durable::write(&into.join(file_name(file.timeline)), &file.text, owner)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(timeline: u32, text: &str) -> Line {
        Line::parse(timeline, text)
    }

    #[test]
    fn two_lines_part_where_the_first_of_them_leaves_the_last_common_timeline() {
        let old = line(1, "");
        let new = line(2, "1\t0/500\tno recovery target specified\n");
        assert_eq!(old.parts_from(Lsn(0x600), &new), Some(Lsn(0x500)));
        assert_eq!(old.parts_from(Lsn(0x400), &new), Some(Lsn(0x400)));
        assert_eq!(new.parts_from(Lsn(0x900), &new), Some(Lsn(0x900)));
        let third = line(3, "1\t0/500\tx\n2\t0/800\ty\n");
        assert_eq!(new.parts_from(Lsn(0x900), &third), Some(Lsn(0x800)));
        let side = line(4, "1\t0/450\tx\n");
        assert_eq!(third.parts_from(Lsn(0x900), &side), Some(Lsn(0x450)));
        assert_eq!(line(7, "").parts_from(Lsn(1), &new), None);
    }

    #[test]
    fn a_range_is_cut_at_the_switches() {
        let third = line(3, "1\t0/500\tx\n\n2\t0/800\ty\n");
        assert_eq!(
            third.pieces(Lsn(0x480), Lsn(0x900)),
            [(1, Lsn(0x480), Lsn(0x500)), (2, Lsn(0x500), Lsn(0x800)), (3, Lsn(0x800), Lsn(0x900))]
        );
        assert_eq!(third.pieces(Lsn(0x850), Lsn(0x900)), [(3, Lsn(0x850), Lsn(0x900))]);
    }
}
