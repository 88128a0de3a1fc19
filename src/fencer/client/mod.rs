//! The agent's side: launches or finds a fencer, asks it, and ends it when it does not answer.
//!
//! Blocking, with a bound on every call: call it from a thread that may wait. A call that fails with
//! [`ClientError::Silent`] says that the heartbeat stopped; then [`Fencer::kill_namespace`] is what
//! ends PostgreSQL for sure.

mod end;
mod line;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use regent_core::id::Revision;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

pub use self::end::{EndError, Gone, await_end};
use self::line::Line;
use crate::disk;
use crate::launch::{READY_WITHIN, Report, read_report};
use crate::options::Options;
use crate::receipt::Receipt;
use crate::wire::{
    AgentId, Arm, Event, Notice, Protection, Refusal, Reply, Request, StartCommand, Status,
    StopMode, Target,
};

/// Default bound on one answer.
pub const ANSWER_WITHIN: Duration = Duration::from_millis(250);
/// Pause between two looks at a fencer that is ending something.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How to launch a fencer.
#[derive(Clone, Debug)]
pub struct LaunchOptions {
    /// The program that holds the fencer; normally this very one.
    pub program: PathBuf,
    /// Its options; the stage is set by the launch.
    pub options: Options,
    /// Who commands it.
    pub agent: AgentId,
}

