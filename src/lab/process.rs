//! A process of the lab, known by more than its number, so that a recycled pid is never signalled.
//!
//! A pid alone names whoever has it now. Together with the kernel's boot id and the start time in
//! `/proc/<pid>/stat` it names one process for ever. A signal goes through a pidfd that was opened
//! *before* the start time was compared: between the comparison and the signal the process can end,
//! but nobody else can take its place.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// One process, named for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/<pid>/stat`).
    pub start_ticks: u64,
    /// Which boot of the machine.
    pub boot_id: String,
}

/// What a process is doing, as far as the lab cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// It runs or waits.
    Running,
    /// It was stopped by a signal (SIGSTOP) and does nothing.
    Frozen,
    /// It is gone with all its threads, or a zombie that nobody collected.
    Dead,
}

/// Signals that the lab sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGTERM: drain and end.
    Terminate,
    /// SIGKILL: end at once.
    Kill,
    /// SIGSTOP: freeze; connections stay open.
    Freeze,
    /// SIGCONT: go on.
    Thaw,
    /// SIGQUIT: an immediate shutdown of PostgreSQL, which cleans up behind itself.
    Quit,
}

impl Process {
    /// Names the process that has `pid` now.
    ///
    /// # Errors
    /// There is none, or `/proc` cannot be read.
    pub fn identify(pid: u32) -> io::Result<Self> {
        let stat = read_stat(pid)?;
        Ok(Self { pid, start_ticks: stat.start_ticks, boot_id: boot_id()? })
    }

    /// What it is doing.
    pub fn life(&self) -> Life {
        let Ok(stat) = read_stat(self.pid) else { return Life::Dead };
        if stat.start_ticks != self.start_ticks || boot_id().ok().as_ref() != Some(&self.boot_id) {
            return Life::Dead;
        }
        match stat.state {
            // A leader of a thread group is a zombie as soon as it has ended itself. Threads that
            // still end hold its files: its ports and its lock on the data directory.
            'Z' if stat.threads > 1 => Life::Running,
            'Z' | 'X' | 'x' => Life::Dead,
            'T' | 't' => Life::Frozen,
            _ => Life::Running,
        }
    }

    /// Whether it is there at all, frozen or not.
    pub fn is_alive(&self) -> bool {
        self.life() != Life::Dead
    }

    /// Sends a signal to exactly this process. `Ok(false)`: it was gone already.
    ///
    /// # Errors
    /// The system refused (not our process).
    pub fn signal(&self, fault: Fault) -> io::Result<bool> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(false);
        };
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if !self.is_alive() {
            return Ok(false);
        }
        let signal = match fault {
            Fault::Terminate => Signal::TERM,
            Fault::Kill => Signal::KILL,
            Fault::Freeze => Signal::STOP,
            Fault::Thaw => Signal::CONT,
            Fault::Quit => Signal::QUIT,
        };
        match pidfd_send_signal(&descriptor, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks it to end (thawing it first, for a frozen process hears nothing but SIGKILL), and kills
    /// it when it has not ended after `grace`. Returns once it is gone.
    ///
    /// # Errors
    /// The system refused a signal, or the process survived SIGKILL for five seconds (it hangs in
    /// the kernel).
    pub async fn end(&self, grace: Duration) -> io::Result<()> {
        // In this order: a thaw before SIGTERM would let the process act first.
        self.signal(Fault::Terminate)?;
        self.signal(Fault::Thaw)?;
        if self.wait_gone(grace).await {
            return Ok(());
        }
        self.signal(Fault::Kill)?;
        if self.wait_gone(Duration::from_secs(5)).await {
            return Ok(());
        }
        let text = format!("process {} survived SIGKILL: it hangs in the kernel", self.pid);
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    }

    /// Waits until it is gone, at most `within`.
    pub async fn wait_gone(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    /// Memory and processor time used so far; `None` when it is gone.
    pub fn usage(&self) -> Option<Usage> {
        if !self.is_alive() {
            return None;
        }
        let stat = read_stat(self.pid).ok()?;
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let rss_kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())?;
        Some(Usage { rss_kib, cpu_ms: stat.cpu_ticks * 1_000 / TICKS_PER_SECOND })
    }
}

/// What a process has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// User and system time since its start, in milliseconds.
    pub cpu_ms: u64,
}

/// USER_HZ: 100 on every Linux that Regent runs on; part of the kernel's promise to user space.
const TICKS_PER_SECOND: u64 = 100;

struct Stat {
    state: char,
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
}

fn read_stat(pid: u32) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "unknown form of /proc/<pid>/stat")
    })
}

/// The name (field 2) may hold spaces and brackets; everything after the *last* bracket is numbers.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // `fields[0]` is field 3 of proc(5): utime and stime are 14 and 15, num_threads is 20,
    // starttime is 22.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        cpu_ticks: number(14)? + number(15)?,
        threads: number(20)?,
        start_ticks: number(22)?,
    })
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().expect("sleep exists")
    }

    #[test]
    fn a_process_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4 0 0 0 0 11 22 0 0 20 0 1 0 333 0 0";
        let stat = parse_stat(text).expect("the form of proc(5)");
        assert_eq!((stat.state, stat.cpu_ticks, stat.start_ticks), ('S', 33, 333));
        assert!(parse_stat("").is_none());
    }

    #[tokio::test]
    async fn a_frozen_process_is_ended_too() {
        let mut child = sleeper();
        let process = Process::identify(child.id()).expect("it runs");
        assert_eq!(process.signal(Fault::Freeze).ok(), Some(true));
        let deadline = Instant::now() + Duration::from_secs(5);
        while process.life() != Life::Frozen && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(process.life(), Life::Frozen);
        // The zombie is collected by nobody yet, and must still count as gone.
        process.end(Duration::from_secs(5)).await.expect("it ends");
        assert_eq!(process.life(), Life::Dead);
        child.wait().expect("collected");
    }

    #[test]
    fn a_process_whose_first_thread_has_ended_is_alive_while_another_one_runs() {
        // The number of exit(2), which ends one thread, where Linux runs on these.
        let number = if cfg!(target_arch = "x86_64") { 60 } else { 93 };
        let program = format!(
            "import ctypes, threading, time\n\
             threading.Thread(target=lambda: time.sleep(60)).start()\n\
             ctypes.CDLL(None).syscall({number}, 0)"
        );
        let mut child = Command::new("python3")
            .args(["-c", &program])
            .stdin(Stdio::null())
            .spawn()
            .expect("python3 exists");
        let process = Process::identify(child.id()).expect("it runs");
        let deadline = Instant::now() + Duration::from_secs(10);
        while read_stat(child.id()).is_ok_and(|stat| stat.state != 'Z') {
            assert!(Instant::now() < deadline, "its first thread does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(process.life(), Life::Running, "its files are open still");
        child.kill().expect("ours");
        child.wait().expect("collected");
        assert_eq!(process.life(), Life::Dead);
    }

    #[test]
    fn a_process_that_took_over_the_pid_is_never_signalled() {
        let mut child = sleeper();
        let real = Process::identify(child.id()).expect("it runs");
        let former = Process { start_ticks: real.start_ticks - 1, ..real.clone() };
        let other_boot = Process { boot_id: "another".into(), ..real.clone() };
        for stranger in [former, other_boot] {
            assert_eq!(stranger.life(), Life::Dead);
            assert_eq!(stranger.signal(Fault::Kill).ok(), Some(false));
        }
        assert_eq!(real.life(), Life::Running, "the innocent one lives");
        child.kill().expect("ours");
        child.wait().expect("collected");
    }
}
