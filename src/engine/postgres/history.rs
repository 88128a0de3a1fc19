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

    /// Its timelines, oldest first, each with its end; the last goes on to `end`.
    fn stretches(&self, end: Lsn) -> Vec<HistoryEntry> {
        let last = HistoryEntry { timeline: self.timeline, end };
        self.ancestors.iter().copied().chain([last]).collect()
    }

    /// The last position that both have, given where the WAL of this one ends; none when they
    /// share no timeline. Equal numbers are not enough: two instances that left a timeline at two
    /// places, and did not know of each other, both gave the next number to what came after.
    pub(super) fn parts_from(&self, end: Lsn, other: &Self) -> Option<Lsn> {
        let (mine, theirs) = (self.stretches(end), other.stretches(Lsn(u64::MAX)));
        // One whose history file is gone begins in the middle of the other.
        let begin = |line: &[HistoryEntry], at: u32| line.iter().position(|s| s.timeline == at);
        let (mine, theirs) =
            match (begin(&theirs, mine[0].timeline), begin(&mine, theirs[0].timeline)) {
                (Some(skip), _) => (&mine[..], &theirs[skip..]),
                (None, Some(skip)) => (&mine[skip..], &theirs[..]),
                (None, None) => return None,
            };
        let mut shared = None;
        for (here, there) in mine.iter().zip(theirs) {
            if here.timeline != there.timeline {
                break;
            }
            shared = Some(here.end.min(there.end));
            if here.end != there.end {
                break;
            }
        }
        shared
    }

    /// The pieces of this line from `from` to `to`: timeline, begin, end.
    pub(super) fn pieces(&self, from: Lsn, to: Lsn) -> Vec<(u32, Lsn, Lsn)> {
        let mut begin = Lsn(0);
        let mut pieces = Vec::new();
        for entry in self.stretches(to) {
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

/// First line of a history file that only keeps a number from being taken. A server that reads one
/// finds a timeline that nothing descends from.
const TAKEN: &str = "# regent: this number may be taken by another instance\n";

/// Most numbers that a promotion passes over: one file each.
const MAX_PASSED_OVER: u32 = 10_000;

/// Keeps a promotion from taking a number below `least`: the server takes the first after its own
/// whose history file is not there.
///
/// # Errors
/// [`DiskError::TimelineMade`] when `least` itself or a higher one was made here before;
/// [`DiskError::TimelineFar`] when it is too far from `own` to be true.
pub(super) fn reserve(
    data_dir: &Path,
    own: u32,
    least: u32,
    owner: Owner,
) -> Result<(), DiskError> {
    if least.saturating_sub(own) > MAX_PASSED_OVER {
        return Err(DiskError::TimelineFar { own, least });
    }
    let taken = read_all(data_dir)?;
    if let Some(made) = taken.iter().find(|file| file.timeline >= least && file.text != TAKEN) {
        return Err(DiskError::TimelineMade(made.timeline));
    }
    for timeline in own.saturating_add(1)..least {
        if !taken.iter().any(|file| file.timeline == timeline) {
            durable::write(&wal_dir(data_dir).join(file_name(timeline)), TAKEN, owner)?;
        }
    }
    Ok(())
}

/// Takes away what [`reserve`] laid, here or where it was copied from: a server that *starts* as a
/// standby looks for the newest timeline it knows a file of, and would find that it is no child of
/// its own.
pub(super) fn unreserve(data_dir: &Path) -> Result<(), DiskError> {
    for file in read_all(data_dir)? {
        if file.text == TAKEN {
            durable::remove(&wal_dir(data_dir).join(file_name(file.timeline)))?;
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
    #![allow(clippy::unwrap_used)]
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
        // Timeline 2 was made twice, from two places of 1.
        let twin = line(2, "1\t0/700\tno recovery target specified\n");
        assert_eq!(new.parts_from(Lsn(0x900), &twin), Some(Lsn(0x500)));
        assert_eq!(twin.parts_from(Lsn(0x900), &third), Some(Lsn(0x500)));
        // The history file of one is gone.
        assert_eq!(line(2, "").parts_from(Lsn(0x900), &third), Some(Lsn(0x800)));
        assert_eq!(third.parts_from(Lsn(0x900), &line(2, "")), Some(Lsn(0x800)));
    }

    #[test]
    fn numbers_are_kept_until_the_next_start_and_never_given_twice() {
        let name = format!("regent-timelines-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(wal_dir(&dir)).unwrap();
        let owner = Owner::default();
        let known = |dir: &Path| {
            let files = read_all(dir).unwrap();
            files.into_iter().map(|file| file.timeline).collect::<Vec<_>>()
        };
        durable::write(&wal_dir(&dir).join(file_name(3)), "1\t0/500\tx\n", owner).unwrap();
        reserve(&dir, 1, 6, owner).unwrap();
        assert_eq!(known(&dir), [2, 3, 4, 5]);
        reserve(&dir, 4, 6, owner).unwrap();
        unreserve(&dir).unwrap();
        assert_eq!(known(&dir), [3]);
        let far = reserve(&dir, 3, 3_000_000, owner);
        assert!(matches!(far, Err(DiskError::TimelineFar { .. })), "{far:?}");
        let again = reserve(&dir, 1, 3, owner);
        assert!(matches!(again, Err(DiskError::TimelineMade(3))), "{again:?}");
        assert_eq!(known(&dir), [3]);
        std::fs::remove_dir_all(dir).unwrap();
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
