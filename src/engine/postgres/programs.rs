//! The server's programs: where they are, and running one of them to its end.
//!
//! Never the server itself as a server: the fencer starts that. Arguments hold no secret; a program
//! that needs a password gets the path of the passfile.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio::task::JoinSet;

use crate::error::DiskError;

const NEEDED: [&str; 6] =
    ["postgres", "initdb", "pg_controldata", "pg_waldump", "pg_rewind", "pg_basebackup"];
/// Where packages put them, newest version first; `{}` is the major version.
const PLACES: [&str; 3] =
    ["/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin", "/opt/postgresql/{}/bin"];
const OLDEST: u32 = 13;
const NEWEST: u32 = 18;
/// Asking a program for its version, or for the control file, takes milliseconds.
pub(super) const SHORT: Duration = Duration::from_secs(10);
/// How much of what a failed program said goes into the error.
const LAST_LINES: usize = 6;
/// Most output kept of a program that is read as a whole.
const MAX_OUTPUT: u64 = 1 << 20;

/// The programs of one version, and as whom they run.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Their directory.
    pub bin: PathBuf,
    /// Major version.
    pub version: u32,
    /// User and group to become first, when this process is root.
    pub owner: Option<(u32, u32)>,
}

/// What a program said and how it ended.
pub(super) struct Ended {
    pub ok: bool,
    pub status: String,
    pub out: String,
    pub err: String,
}

impl Ended {
    pub(super) fn failure(&self, program: &str) -> DiskError {
        let said = if self.err.trim().is_empty() { &self.out } else { &self.err };
        // A server in single mode repeats the statement that failed; it may hold a verifier.
        let lines: Vec<_> = said
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.contains("STATEMENT:") && !l.contains("SCRAM-"))
            .collect();
        DiskError::Program {
            program: program.to_owned(),
            status: self.status.clone(),
            last_lines: lines[lines.len().saturating_sub(LAST_LINES)..].join(" | "),
        }
    }
}

fn version_of(bin: &Path) -> Result<u32, DiskError> {
    let program = bin.join("postgres");
    let said = std::process::Command::new(&program)
        .arg("--version")
        .env("LC_ALL", "C")
        .output()
        .map_err(|source| DiskError::Io { what: "run", path: program.clone(), source })?;
    let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    let number = said.rsplit_once("(PostgreSQL) ").map_or(said.as_str(), |(_, rest)| rest);
    let major: String = number.chars().take_while(char::is_ascii_digit).collect();
    match major.parse() {
        Ok(version) if (OLDEST..=NEWEST).contains(&version) => Ok(version),
        _ => Err(DiskError::Version(said)),
    }
}

impl Programs {
    /// Finds them: in `bin_dir` when given, else of the version `wanted` when the data has one, else
    /// the first on PATH, else the newest in the places that packages use.
    ///
    /// # Errors
    /// Names what is missing and where it was looked for.
    pub fn find(
        bin_dir: Option<&Path>,
        wanted: Option<u32>,
        run_as: Option<&str>,
    ) -> Result<Self, DiskError> {
        let places: Vec<PathBuf> = match bin_dir {
            Some(dir) => vec![dir.to_owned()],
            None => {
                let packaged = (OLDEST..=NEWEST).rev().flat_map(|v| {
                    PLACES.iter().map(move |p| PathBuf::from(p.replace("{}", &v.to_string())))
                });
                let path = std::env::var_os("PATH").unwrap_or_default();
                // A link on PATH leads to one directory that has all of them.
                std::env::split_paths(&path)
                    .filter_map(|dir| dir.join("postgres").canonicalize().ok())
                    .filter_map(|program| program.parent().map(Path::to_owned))
                    .chain(packaged)
                    .collect()
            }
        };
        let mut other = None;
        for bin in places.iter().filter(|bin| bin.join("postgres").is_file()) {
            let version = version_of(bin)?;
            if wanted.is_some_and(|wanted| wanted != version) {
                other = other.or(Some((version, bin.clone())));
                continue;
            }
            if let Some(missing) = NEEDED.iter().find(|p| !bin.join(p).is_file()) {
                return Err(DiskError::NoProgram {
                    program: (*missing).to_owned(),
                    places: vec![bin.display().to_string()],
                });
            }
            return Ok(Self { bin: bin.clone(), version, owner: owner(run_as)? });
        }
        match (other, wanted) {
            (Some((programs, bin)), Some(data)) => {
                Err(DiskError::OtherVersion { data, programs, bin })
            }
            _ => Err(DiskError::NoProgram {
                program: "postgres".to_owned(),
                places: places.iter().map(|p| p.display().to_string()).collect(),
            }),
        }
    }

    /// A program with its arguments, wrapped so that it runs as the owner of the data.
    /// Where a program is.
    pub(super) fn path(&self, program: &str) -> PathBuf {
        self.bin.join(program)
    }

    pub(super) fn line(&self, program: &str) -> (PathBuf, Vec<OsString>) {
        let full = self.bin.join(program);
        match self.owner {
            None => (full, Vec::new()),
            Some((uid, gid)) => (
                PathBuf::from("setpriv"),
                vec![
                    format!("--reuid={uid}").into(),
                    format!("--regid={gid}").into(),
                    "--init-groups".into(),
                    full.into(),
                ],
            ),
        }
    }

