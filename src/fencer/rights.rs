//! What a stage gives away: capabilities, the user it runs as, and what it asks the kernel for so
//! that memory pressure or a debugger cannot stop it. The capability to make a namespace is used
//! once and is gone before the program starts (PROTOCOL.md E1).

use std::ffi::CString;
use std::io;

use nix::unistd::{User, initgroups, setgid, setuid};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities,
    clear_ambient_capability_set, set_capabilities, set_capabilities_secure_bits,
};

const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// Keeps only `keep` of the capabilities this process has, and hands on none.
pub(crate) fn keep_only(keep: CapabilitySet) -> io::Result<()> {
    clear_ambient_capability_set()?;
    let have = capabilities(None)?;
    let kept = have.permitted & keep;
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    Ok(())
}

/// What an init that runs as root must keep: it kills and starts processes of another user, and
/// reads and writes a state directory that may be that user's. An unprivileged init has none of
/// these and keeps none.
pub(crate) fn init_keeps() -> CapabilitySet {
    if nix::unistd::geteuid().is_root() {
        CapabilitySet::KILL
            | CapabilitySet::SETUID
            | CapabilitySet::SETGID
            | CapabilitySet::DAC_OVERRIDE
            // What is locked from now on counts against a limit without it: forks would fail.
            | CapabilitySet::IPC_LOCK
    } else {
        CapabilitySet::empty()
    }
}

/// Best effort, before the rights are given away: the fencer must run when all else is stuck. Kept in
/// memory only where the right to do so is unlimited: under a limit a later allocation would
/// fail, which is worse than a page fault. Not dumpable means not traceable by what it
/// starts, which may run as the same user. Gives the former `oom_score_adj`, which a child inherits
/// and [`soften`] gives back to it.
pub(crate) fn harden() -> Option<String> {
    let before = std::fs::read_to_string(OOM_SCORE_ADJ).ok();
    let _ = std::fs::write(OOM_SCORE_ADJ, "-1000");
    if capabilities(None).is_ok_and(|have| have.effective.contains(CapabilitySet::IPC_LOCK)) {
        let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE);
    }
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    before
}

/// Undoes for the program what [`harden`] did for the fencer and a child inherits.
pub(crate) fn soften(oom_score_adj: &str) {
    let _ = std::fs::write(OOM_SCORE_ADJ, oom_score_adj.trim());
}

/// Keeps no capability, now and after an exec. Exec gives all of them back to root unless it
/// is told not to; a program of another user is not told, since that would break its set-uid helpers.
pub(crate) fn keep_none() -> io::Result<()> {
    if nix::unistd::geteuid().is_root() {
        set_capabilities_secure_bits(
            CapabilitiesSecureBits::NO_ROOT | CapabilitiesSecureBits::NO_ROOT_LOCKED,
        )?;
    }
    keep_only(CapabilitySet::empty())
}

/// Becomes `name`, with its groups, and with no way back.
pub(crate) fn become_user(name: &str) -> io::Result<()> {
    let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("there is no user {name}"));
    let user = User::from_name(name).map_err(io::Error::from)?.ok_or_else(unknown)?;
    if user.uid == nix::unistd::geteuid() {
        return Ok(());
    }
    let c_name = CString::new(name).map_err(io::Error::other)?;
    initgroups(&c_name, user.gid)?;
    setgid(user.gid)?;
    setuid(user.uid)?;
    Ok(())
}
