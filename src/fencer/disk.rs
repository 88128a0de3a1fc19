//! The state directory: files replaced whole, the lock of the one fencer, and the record of the init
//! by which its end can be proven later.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use regent_core::id::Nonce;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::wire::Protection;

/// The agent's way in.
pub(crate) const SOCKET_FILE: &str = "socket";
/// What the fencer has to say to people.
pub(crate) const LOG_FILE: &str = "fencer.log";
const INIT_FILE: &str = "init.json";
const LOCK_FILE: &str = "lock";

/// Which process the init is, as the host sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InitRecord {
    /// Pid on the host.
    pub(crate) pid: i32,
    /// Start time in clock ticks since boot: with the pid and the boot it names one process ever.
    pub(crate) start_ticks: u64,
    /// Boot of the machine.
    pub(crate) boot_id: String,
    /// Its own nonce.
    pub(crate) fencer: Nonce,
    /// What its end is worth.
    pub(crate) protection: Protection,
}

/// Makes the state directory if it is missing, for the owner alone.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Replaces `name` in `dir` by `bytes`, whole or not at all, and waits until the disk has it.
pub(crate) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let fresh = dir.join(format!("{name}.new"));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// Takes the lock of `dir`, for as long as the file lives; `None` if another process holds it.
pub(crate) fn lock(dir: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join(LOCK_FILE))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn write_init(dir: &Path, record: &InitRecord) -> io::Result<()> {
    replace(dir, INIT_FILE, &crate::wire::line(record))
}

/// The last init of `dir`; `None` if there never was one.
pub(crate) fn read_init(dir: &Path) -> io::Result<Option<InitRecord>> {
    match std::fs::read(dir.join(INIT_FILE)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl InitRecord {
    /// Whether this very process still exists. An init goes on existing until the last process of
    /// its namespace is gone, long after its files and locks are closed: so this, not the lock, is
    /// what proves an end.
    pub(crate) fn exists(&self) -> io::Result<bool> {
        if crate::clock::boot_id()? != self.boot_id {
            return Ok(false);
        }
        match stat(&self.pid.to_string()) {
            // A zombie is one whose namespace has ended: the kernel reports its end only after.
            Ok(stat) => Ok(stat.start_ticks == self.start_ticks && stat.state != 'Z'),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            // The process ended between opening and reading.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// What `/proc/<pid>/stat` says, with pids as the host sees them.
pub(crate) struct Stat {
    pub(crate) pid: i32,
    pub(crate) state: char,
    pub(crate) parent: i32,
    pub(crate) start_ticks: u64,
}

/// Reads one; `which` is a pid or `self`.
pub(crate) fn stat(which: &str) -> io::Result<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{which}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The name stands in brackets and may itself hold brackets and spaces, so count from the last one.
fn parse_stat(text: &str) -> Option<Stat> {
    let (front, back) = text.rsplit_once(") ")?;
    let mut fields = back.split(' ');
    Some(Stat {
        pid: front.split(' ').next()?.parse().ok()?,
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        // Field 22 of the file; two were taken here, two stand in front of the bracket.
        start_ticks: fields.nth(17)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_with_brackets_in_its_name_is_read_right() {
        let text = "77 (a) b) (c) S 5 77 77 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 2 3";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.pid, stat.state, stat.parent), (77, 'S', 5));
        assert_eq!(stat.start_ticks, 4242);
    }

    #[test]
    fn this_process_exists_and_another_start_of_its_pid_does_not() {
        let me = stat("self").unwrap();
        assert_eq!(u32::try_from(me.pid).unwrap(), std::process::id());
        let mut record = InitRecord {
            pid: me.pid,
            start_ticks: me.start_ticks,
            boot_id: crate::clock::boot_id().unwrap(),
            fencer: Nonce(1),
            protection: Protection::Namespace,
        };
        assert!(record.exists().unwrap());
        record.start_ticks += 1;
        assert!(!record.exists().unwrap());
    }
}
