//! regent-fencer: the small process that PostgreSQL cannot outlive (PROTOCOL.md E1, E2).
//!
//! ```text
//!  agent ──starts──> launch ──unshare(CLONE_NEWPID), fork──> init = pid 1 of a new PID namespace
//!    │                 └ reports init's outside pid, ends        │ unix socket, receipt
//!    └──────────── Fencer: status, arm, start, stop ────────────>│
//!                                                                └─> exec ──> postgres ─> backends
//! ```
//!
//! Three stages of one program ([`options::Stage`]): *launch* uses the capability once, *init* is
//! the fencer proper, *exec* gives away every right and becomes the program. The agent's side is
//! [`Fencer`], a small blocking client.
//!
//! What holds, and where it is checked:
//! - F1 At the earlier of its two clocks' deadlines the init kills everything, with no agent needed.
//! - F2 A deadline only rises inside an epoch and never revives one that fired ([`lease`]).
//! - F3 A receipt is on disk, fsynced, before anybody is told of it ([`receipt`]).
//! - F4 The end of init is the end of all it started: the kernel ends a PID namespace with its
//!   pid 1. Without the namespace this does not hold: [`wire::Protection::Weak`] says so.
//! - F5 Only the newest agent commands; nothing that runs inside the namespace may ([`wire`]).
//! - F6 "No process" is a proof, not a guess: as pid 1, `kill(-1)` finds nobody and `waitpid` says
//!   that there is no child ([`receipt::Proof`]).
//!
//! Only the PID namespace is new: IPC, mount, network and user namespaces stay the host's, so that a
//! second start of the same directory still meets the shared memory of the first. `/proc` is the
//! host's too: a pid known inside must never be looked up there.
//!
//! What packaging must do: the agent may run as the owner of the data directory with the one ambient
//! capability CAP_SYS_ADMIN, and its unit must not end what it left behind (`KillMode=process`): with
//! systemd's default the stop of the agent's unit would be the end of PostgreSQL. Whatever runs as
//! the fencer's own user can write its state directory, as it can the data directory: a receipt is a
//! proof against failures, not against that user.
//!
//! Absent on purpose: tokio (a runtime's threads and allocations have no place in the process that
//! must run when all else is stuck), kills by a cgroup (the namespace already ends what forks away),
//! and any knowledge of PostgreSQL beyond three signals.

pub mod client;
pub mod clock;
pub mod lease;
pub mod options;
pub mod receipt;
pub mod twofold;
pub mod wire;

mod cgroup;
mod descendants;
mod disk;
mod exec;
mod init;
mod launch;
mod rights;
mod watchdog;

use std::process::ExitCode;

pub use client::{ClientError, Events, Fencer, LaunchOptions};
pub use exec::ExecError;
pub use init::InitError;
pub use launch::LaunchError;
pub use options::{Options, OptionsError, Stage};
pub use receipt::{Receipt, last_receipt};
pub use wire::{AgentId, Arm, Protection, StartCommand, Status};

/// Why a stage of the fencer could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The init could not be started, or did not report that it is ready.
    #[error("the fencer cannot be launched")]
    Launch(#[from] LaunchError),
    /// The init could not begin, or its loop ended.
    #[error("the fencer cannot run")]
    Init(#[from] InitError),
    /// The program could not be started.
    #[error("the program cannot be started")]
    Exec(#[from] ExecError),
}

/// Runs one stage. `launch` returns when the init reported; `init` when it was told to quit with
/// nothing running; `exec` only if it failed.
///
/// # Errors
/// [`RunError`]; the launch and exec stages have then already told their reader on stdout.
pub fn run(options: &Options) -> Result<ExitCode, RunError> {
    match options.stage {
        Stage::Launch => launch::run(options)?,
        Stage::Init => init::run(options)?,
        Stage::Exec => exec::run(options)?,
    }
    Ok(ExitCode::SUCCESS)
}
