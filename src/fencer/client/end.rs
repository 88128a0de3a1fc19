//! The end of a fencer that does not answer, or is gone. In a namespace: SIGKILL to pid 1 through its
//! pidfd, which ends every process in it, frozen ones too; the kernel reports pid 1's own end only
//! after all of theirs, so that seen end is the proof (PROTOCOL.md E1).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use regent_core::id::Nonce;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, pidfd_send_signal};

use crate::disk::InitRecord;
use crate::receipt::{self, Proof, Reason, Receipt, ReceiptError};
use crate::wire::{Protection, Status};
use crate::{clock, descendants, disk};

/// Pause between two rounds of the weak way, or two looks at an end.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Why it is not known that everything ended.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The signal could not be sent.
    #[error("the init could not be killed")]
    Signal(#[source] io::Error),
    /// Its end was not seen in time: a process hangs in the kernel. Wait again.
    #[error("the end was not seen within {0:?}")]
    NotSeen(Duration),
    /// A file of the state directory could not be read or written.
    #[error("the state directory cannot be used")]
    State(#[source] io::Error),
    /// The last receipt is damaged.
    #[error("the last receipt cannot be used")]
    Receipt(#[from] ReceiptError),
    /// No init ever ran there.
    #[error("no fencer ever ran on this state directory")]
    NoRecord,
}

/// Waits until the process behind `pidfd` has ended; `false` if it had not within `within`.
pub(super) fn ended(pidfd: &OwnedFd, within: Duration) -> io::Result<bool> {
    let until = Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = clock::timespec(u64::try_from(left.as_micros()).unwrap_or(u64::MAX));
        let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Kills, waits, and leaves the receipt that the fencer could not write itself.
pub(super) fn kill(
    state_dir: &Path,
    pid: i32,
    pidfd: &OwnedFd,
    seen: Option<&Status>,
    within: Duration,
) -> Result<Receipt, EndError> {
    let killed_at = clock::now();
    let record = disk::read_init(state_dir).map_err(EndError::State)?.ok_or(EndError::NoRecord)?;
    let until = Instant::now() + within;
    let mut killed = Vec::new();
    if record.protection != Protection::Namespace {
        // While the init lives, frozen or not, it is the parent that orphans are given to; once it
        // is gone they cannot be found. Frozen here, so that it starts nothing more meanwhile.
        let _ = pidfd_send_signal(pidfd, Signal::STOP);
        loop {
            let found = descendants::kill_once(pid).map_err(EndError::State)?;
            if found.is_empty() {
                break;
            }
            killed.extend(found);
            if Instant::now() > until {
                return Err(EndError::NotSeen(within));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(EndError::Signal(error.into())),
    }
    let left = until.saturating_duration_since(Instant::now());
    if !ended(pidfd, left).map_err(EndError::State)? {
        return Err(EndError::NotSeen(within));
    }
    // Nobody reaped them while their parent was frozen, and PostgreSQL takes the number of a zombie
    // in its lock file for a server that runs. They do nothing, so that waiting is a courtesy.
    let zombie = |pid: &i32| disk::stat(&pid.to_string()).is_ok_and(|stat| stat.state == 'Z');
    while killed.iter().any(zombie) && Instant::now() < until {
        std::thread::sleep(LOOK_AGAIN);
    }
    settle(state_dir, &record, seen, killed_at)
}

/// Writes the receipt of an end that was seen from outside, unless the fencer wrote one for it.
fn settle(
    state_dir: &Path,
    record: &InitRecord,
    seen: Option<&Status>,
    killed_at: regent_core::time::Reading,
) -> Result<Receipt, EndError> {
    let last = receipt::last_receipt(state_dir)?;
    let seen = seen.filter(|seen| seen.fencer == record.fencer);
    let (epoch, number) = seen.map_or_else(
        || last.as_ref().map(|last| (last.epoch, last.number)).unwrap_or_default(),
        |seen| (seen.lease.epoch, seen.lease.number),
    );
    let proof = match record.protection {
        Protection::Namespace => Proof::Namespace,
        Protection::Weak { .. } => Proof::Weak,
    };
    let receipt = Receipt {
        sequence: last.as_ref().map_or(0, |last| last.sequence) + 1,
        boot_id: record.boot_id.clone(),
        fencer: record.fencer,
        epoch,
        number,
        reason: Reason::NamespaceKilled,
        exit: None,
        protection: record.protection.clone(),
        proof,
        started_at: seen.and_then(|seen| seen.running).map(|running| running.since),
        killed_at,
        ended_at: clock::now(),
    };
    receipt::write(state_dir, &receipt).map_err(EndError::State)?;
    Ok(receipt)
}

/// What is known of a fencer that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Its nonce.
    pub fencer: Nonce,
    /// What its end proves about all it started.
    pub proof: Proof,
    /// The last receipt of this state directory, of this fencer or one before.
    pub receipt: Option<Receipt>,
}

/// Waits until the last init of `state_dir` has ended, whoever ended it. For a successor that finds
/// nobody at the socket: a closed socket or a free lock proves nothing yet, since an init closes its
/// files before its namespace ends.
///
/// What it had no time to say is written down for it then: the receipt of a run before it, which may
/// have been armed where it was weak, must not pass for its own.
///
/// # Errors
/// [`EndError::NotSeen`] if it still exists after `within`; [`EndError::NoRecord`] if none ever was.
pub fn await_end(state_dir: &Path, within: Duration) -> Result<Gone, EndError> {
    let record = disk::read_init(state_dir).map_err(EndError::State)?.ok_or(EndError::NoRecord)?;
    let until = Instant::now() + within;
    while record.exists().map_err(EndError::State)? {
        if Instant::now() >= until {
            return Err(EndError::NotSeen(within));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    let rebooted = clock::boot_id().map_err(EndError::State)? != record.boot_id;
    let proof = match record.protection {
        Protection::Weak { .. } if !rebooted => Proof::Weak,
        // Nothing outlives a reboot either.
        _ => Proof::Namespace,
    };
    let last = receipt::last_receipt(state_dir)?;
    let said = |it: &Receipt| it.fencer == record.fencer && !matches!(it.proof, Proof::EndOfInit);
    let receipt = match last {
        // Of another boot nothing is said here: its clocks are over.
        last if rebooted || last.as_ref().is_some_and(said) => last,
        _ => Some(settle(state_dir, &record, None, clock::now())?),
    };
    Ok(Gone { fencer: record.fencer, proof, receipt })
}

/// What `pid` is called in the innermost namespace it lives in.
pub(super) fn inside_pid(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    pids.split_whitespace().last()?.parse().ok()
}
