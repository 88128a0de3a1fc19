//! Network namespaces of this machine: running something in one, and the programs that make them.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};

use super::{NetworkError, system};

/// Where `ip netns` keeps names.
const NAMES: &str = "/run/netns";
/// Where Debian puts what only administrators run; not on everybody's PATH.
const ADMIN: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Runs `work` on a thread that is in the namespace: sockets and processes that it makes stay there.
/// Without a name it just runs.
///
/// # Errors
/// There is no such namespace, or it may not be entered.
pub fn within<T: Send>(name: Option<&str>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let Some(name) = name else { return Ok(work()) };
    let space = File::open(Path::new(NAMES).join(name))?;
    // A thread of its own: this one must not be in there afterwards, whatever happens.
    let done = std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            setns(&space, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        });
        inside.join()
    });
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// All names that there are.
pub(super) fn all() -> io::Result<Vec<String>> {
    match fs::read_dir(NAMES) {
        Ok(entries) => {
            entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        }
        // Nobody ever made one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Where a program is.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path);
    let all = on_path.chain(ADMIN.iter().map(PathBuf::from));
    all.map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Runs `ip` with a line for each command, in a namespace or in the caller's.
pub(super) fn ip(what: &str, space: Option<&str>, lines: &str) -> Result<(), NetworkError> {
    run(what, space, "ip", &["-batch", "-"], lines).map(|_| ())
}

/// What `ip` says to one command, in the caller's namespace.
pub(super) fn said(what: &str, words: &[&str]) -> Result<String, NetworkError> {
    run(what, None, "ip", words, "")
}

/// Runs `nft` in a namespace with the commands of a script.
pub(super) fn nft(what: &str, space: &str, script: &str) -> Result<String, NetworkError> {
    run(what, Some(space), "nft", &["-n", "-f", "-"], script)
}

fn run(
    what: &str,
    space: Option<&str>,
    name: &'static str,
    words: &[&str],
    input: &str,
) -> Result<String, NetworkError> {
    let path = program(name).ok_or(NetworkError::NoProgram { program: name, package: name })?;
    let call = || {
        let mut child = Command::new(path)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // Closed at the end of the statement: the program waits for the end of its input. One that
        // refuses does not read all of it, and says why itself.
        let written =
            child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
        written.or_else(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(error),
        })?;
        child.wait_with_output()
    };
    let output =
        within(space, call).and_then(|done| done).map_err(|source| system(what, source))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " | ");
    Err(NetworkError::Refused { what: what.to_owned(), said })
}
