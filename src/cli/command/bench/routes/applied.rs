//! When nodes applied the entries that close and open the routes: in their logs, by the machine's clock.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use regent_lab::Lab;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What the line says.
const OPEN: &str = "writes are routed ";
const CLOSED: &str = "writes are routed nowhere ";

/// The logs of a lab's nodes from some place on.
pub struct Logs {
    files: Vec<(PathBuf, u64)>,
    /// One moment by both clocks.
    now: (SystemTime, Instant),
}

/// What happened to the routes since, at the node that was first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Applied {
    /// Nobody takes writes.
    pub closed: Option<Instant>,
    /// Somebody takes them again.
    pub opened: Option<Instant>,
}

impl Logs {
    /// From here on.
    pub fn here(lab: &Lab) -> Self {
        let files = lab.nodes.iter().map(|node| {
            let length = std::fs::metadata(&node.log).map_or(0, |meta| meta.len());
            (node.log.clone(), length)
        });
        Self { files: files.collect(), now: (SystemTime::now(), Instant::now()) }
    }

    /// What they say by now.
    pub fn applied(&self) -> Applied {
        let mut applied = Applied::default();
        for (path, from) in &self.files {
            let mut text = String::new();
            let read = File::open(path).and_then(|mut file| {
                file.seek(SeekFrom::Start(*from))?;
                file.read_to_string(&mut text)
            });
            if read.is_err() {
                continue;
            }
            let mut closed = None;
            for line in text.lines() {
                if line.contains(CLOSED) {
                    closed = closed.or_else(|| self.instant(line));
                } else if line.contains(OPEN) && closed.is_some() {
                    let opened = self.instant(line);
                    applied.closed = first(applied.closed, closed);
                    applied.opened = first(applied.opened, opened);
                    break;
                }
            }
        }
        applied
    }

    fn instant(&self, line: &str) -> Option<Instant> {
        let stamp = line.split_whitespace().next()?;
        let at: SystemTime = OffsetDateTime::parse(stamp, &Rfc3339).ok()?.into();
        let (wall, instant) = self.now;
        match at.duration_since(wall) {
            Ok(after) => instant.checked_add(after),
            Err(before) => instant.checked_sub(before.duration().max(Duration::ZERO)),
        }
    }
}

fn first(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}
