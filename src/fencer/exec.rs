//! The exec stage: a fresh process that gives away every right of the fencer and then becomes the
//! program. It exists because all of this must happen between fork and exec, which safe code can only
//! do in a program of its own.
//!
//! Its stdin brings the command, its stdout is the way back: closed by a successful exec, or one line
//! that says why there was none.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use rustix::process::{Signal, getppid, set_parent_process_death_signal, setsid};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::options::Options;
use crate::rights;
use crate::wire::StartCommand;

/// What the init hands over on stdin.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Handover {
    pub(crate) command: StartCommand,
    /// The value the fencer found for itself, to be set again.
    pub(crate) oom_score_adj: Option<String>,
}

/// Why the program was not started.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// What came on stdin is not a command.
    #[error("no start command on stdin")]
    Command(#[source] io::Error),
    /// A step before the exec failed, or the exec itself.
    #[error("{step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Becomes the program; comes back only with the reason why not.
pub(crate) fn run(options: &Options) -> Result<(), ExecError> {
    let mut back = io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map(std::fs::File::from)
        .map_err(|source| ExecError::Step { step: "way back", source })?;
    let Err(error) = try_run(options) else { return Ok(()) };
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    // Nobody listens any more if the init had no time to wait for it; the exit code tells.
    let _ = writeln!(back, "{error}: {source}");
    Err(error)
}

fn try_run(options: &Options) -> Result<(), ExecError> {
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text).map_err(ExecError::Command)?;
    let Handover { command, oom_score_adj } =
        serde_json::from_slice(&text).map_err(|e| ExecError::Command(e.into()))?;
    let step = |step| move |source| ExecError::Step { step, source };
    if let Some(value) = oom_score_adj {
        rights::soften(&value);
    }
    // Before the rights are given away. Where it cannot be, it stays with the fencer.
    let _ = cgroup::enter_database();
    setsid().map_err(|e| step("own session")(e.into()))?;
    if let Some(user) = &options.user {
        rights::become_user(user).map_err(step("change of user"))?;
    }
    rights::keep_none().map_err(step("giving up capabilities"))?;
    if options.weak.is_some() {
        die_with_parent().map_err(step("death signal"))?;
    }
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .open(OsString::from(&command.log))
        .map_err(step("log file"))?;
    let null = std::fs::File::open("/dev/null").map_err(step("/dev/null"))?;
    let mut program = Command::new(OsString::from(&command.program));
    program
        .args(command.args.iter().map(OsString::from))
        .env_clear()
        .envs(command.env.iter().map(|(k, v)| (OsString::from(k), OsString::from(v))))
        .current_dir(OsString::from(&command.dir))
        .stdin(null)
        .stdout(log.try_clone().map_err(step("log file"))?)
        .stderr(log);
    hear_all().map_err(step("signals"))?;
    // The init blocks all signals and a mask outlives exec.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .map_err(|e| step("signal mask")(e.into()))?;
    Err(step("exec")(program.exec()))
}

/// What was started in the background, or by `nohup`, ignores signals, and an exec keeps that. It
/// does not keep a handler: what has one is at its default again.
fn hear_all() -> io::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let handler = Arc::new(AtomicBool::new(false));
    // Those that may have no handler are none of the signals that tell a program anything.
    let may = |signal: &i32| !signal_hook::consts::FORBIDDEN.contains(signal);
    for signal in (1..32).filter(may).filter(|signal| ignored & 1 << (signal - 1) != 0) {
        signal_hook::flag::register(signal, Arc::clone(&handler))?;
    }
    Ok(())
}

/// Without a namespace, at least the program itself ends with the init. Not enough: cleared in what
/// it forks, so busy backends go on.
fn die_with_parent() -> io::Result<()> {
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != parent || parent.is_none_or(|p| p.as_raw_nonzero().get() == 1) {
        return Err(io::Error::other("the fencer is gone"));
    }
    Ok(())
}