    fn command(&self, program: &str, args: &[&OsStr]) -> Command {
        let (program, before) = self.line(program);
        let mut command = Command::new(program);
        // A fixed language, because output is read; nothing of PG* from outside may change targets.
        command.args(before).args(args).env_clear().env("LC_ALL", "C").env("TZ", "UTC");
        command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
        command.current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a program to its end; `line` hears each line of its output, which is not kept then.
    pub(super) async fn run_lines(
        &self,
        program: &str,
        args: &[&OsStr],
        env: &[(&str, &OsStr)],
        within: Duration,
        mut line: impl FnMut(&str),
    ) -> Result<Ended, DiskError> {
        let mut command = self.command(program, args);
        command.envs(env.iter().copied()).stdin(Stdio::null());
        let mut child = command.spawn().map_err(|e| self.cannot_run(program, e))?;
        let out = child.stdout.take().expect("it was asked to be a pipe");
        let err = child.stderr.take().expect("it was asked to be a pipe");
        let work = async {
            let read = async {
                let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(out));
                while let Ok(Some(text)) = lines.next_line().await {
                    line(&text);
                }
            };
            let ((), err) = tokio::join!(read, all(err));
            (child.wait().await, err)
        };
        let (status, err) =
            tokio::time::timeout(within, work).await.map_err(|_| timed_out(program, within))?;
        let status = status.map_err(|e| self.cannot_run(program, e))?;
        Ok(Ended { ok: status.success(), status: status.to_string(), out: String::new(), err })
    }

    /// Runs a program to its end, with `input` on its standard input.
    pub(super) async fn run(
        &self,
        program: &str,
        args: &[&OsStr],
        env: &[(&str, &OsStr)],
        input: &str,
        within: Duration,
    ) -> Result<Ended, DiskError> {
        let mut command = self.command(program, args);
        command.envs(env.iter().copied());
        let mut child = command.spawn().map_err(|e| self.cannot_run(program, e))?;
        let mut stdin = child.stdin.take().expect("it was asked to be a pipe");
        let out = child.stdout.take().expect("it was asked to be a pipe");
        let err = child.stderr.take().expect("it was asked to be a pipe");
        let work = async {
            let feed = async {
                // A program that ends before it read everything says why on its error output.
                let _ = stdin.write_all(input.as_bytes()).await;
                drop(stdin);
            };
            let ((), out, err) = tokio::join!(feed, all(out), all(err));
            (child.wait().await, out, err)
        };
        let (status, out, err) =
            tokio::time::timeout(within, work).await.map_err(|_| timed_out(program, within))?;
        let status = status.map_err(|e| self.cannot_run(program, e))?;
        Ok(Ended { ok: status.success(), status: status.to_string(), out, err })
    }

    /// Runs a program that changes the directory, with the right to do so: `turn` is let go when no
    /// process of it can write any more, also when this future is dropped or the time is up.
    pub(super) async fn run_alone(
        &self,
        turn: OwnedMutexGuard<()>,
        program: &str,
        args: &[&OsStr],
        env: &[(&str, &OsStr)],
        within: Duration,
    ) -> Result<Ended, DiskError> {
        let mut command = self.command(program, args);
        // A group of its own: what the program starts itself is ended with it.
        command.envs(env.iter().copied()).stdin(Stdio::null()).process_group(0);
        let mut child = command.spawn().map_err(|e| self.cannot_run(program, e))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let out = child.stdout.take().expect("it was asked to be a pipe");
        let err = child.stderr.take().expect("it was asked to be a pipe");
        // Given up by the end of this future, whichever way.
        let (wanted, given_up) = oneshot::channel::<()>();
        let work = tokio::spawn(async move {
            let _turn = turn;
            let mut said = JoinSet::new();
            said.spawn(async move { tokio::join!(all(out), all(err)) });
            let ended = tokio::select! {
                ended = child.wait() => ended,
                _ = given_up => {
                    if let Some(group) = group {
                        let _ = killpg(group, Signal::SIGKILL);
                    }
                    // Its number is free only after this, so nobody else is killed.
                    return child.wait().await.map(|status| (status, String::new(), String::new()));
                }
            };
            let (out, err) = match said.join_next().await {
                Some(Ok(said)) => said,
                _ => (String::new(), String::new()),
            };
            ended.map(|status| (status, out, err))
        });
        let ended = tokio::time::timeout(within, work).await;
        drop(wanted);
        let ended = ended.map_err(|_| timed_out(program, within))?;
        let ended = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        let (status, out, err) = ended.map_err(|e| self.cannot_run(program, e))?;
        Ok(Ended { ok: status.success(), status: status.to_string(), out, err })
    }

    fn cannot_run(&self, program: &str, source: std::io::Error) -> DiskError {
        DiskError::Io { what: "run", path: self.bin.join(program), source }
    }
}

fn timed_out(program: &str, after: Duration) -> DiskError {
    DiskError::ProgramTimedOut { program: program.to_owned(), after }
}

async fn all(from: impl AsyncRead + Unpin) -> String {
    let mut bytes = Vec::new();
    let mut from = from.take(MAX_OUTPUT);
    let _ = from.read_to_end(&mut bytes).await;
    // What exceeds the limit is read and dropped, so that the program is not stuck on its pipe.
    let _ = tokio::io::copy(&mut from.into_inner(), &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

fn owner(run_as: Option<&str>) -> Result<Option<(u32, u32)>, DiskError> {
    let Some(name) = run_as.filter(|_| rustix::process::geteuid().is_root()) else {
        return Ok(None);
    };
    match nix::unistd::User::from_name(name) {
        Ok(Some(user)) => Ok(Some((user.uid.as_raw(), user.gid.as_raw()))),
        _ => Err(DiskError::NoUser(name.to_owned())),
    }
}
