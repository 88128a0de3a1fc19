//! The words between agent and fencer: one JSON object a line, each way, over a Unix socket. An
//! agent says [`Request::Hello`] first; each request gets one [`Message::Reply`]; a connection that
//! watches also gets [`Message::Event`]s.
//!
//! Everything read here may be hostile: lines are bounded, and a line that is not a request ends
//! its connection, never the fencer.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use regent_core::id::{Epoch, Nonce, RenewalNumber, Revision};
use regent_core::time::Reading;
use serde::{Deserialize, Serialize};

use crate::receipt::{ExitStatus, Receipt};

/// Most bytes of one line. Below the 64 KiB of a pipe, so that handing a start command to the exec
/// stage can never block the init.
pub const MAX_LINE_BYTES: usize = 48 * 1024;

/// Which life of the agent speaks. Ordered by `boot_count`; of two equal ones the first that spoke
/// stays (a disk that went back in time must not take over).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentId {
    /// The agent's fsynced boot counter (PROTOCOL.md B), one higher at each of its starts.
    pub boot_count: u64,
    /// Its session nonce.
    pub nonce: Nonce,
}

/// A deadline with what it stems from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arm {
    /// Epoch of the lease.
    pub epoch: Epoch,
    /// The renewal that was acknowledged, or the agent's number of the certificate; never falls
    /// inside an epoch.
    pub number: RenewalNumber,
    /// Absolute, on both clocks of this machine; whichever is reached first counts.
    pub until: Reading,
}

/// Bytes of an argument or path: mostly text, kept whole when they are not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Bytes {
    /// Valid UTF-8.
    Text(String),
    /// Anything else.
    Raw(Vec<u8>),
}

impl From<OsString> for Bytes {
    fn from(word: OsString) -> Self {
        word.into_string().map_or_else(|word| Self::Raw(word.into_vec()), Self::Text)
    }
}
impl From<&str> for Bytes {
    fn from(word: &str) -> Self {
        Self::Text(word.to_owned())
    }
}
impl From<PathBuf> for Bytes {
    fn from(path: PathBuf) -> Self {
        path.into_os_string().into()
    }
}
impl From<&Bytes> for OsString {
    fn from(bytes: &Bytes) -> Self {
        match bytes {
            Bytes::Text(text) => text.into(),
            Bytes::Raw(raw) => std::ffi::OsStr::from_bytes(raw).to_owned(),
        }
    }
}

/// What bounds the life of a program that is about to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bound {
    /// A lease: killed at its deadline.
    Until(Arm),
    /// None: only for what cannot serve writes (standby.signal on disk) or under a committed pause.
    Unbound,
}

/// A program to start. It gets nothing of the fencer's own environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartCommand {
    /// Absolute path of the program.
    pub program: Bytes,
    /// Its arguments, without its own name.
    pub args: Vec<Bytes>,
    /// Its whole environment.
    pub env: Vec<(Bytes, Bytes)>,
    /// Its working directory.
    pub dir: Bytes,
    /// File its stdout and stderr are appended to; made if missing.
    pub log: Bytes,
    /// What bounds its life.
    pub bound: Bound,
    /// Sequence number of the last receipt, zero if there is none: whoever starts the next program
    /// must have read how the one before ended.
    pub acknowledges: u64,
}

/// How to stop. The values are PostgreSQL's; other programs see the signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopMode {
    /// SIGINT to the postmaster: sessions are ended, a shutdown checkpoint is written.
    Fast,
    /// SIGQUIT to the postmaster: ends without a checkpoint.
    Immediate,
    /// Everything is killed at once.
    Kill,
}

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The program that was started.
    Postmaster,
    /// A process by its pid *as seen inside*, which is what PostgreSQL itself reports (for example
    /// `pg_stat_activity.pid`).
    Inside(i32),
}

/// Signals the agent may send. Killing has its own request, so that a receipt is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGUSR1: the postmaster looks for `promote`.
    Promote,
    /// SIGTERM: end one backend or walreceiver. Refused for the postmaster, which must be stopped.
    Terminate,
    /// SIGINT: cancel one backend's query. Refused for the postmaster, likewise.
    Cancel,
}

/// What an agent asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Who speaks; must be first. With `watch`, events are sent on this connection too.
    Hello {
        /// The agent.
        agent: AgentId,
        /// Whether it wants events here.
        watch: bool,
    },
    /// Everything there is to know; answered from the main loop, so it is also the heartbeat.
    Status,
    /// A later deadline.
    Arm(Arm),
    /// No deadline until the next arm: a committed pause (PROTOCOL.md E5).
    Disarm {
        /// Revision of the pause; never falls.
        pause: Revision,
    },
    /// Starts a program; refused while one runs.
    Start(StartCommand),
    /// Stops it; everything left is killed `kill_after_ms` later.
    Stop {
        /// How.
        mode: StopMode,
        /// Milliseconds until all is killed.
        kill_after_ms: u64,
    },
    /// A signal to one process.
    Signal {
        /// To whom.
        target: Target,
        /// Which.
        notice: Notice,
    },
    /// End the fencer; refused while anything runs.
    Quit,
}