/// Why the fencer did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no fencer on this state directory.
    #[error("no fencer answers on {path}")]
    Absent {
        /// Its socket.
        path: PathBuf,
        /// What connecting said.
        #[source]
        source: io::Error,
    },
    /// Launch: one lives there already. Attach to it.
    #[error("a fencer already lives on this state directory")]
    AlreadyRunning,
    /// Launch: it could not begin.
    #[error("the fencer did not begin: {0}")]
    NotLaunched(String),
    /// It did not answer in time: its heartbeat has stopped.
    #[error("the fencer did not answer within {0:?}")]
    Silent(Duration),
    /// The connection ended.
    #[error("the connection to the fencer ended")]
    Lost(#[source] io::Error),
    /// It answered what it should not.
    #[error("the fencer's answer was not understood: {0}")]
    Strange(String),
    /// It refused; nothing has changed.
    #[error("the fencer refused")]
    Refused(#[from] Refusal),
    /// A system call on this side failed.
    #[error("{step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A fencer this agent commands.
#[derive(Debug)]
pub struct Fencer {
    state_dir: PathBuf,
    agent: AgentId,
    pid: Pid,
    pidfd: OwnedFd,
    line: Option<Line>,
    answer_within: Duration,
    /// Last status heard, for the receipt the agent writes itself when the fencer is silent.
    seen: Option<Status>,
}

impl Fencer {
    /// Starts a fencer and says hello to it.
    ///
    /// # Errors
    /// [`ClientError::AlreadyRunning`] if one lives there, or one whose namespace has not ended;
    /// [`ClientError::NotLaunched`] with the reason.
    pub fn launch(launch: &LaunchOptions) -> Result<Self, ClientError> {
        let args: Vec<OsString> = launch.options.at(crate::Stage::Launch).args();
        let mut child = Command::new(&launch.program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| ClientError::Step { step: "start of the launcher", source })?;
        let stdout = child.stdout.take().expect("it was asked for");
        // Longer than the launcher's own bound, so that its reason is heard.
        let report = read_report(stdout, READY_WITHIN + Duration::from_secs(2));
        if report.is_err() {
            let _ = child.kill();
        }
        let _ = child.wait();
        match report {
            Ok(Report::Ready { pid }) => {
                let mut fencer = Self::attach(&launch.options.state_dir, launch.agent)?;
                if fencer.pid() != pid {
                    return Err(ClientError::Strange(format!("pid {pid} was launched")));
                }
                fencer.status()?;
                Ok(fencer)
            }
            Ok(Report::AlreadyRunning) => Err(ClientError::AlreadyRunning),
            Ok(Report::Failed { why }) => Err(ClientError::NotLaunched(why)),
            Err(source) => Err(ClientError::Step { step: "report of the launcher", source }),
        }
    }

    /// Finds the fencer that lives on `state_dir`. Works for one that is frozen too: that
    /// shows at the first request, and [`Fencer::kill_namespace`] still ends it.
    ///
    /// # Errors
    /// [`ClientError::Absent`] if nobody listens there.
    pub fn attach(state_dir: &Path, agent: AgentId) -> Result<Self, ClientError> {
        let line = match Line::connect(&state_dir.join(disk::SOCKET_FILE)) {
            Ok(line) => Some(line),
            Err(ClientError::Silent(_)) => None,
            Err(error) => return Err(error),
        };
        let (pid, pidfd) = match &line {
            Some(line) => Self::who_listens(line)?,
            None => Self::who_is_recorded(state_dir)?,
        };
        let mut fencer = Self {
            state_dir: state_dir.to_owned(),
            agent,
            pid,
            pidfd,
            line: None,
            answer_within: ANSWER_WITHIN,
            seen: None,
        };
        fencer.line = line.map(|line| fencer.greet(line, false)).transpose()?;
        Ok(fencer)
    }

    /// The kernel kept who began to listen: no file has to be believed.
    fn who_listens(line: &Line) -> Result<(Pid, OwnedFd), ClientError> {
        let step = |step| move |source| ClientError::Step { step, source };
        let peer = getsockopt(line.stream(), PeerCredentials)
            .map_err(|e| step("credentials of the fencer")(e.into()))?;
        let pid = Pid::from_raw(peer.pid())
            .ok_or_else(|| ClientError::Strange("it is in another PID namespace".into()))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|e| step("pidfd of the fencer")(e.into()))?;
        // The listener still lives, so that number still was its own when the pidfd was opened.
        line.check_alive()?;
        Ok((pid, pidfd))
    }

    /// For one that has been frozen for so long that its queue is full.
    fn who_is_recorded(state_dir: &Path) -> Result<(Pid, OwnedFd), ClientError> {
        let step = |step| move |source| ClientError::Step { step, source };
        let unknown = || ClientError::Strange("a full queue, and no record of it".into());
        let record = disk::read_init(state_dir)
            .map_err(step("record of the fencer"))?
            .ok_or_else(unknown)?;
        let pid = Pid::from_raw(record.pid).ok_or_else(unknown)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .map_err(|e| step("pidfd of the fencer")(e.into()))?;
        // It exists after the opening, so the number was its own at the opening.
        if !record.exists().map_err(step("record of the fencer"))? {
            return Err(unknown());
        }
        Ok((pid, pidfd))
    }

    /// Sends hello; its answer is read with the first request, so that a frozen fencer can be
    /// attached to.
    fn greet(&self, mut line: Line, watch: bool) -> Result<Line, ClientError> {
        line.send(&Request::Hello { agent: self.agent, watch }, self.answer_within)?;
        line.owe();
        Ok(line)
    }

    /// Changes the bound on one answer; the agent's is its fence budget.
    pub fn set_answer_within(&mut self, within: Duration) {
        self.answer_within = within;
    }

    /// Pid of the init as this process sees it.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The last status heard, without asking.
    pub fn last_status(&self) -> Option<&Status> {
        self.seen.as_ref()
    }

    fn ask(&mut self, request: &Request) -> Result<Option<Status>, ClientError> {
        let until = Instant::now() + self.answer_within;
        let mut line = match self.line.take() {
            Some(line) => line,
            None => {
                let line = Line::connect(&self.state_dir.join(disk::SOCKET_FILE))?;
                self.greet(line, false)?
            }
        };
        // A line that failed in the middle of an answer is not used again: the answers after it would
        // be taken for others'. The next call connects anew.
        let answered = line.ask(request, until, self.answer_within);
        let keep = matches!(answered, Ok(_) | Err(ClientError::Refused(_)));
        if keep {
            self.line = Some(line);
        }
        match answered? {
            Reply::Status(status) => {
                self.seen = Some((*status).clone());
                Ok(Some(*status))
            }
            Reply::Quitting => Ok(None),
            Reply::Refused(refusal) => Err(refusal.into()),
        }
    }

    fn ask_status(&mut self, request: &Request) -> Result<Status, ClientError> {
        let status = self.ask(request)?;
        status.ok_or_else(|| ClientError::Strange("an end nobody asked for".into()))
    }

    /// The heartbeat: answered from the fencer's main loop, or not at all.
    ///
    /// # Errors
    /// [`ClientError`]; `Silent` means frozen, `Absent` or `Lost` gone, `Refused` superseded.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        self.ask_status(&Request::Status)
    }

    /// Raises the deadline. The status says what is in force, which is the older deadline if that is
    /// later.
    ///
    /// # Errors
    /// As [`Fencer::status`]; refused when it fired or the numbers are older.
    pub fn arm(&mut self, arm: &Arm) -> Result<Status, ClientError> {
        self.ask_status(&Request::Arm(*arm))
    }

    /// Takes the deadline away, for a committed pause.
    ///
    /// # Errors
    /// As [`Fencer::status`]; refused when it fired or the pause is older.
    pub fn disarm(&mut self, pause: Revision) -> Result<Status, ClientError> {
        self.ask_status(&Request::Disarm { pause })
    }

    /// Starts a program; the status holds its pid as seen inside.
    ///
    /// # Errors
    /// As [`Fencer::status`]; refused when one runs, the last receipt is not named, the lease is not
    /// above what fired, or the program does not start.
    pub fn start(&mut self, command: &StartCommand) -> Result<Status, ClientError> {
        self.ask_status(&Request::Start(command.clone()))
    }

    /// Asks for a stop, without waiting for it.
    ///
    /// # Errors
    /// As [`Fencer::status`]; refused when nothing runs.
    pub fn request_stop(
        &mut self,
        mode: StopMode,
        kill_after: Duration,
    ) -> Result<Status, ClientError> {
        let kill_after_ms = u64::try_from(kill_after.as_millis()).unwrap_or(u64::MAX);
        self.ask_status(&Request::Stop { mode, kill_after_ms })
    }

    /// Stops what runs and waits for the receipt. Everything left is killed after `kill_after`.
    ///
    /// # Errors
    /// As [`Fencer::request_stop`]; `Silent` if no receipt came within `kill_after` and 5 s more.
    pub fn stop(&mut self, mode: StopMode, kill_after: Duration) -> Result<Receipt, ClientError> {
        let before = self.status()?.receipt.map_or(0, |receipt| receipt.sequence);
        let within = kill_after + Duration::from_secs(5);
        let until = Instant::now() + within;
        let mut status = self.request_stop(mode, kill_after)?;
        loop {
            if let Some(receipt) = status.receipt.filter(|r| r.sequence > before) {
                return Ok(receipt);
            }
            if Instant::now() > until {
                return Err(ClientError::Silent(within));
            }
            std::thread::sleep(LOOK_AGAIN);
            status = self.status()?;
        }
    }

    /// Sends a signal to one process.
    ///
    /// # Errors
    /// As [`Fencer::status`]; refused when nothing runs, or it is not for that process.
    pub fn signal(&mut self, target: Target, notice: Notice) -> Result<Status, ClientError> {
        self.ask_status(&Request::Signal { target, notice })
    }

    /// Ends the fencer.
    ///
    /// # Errors
    /// As [`Fencer::status`]; refused while anything runs.
    pub fn quit(&mut self) -> Result<(), ClientError> {
        self.ask(&Request::Quit).map(drop)
    }

    /// A second connection, on which the fencer tells of ends as they happen.
    ///
    /// # Errors
    /// As [`Fencer::status`].
    pub fn watch(&self) -> Result<Events, ClientError> {
        let line = Line::connect(&self.state_dir.join(disk::SOCKET_FILE))?;
        let mut line = self.greet(line, true)?;
        line.settle(Instant::now() + self.answer_within, self.answer_within)?;
        Ok(Events { line })
    }

    /// Ends everything through the init's pidfd, whether it runs or is frozen, and writes the receipt.
    /// The seen end of pid 1 is the proof; without a namespace all descendants that can be found are
    /// killed first, and the receipt says weak. Burns epoch and number, as a firing does.
    ///
    /// # Errors
    /// [`EndError`]: then it is not known that everything ended.
    pub fn kill_namespace(&mut self, within: Duration) -> Result<Receipt, EndError> {
        self.line = None;
        let seen = self.seen.as_ref();
        end::kill(&self.state_dir, self.pid(), &self.pidfd, seen, within)
    }

    /// Whether the fencer's process has ended. With [`Protection::Namespace`] this means that all it
    /// started has ended too.
    pub fn has_ended(&self) -> bool {
        end::ended(&self.pidfd, Duration::ZERO).unwrap_or(false)
    }

    /// Host pid of the process that is `inside` to the namespace; `None` if there is none.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn host_pid(&self, inside: i32) -> io::Result<Option<i32>> {
        let weak = matches!(
            self.seen.as_ref().map(|seen| &seen.protection),
            Some(Protection::Weak { .. })
        );
        for pid in crate::descendants::of(self.pid())? {
            let same = if weak { Some(pid) } else { end::inside_pid(pid) };
            if same == Some(inside) {
                return Ok(Some(pid));
            }
        }
        Ok(None)
    }
}

/// Events of one fencer, in order.
#[derive(Debug)]
pub struct Events {
    line: Line,
}

impl Events {
    /// The next event; `None` if none came within `within`.
    ///
    /// # Errors
    /// [`ClientError::Lost`] when the connection ended: the fencer is gone, or another agent took
    /// over; `attach` tells which.
    pub fn next(&mut self, within: Duration) -> Result<Option<Event>, ClientError> {
        self.line.event(Instant::now() + within)
    }
}
