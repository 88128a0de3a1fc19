//! The launch stage: makes the PID namespace if it may, starts the init in it, reports the init's
//! pid as the host sees it, and ends. The init is then nobody's child that could be taken down with
//! its agent.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::disk;
use crate::options::{Options, Stage};

/// Longest time the init may take to be ready: it reads one file and binds one socket.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(10);

/// What the launch stage prints, and the init before it: one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The init is ready; its pid on the host.
    Ready { pid: i32 },
    /// Another fencer lives on this state directory.
    AlreadyRunning,
    /// It could not begin.
    Failed { why: String },
}

/// Why there is no init.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A system call failed.
    #[error("{step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The init said why.
    #[error("the init did not begin: {0}")]
    Init(String),
}

/// Prints a report for whoever started this stage. A reader that is gone is no reason to end.
pub(crate) fn print(report: &Report) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(&crate::wire::line(report)).and_then(|()| out.flush());
}

pub(crate) fn run(options: &Options) -> Result<(), LaunchError> {
    let report = match start_init(options) {
        Ok(report) => report,
        Err(LaunchError::Step { step, source }) => {
            Report::Failed { why: format!("{step}: {source}") }
        }
        Err(error) => Report::Failed { why: error.to_string() },
    };
    print(&report);
    match report {
        Report::Ready { .. } => Ok(()),
        Report::AlreadyRunning => Err(LaunchError::Init("another one is running".into())),
        Report::Failed { why } => Err(LaunchError::Init(why)),
    }
}

fn start_init(options: &Options) -> Result<Report, LaunchError> {
    let step = |step| move |source| LaunchError::Step { step, source };
    disk::make_dir(&options.state_dir).map_err(step("state directory"))?;
    let mut init = options.at(Stage::Init);
    init.state_dir = options.state_dir.canonicalize().map_err(step("state directory"))?;
    if init.weak.is_none() {
        // From here on the next process this one starts is pid 1 of a new namespace.
        if let Err(error) = unshare(CloneFlags::CLONE_NEWPID) {
            init.weak = Some(format!("no PID namespace: {}", error.desc()));
        }
    }
    let mut log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(init.state_dir.join(disk::LOG_FILE))
        .map_err(step("log file"))?;
    if let Err(error) = cgroup::enter_own() {
        // Limits of the agent's hold for it and for the database together; no proof rests on that.
        let _ = writeln!(log, "no cgroup of its own: {error}");
    }
    let mut child = Command::new("/proc/self/exe")
        .arg0("regent")
        .args(init.args())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(step("start of the init"))?;
    let stdout = child.stdout.take().expect("it was asked for");
    let report = read_report(stdout, READY_WITHIN).map_err(step("report of the init"));
    if !matches!(report, Ok(Report::Ready { .. })) {
        // Nothing was started by it yet. Killed, for one that is stuck.
        let _ = child.kill();
        let _ = child.wait();
    }
    // The pid of fork, not the one it read of itself: that is what the host calls it.
    report.map(|report| match report {
        Report::Ready { .. } => Report::Ready { pid: i32::try_from(child.id()).unwrap_or(0) },
        other => other,
    })
}

/// One report from a stage, within `within`.
pub(crate) fn read_report(stdout: ChildStdout, within: Duration) -> io::Result<Report> {
    let timeout = crate::clock::timespec(u64::try_from(within.as_micros()).unwrap_or(u64::MAX));
    let mut ready = [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::IN)];
    if poll(&mut ready, Some(&timeout))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut line = String::new();
    // A report is one small write, so the whole line is there when its first byte is.
    BufReader::new(stdout.take(64 * 1024)).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}
