//! Which processes are an instance's: its agent, fencer and PostgreSQL with all its backends.
//!
//! The agent was started by the lab; the others were not, and a file that names their pids may be
//! older than the pids. So they are recognised by what the kernel says of them: the program is the
//! lab's own or one of PostgreSQL's, and it works in the instance's directory or was started with
//! a path below it. A person's shell or editor in there is neither.

use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use super::LabInstance;
use crate::layout::Lab;
use crate::process::{Fault, Process};

/// All processes of an instance that live.
pub fn by(lab: &Lab, instance: &LabInstance) -> Vec<Process> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| if_of(lab, instance, pid))
        .collect()
}

/// Tells its servers to shut down at once; which they are. One that is killed leaves its shared memory in
/// the machine until the next start on its directory, and there may be none.
pub fn quit(lab: &Lab, instance: &LabInstance) -> Vec<Process> {
    let all = by(lab, instance);
    let servers: Vec<_> = all.iter().filter(|it| is_postmaster(it)).cloned().collect();
    for server in &servers {
        drop(server.signal(Fault::Quit));
    }
    // Who is frozen hears nothing else. Whatever cannot be told is killed next, and that tells why.
    for process in &all {
        drop(process.signal(Fault::Thaw));
    }
    servers
}

fn is_postmaster(process: &Process) -> bool {
    Seen::read(process.pid).is_some_and(|seen| {
        let program = seen.program.as_deref().and_then(Path::file_name);
        // Its children show what they do in the place of its arguments.
        program.is_some_and(|name| name == "postgres") && seen.words.iter().any(|word| word == "-D")
    })
}

/// The process with this pid, if it is the instance's.
pub fn if_of(lab: &Lab, instance: &LabInstance, pid: u32) -> Option<Process> {
    if pid == std::process::id() {
        return None;
    }
    // Named before it is looked at: what takes its pid over meanwhile is another process.
    let process = Process::identify(pid).ok().filter(Process::is_alive)?;
    let seen = Seen::read(pid)?;
    let bin_dir = lab.databases.as_ref().map(|databases| databases.bin_dir.as_path());
    seen.is_of(&instance.dir, &lab.binary, bin_dir).then_some(process)
}

/// What the kernel says of a process.
struct Seen {
    /// `None`: the fencer, which lets nobody look inside, is not shown to its own user either.
    program: Option<PathBuf>,
    works_in: PathBuf,
    words: Vec<PathBuf>,
}

impl Seen {
    fn read(pid: u32) -> Option<Self> {
        let program = fs::read_link(format!("/proc/{pid}/exe")).map(undeleted).ok();
        let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(Self {
            program,
            works_in: fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default(),
            words: words
                .split(|byte| *byte == 0)
                .map(|word| PathBuf::from(std::ffi::OsString::from_vec(word.to_vec())))
                .collect(),
        })
    }

    fn is_of(&self, dir: &Path, binary: &Path, bin_dir: Option<&Path>) -> bool {
        let ours = match &self.program {
            Some(program) => {
                let home = program.parent().unwrap_or(Path::new("/"));
                same(program, binary) || bin_dir.is_some_and(|bin| same(home, bin))
            }
            None => self.words.iter().any(|word| word == Path::new("fencer")),
        };
        // The directory itself as a word would be a person's `--dir`, one below is the agent's.
        let below = |path: &Path| path != dir && path.starts_with(dir);
        ours && (below(&self.works_in) || self.words.iter().any(|word| below(word)))
    }
}

/// The kernel marks a program whose file was replaced, as a build does.
fn undeleted(path: PathBuf) -> PathBuf {
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(name) => PathBuf::from(std::ffi::OsStr::from_bytes(name)),
        None => path,
    }
}

fn same(one: &Path, other: &Path) -> bool {
    one == other || fs::canonicalize(other).is_ok_and(|other| one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(program: &str, works_in: &str, words: &[&str]) -> bool {
        let seen = Seen {
            program: (!program.is_empty()).then(|| undeleted(program.into())),
            works_in: works_in.into(),
            words: words.iter().map(PathBuf::from).collect(),
        };
        let bin = Path::new("/usr/lib/postgresql/15/bin");
        seen.is_of(Path::new("/lab/pg1"), Path::new("/bin/regent"), Some(bin))
    }

    #[test]
    fn agent_fencer_and_backends_are_an_instances_own_and_nobody_else_is() {
        let postgres = "/usr/lib/postgresql/15/bin/postgres";
        let agent = ["regent", "agent", "--config", "/lab/pg1/agent.toml"];
        assert!(seen("/bin/regent", "/lab", &agent));
        assert!(seen("/bin/regent (deleted)", "/lab", &agent), "a build replaced the file");
        assert!(seen("/bin/regent", "/", &["regent", "init", "--state-dir", "/lab/pg1/agent"]));
        let fencer = ["regent", "fencer", "init", "--state-dir", "/lab/pg1/agent/fencer"];
        assert!(seen("", "", &fencer), "its program is hidden from an ordinary user");
        assert!(!seen("", "", &["vi", "/lab/pg1/agent.toml"]), "a stranger's may be hidden, too");
        assert!(seen(postgres, "/lab/pg1/data", &["postgres: walsender"]));
        assert!(!seen(postgres, "/lab/pg10/data", &["postgres"]), "another instance");
        assert!(!seen("/usr/bin/tail", "/lab/pg1/data", &["tail", "/lab/pg1/agent.log"]));
        assert!(!seen("/bin/regent", "/lab", &["regent", "lab", "down", "--dir", "/lab"]));
    }
}
