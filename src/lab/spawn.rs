//! Starting processes that outlive this program, and reading what they said last.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::process::Process;

/// How many lines of a log an error message quotes.
const QUOTED: usize = 5;

/// Starts `binary`, with its output appended to `log`, and names the process.
///
/// # Errors
/// The system's; a program that does not exist is found out by the shell, in `log`.
pub fn detached(binary: &Path, words: &[OsString], home: &Path, log: &Path) -> io::Result<Process> {
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    let errors = log.try_clone()?;
    // Through a shell, which closes what this program may have inherited from its own caller (a
    // test's pipe, a build tool's): a server that outlives us must not hold it open. Everything
    // that Regent itself opens is closed on exec. The shell replaces itself: the pid stays.
    let child = Command::new("/bin/sh")
        .arg("-c")
        .arg("exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; exec \"$0\" \"$@\"")
        .arg(binary)
        .args(words)
        .current_dir(home)
        // Settings for a client must not reach a server.
        .env_remove("REGENT_CONFIG")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        // Its own group: Ctrl-C at our terminal is not meant for it.
        .process_group(0)
        .spawn()?;
    Process::identify(child.id())
}

/// The end of a log, for an error message.
pub fn last_words(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.unwrap_or_default();
    let lines: Vec<&str> =
        text.lines().rev().filter(|line| !line.trim().is_empty()).take(QUOTED).collect();
    if lines.is_empty() {
        return format!("it said nothing ({})", log.display());
    }
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