/// What the fencer answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To hello, status, arm, disarm, start, stop and signal: the state after it.
    Status(Box<Status>),
    /// To quit.
    Quitting,
    /// Not done, nothing has changed.
    Refused(Refusal),
}

/// What is pushed to connections that watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The deadline was reached; killing has begun.
    Fired {
        /// Epoch that fired.
        epoch: Epoch,
        /// Its last number.
        number: RenewalNumber,
        /// When.
        at: Reading,
    },
    /// The program itself ended; what it left is being killed.
    Exited {
        /// Its pid inside.
        pid: i32,
        /// How it ended.
        exit: ExitStatus,
        /// When.
        at: Reading,
    },
    /// Nothing runs any more, and the receipt for it is on disk.
    Stopped {
        /// That receipt.
        receipt: Receipt,
    },
}

/// One line from the fencer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// To the oldest unanswered request of this connection.
    Reply(Reply),
    /// Unasked.
    Event(Event),
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Another request came before hello.
    #[error("say hello first")]
    NoHello,
    /// Not a request, or too long a line; the connection ends.
    #[error("not a request: {0}")]
    Malformed(String),
    /// A newer agent, or another one with the same boot counter, is in command.
    #[error("agent start {} is in command", .have.boot_count)]
    Superseded {
        /// Who is.
        have: AgentId,
    },
    /// The deadline fired; only a start that names the receipt goes on.
    #[error("the deadline of epoch {epoch} number {number} fired")]
    Fired {
        /// Epoch that fired.
        epoch: Epoch,
        /// Its number.
        number: RenewalNumber,
    },
    /// Epoch and number are lower than ones already seen; after a firing, not higher.
    #[error("epoch {epoch} number {number} is already known")]
    Stale {
        /// Highest epoch seen.
        epoch: Epoch,
        /// Highest number seen in it.
        number: RenewalNumber,
    },
    /// The pause is older than one already obeyed.
    #[error("pause revision {have} is already known")]
    PauseStale {
        /// Newest pause.
        have: Revision,
    },
    /// A start whose deadline is already reached.
    #[error("the deadline is already reached")]
    DeadlinePast,
    /// A program runs, or is being stopped or killed.
    #[error("a program runs")]
    Running,
    /// Nothing runs.
    #[error("no program runs")]
    NotRunning,
    /// A start that does not name the last receipt.
    #[error("the last receipt has number {last}")]
    Unacknowledged {
        /// Its sequence number.
        last: u64,
    },
    /// The program could not be started.
    #[error("cannot start: {0}")]
    CannotStart(String),
    /// The signal could not be sent, or is not for this target.
    #[error("cannot signal: {0}")]
    CannotSignal(String),
}

/// Whether the end of the fencer is the end of all it started (PROTOCOL.md E1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protection {
    /// It is pid 1 of a PID namespace of its own.
    Namespace,
    /// It is not: `armed=weak`.
    Weak {
        /// Why not, for people.
        reason: String,
    },
}

/// The program that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its pid as seen inside.
    pub pid: i32,
    /// When it was started.
    pub since: Reading,
}

/// What the fencer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Nothing runs.
    Idle,
    /// A program runs.
    Running,
    /// It was asked to stop.
    Stopping,
    /// Everything is being killed.
    Killing,
    /// Nothing runs, but the receipt could not be written yet; tried again all the time.
    Receipt,
}

/// The lease as the fencer knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    /// Highest epoch it was ever armed with.
    pub epoch: Epoch,
    /// Highest number in that epoch.
    pub number: RenewalNumber,
    /// Present deadline; `None` when disarmed.
    pub until: Option<Reading>,
    /// Whether it fired and no start came since.
    pub fired: bool,
    /// Newest pause obeyed.
    pub pause: Revision,
}

/// Everything the fencer tells about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Names this run of the fencer; a new agent adopts only what it names (PROTOCOL.md E2).
    pub fencer: Nonce,
    /// Boot of the machine its readings belong to.
    pub boot_id: String,
    /// What its end is worth.
    pub protection: Protection,
    /// The agent in command.
    pub agent: Option<AgentId>,
    /// Epoch, number, deadline.
    pub lease: LeaseView,
    /// What it is doing.
    pub phase: Phase,
    /// The program, from its start until it and all it left are gone.
    pub running: Option<Running>,
    /// Last receipt on disk.
    pub receipt: Option<Receipt>,
    /// Why the next receipt could not be written yet.
    pub receipt_error: Option<String>,
    /// When this was answered.
    pub now: Reading,
}

/// One line, with its end.
pub(crate) fn line<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).expect("these types are all representable in JSON");
    bytes.push(b'\n');
    bytes
}
