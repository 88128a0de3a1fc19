//! What the init does to processes: start one, reap all, kill all, and know when nobody is left.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};

use crate::descendants;
use crate::disk;
use crate::exec::Handover;
use crate::options::{Options, Stage};
use crate::receipt::ExitStatus;
use crate::rights;
use crate::wire::{Protection, StartCommand};

/// Longest time the init waits to hear that the exec worked. It answers nobody meanwhile, so this
/// stays below every fence budget; an exec takes a few milliseconds. Later failures are seen as an
/// exit with code 127 or 1.
const EXEC_WITHIN_US: u64 = 150_000;

/// The right to kill everything, with the check that "everything" is this fencer's own.
#[derive(Clone, Debug)]
pub(super) struct Processes {
    protection: Protection,
    /// What the program gets back of what the fencer changed for itself.
    oom_score_adj: Option<String>,
}

/// What one round of reaping found.
#[derive(Debug, Default)]
pub(super) struct Reaped {
    pub(super) exits: Vec<(Pid, ExitStatus)>,
    /// No child is left, dead or alive.
    pub(super) none_left: bool,
}

impl Processes {
    /// Finds out whether this process is pid 1 of a PID namespace that is its own and still empty.
    /// `kill(-1)` anywhere else would end the machine, so three things must hold at once.
    ///
    /// Hardens this process too, so that what it starts can be given back what it had before.
    pub(super) fn new(weak: Option<&str>) -> io::Result<Self> {
        let reason = match weak {
            Some(reason) => Some(reason.to_owned()),
            None => not_alone()?,
        };
        let protection = match reason {
            None => Protection::Namespace,
            Some(reason) => {
                let own = nix::unistd::getpid().as_raw();
                if own == 1 || disk::stat("self")?.pid != own {
                    // Descendants are found and killed by their numbers in /proc: as pid 1, or with
                    // a /proc of another namespace, those would be somebody else's.
                    return Err(io::Error::other(format!("{reason}, and pids are not its own")));
                }
                // Orphans of the program then become children of this process, so that they can be
                // found, and their end be waited for.
                rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
                Protection::Weak { reason }
            }
        };
        Ok(Self { protection, oom_score_adj: rights::harden() })
    }

    pub(super) fn protection(&self) -> &Protection {
        &self.protection
    }

    /// Starts the program through the exec stage. Gives its pid as seen in here.
    pub(super) fn spawn(
        &self,
        options: &Options,
        command: StartCommand,
        left_us: u64,
    ) -> Result<Pid, String> {
        let mut stage = options.at(Stage::Exec);
        if let Protection::Weak { reason } = &self.protection {
            stage.weak = Some(reason.clone());
        }
        let mut child = Command::new("/proc/self/exe")
            .arg0("regent")
            .args(stage.args())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("fork: {e}"))?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(|e| e.to_string())?);
        let mut stdin = child.stdin.take().expect("it was asked for");
        // Fits the pipe, so it does not block; see MAX_LINE_BYTES.
        let handover = Handover { command, oom_score_adj: self.oom_score_adj.clone() };
        let written = stdin.write_all(&crate::wire::line(&handover));
        drop(stdin);
        let mut stdout = child.stdout.take().expect("it was asked for");
        let mut ready = [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::IN)];
        let timeout = crate::clock::timespec(EXEC_WITHIN_US.min(left_us));
        if poll(&mut ready, Some(&timeout)).unwrap_or(0) == 0 {
            return Ok(pid);
        }
        let mut why = String::new();
        // One small write or the end of the file: both are there now.
        let mut bytes = [0; 512];
        if let Ok(count) = stdout.read(&mut bytes) {
            why.push_str(String::from_utf8_lossy(&bytes[..count]).trim());
        }
        match (why.is_empty(), written) {
            (true, Ok(())) => Ok(pid),
            (true, Err(e)) => Err(format!("exec stage: {e}")),
            (false, _) => Err(why),
        }
    }

    /// Reaps whatever ended, orphans too, without waiting.
    pub(super) fn reap(&self) -> Reaped {
        let mut reaped = Reaped::default();
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => {
                    reaped.exits.push((pid, ExitStatus::Code(code)));
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    reaped.exits.push((pid, ExitStatus::Signal(signal as i32)));
                }
                Ok(WaitStatus::StillAlive) => return reaped,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => {
                    reaped.none_left = true;
                    return reaped;
                }
            }
        }
    }

    /// Kills everybody once; `true` if there was nobody. Call until then, reaping in between.
    pub(super) fn kill_all(&self) -> bool {
        match self.protection {
            // To the kernel, -1 is everybody in the caller's namespace but the caller.
            Protection::Namespace => kill(Pid::from_raw(-1), Signal::SIGKILL) == Err(Errno::ESRCH),
            Protection::Weak { .. } => {
                let found = descendants::kill_once(nix::unistd::getpid().as_raw());
                found.is_ok_and(|found| found.is_empty())
            }
        }
    }
}

/// Why this is not the fresh namespace of its own that a fencer needs; `None` if it is.
fn not_alone() -> io::Result<Option<String>> {
    if nix::unistd::getpid().as_raw() != 1 {
        return Ok(Some("not pid 1".into()));
    }
    // Read through the host's /proc: one pid for each namespace from the host's down to this one. A
    // single one means that this is the init of the machine or of a container.
    let status = std::fs::read_to_string("/proc/self/status")?;
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let pids: Vec<&str> = pids.split_whitespace().collect();
    if pids.len() < 2 || pids.last() != Some(&"1") {
        return Ok(Some("pid 1 of a namespace that was not made for it".into()));
    }
    match kill(Pid::from_raw(-1), None) {
        Err(Errno::ESRCH) => Ok(None),
        _ => Ok(Some("other processes are in its namespace".into())),
    }
}

/// The host's pid of this process, and its start.
pub(super) fn own_stat() -> io::Result<disk::Stat> {
    disk::stat("self")
}
