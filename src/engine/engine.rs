//! The trait behind which a database is controlled, and the one through which it reaches processes.
//!
//! Signatures here know nothing of PostgreSQL beyond roles, positions and names. Every operation
//! has a deadline of its own or takes one, so that an agent is never stuck behind a hung server.

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use regent_core::id::Epoch;
use regent_core::role::Position;

use crate::error::{ChangeError, CommitError, DiskError, RebuildError, SqlError};
use crate::facts::{
    CleanStop, Discovery, GenerationId, HistoryFile, LostTransactions, Lowered, LoweredSession,
    Observation, Override, Relation, SourceLine, Switch,
};
use crate::orders::{Secrets, Source, StartAs, StartCommand, SyncNames, Upstream};

/// Who holds the server's processes: the fencer, seen through the agent.
#[async_trait]
pub trait Postmaster: Send + Sync {
    /// Makes the server read its settings again (SIGHUP to the postmaster).
    async fn reload(&self) -> io::Result<()>;
    /// Ends one process of the server (SIGTERM); `pid` is what the server itself calls it. One that
    /// is gone already is no error.
    async fn terminate(&self, pid: i32) -> io::Result<()>;
    /// Every process whose parent is the postmaster: also those that are logging in and stand in no
    /// list of the server's own.
    async fn children(&self) -> io::Result<Vec<Child>>;
}

/// A process of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// What the server itself calls it.
    pub pid: i32,
    /// What it calls itself.
    pub title: String,
}

/// What an agent can do to its database. All of it may be repeated.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Returns when nothing of an operation that was given up (its future dropped) can change the
    /// disk any more. A disk that hangs makes this wait as long.
    async fn settled(&self);

    /// What lies in the data directory, and whether the programs for it are here.
    ///
    /// # Errors
    /// Names what is missing or cannot be read.
    async fn check(&self) -> Result<Discovery, DiskError>;

    /// Makes the first copy of a new cluster and writes `secrets` to the passfile. The server is
    /// not started.
    ///
    /// # Errors
    /// When the directory is not empty, or a program fails.
    async fn init(&self, secrets: &Secrets) -> Result<GenerationId, RebuildError>;

    /// Writes role and settings to disk, synced, and says how to start. What lies on disk comes up
    /// closed whoever starts it (PROTOCOL.md E3).
    ///
    /// # Errors
    /// When a file cannot be written or the directory is quarantined.
    async fn prepare_start(&self, start: &StartAs) -> Result<StartCommand, DiskError>;

    /// Removes what would let somebody repeat the start by hand. Call it once the server runs.
    ///
    /// # Errors
    /// When a file cannot be removed.
    async fn after_start(&self) -> Result<(), DiskError>;

    /// Opens a new session and asks something: whether clients could get in. Returns how long it
    /// took.
    ///
    /// # Errors
    /// No session or no answer within `within`.
    async fn probe(&self, within: Duration) -> Result<Duration, SqlError>;

    /// Whether another instance's server answers whoever connects to `address`, `host:port`: asked
    /// without a session, and without a line in its log. As long as the caller waits.
    ///
    /// # Errors
    /// The connection's.
    async fn knock(&self, address: &str) -> io::Result<()>;

    /// The server's facts, over a connection that stays open.
    ///
    /// # Errors
    /// No answer within `within`, or a role that may not see what it must.
    async fn observe(&self, within: Duration) -> Result<Observation, SqlError>;

    /// A small transaction of Regent's own that returned under the present set, and how long it
    /// took. A warning is a failure. One that timed out goes on waiting; until it ends no other is
    /// started.
    ///
    /// # Errors
    /// Anything but an acknowledged commit.
    async fn canary(&self, within: Duration) -> Result<Duration, CommitError>;

    /// Writes the epoch into the WAL, by a synchronous commit under the names that are on disk: in a
    /// session of a server that has read them.
    ///
    /// # Errors
    /// Anything but an acknowledged commit.
    async fn write_epoch(&self, epoch: Epoch, within: Duration) -> Result<Duration, CommitError>;

    /// Leaves recovery. Clients must be closed and the names set before. Its timeline will be
    /// `timeline` or a later one: lower ones may be another instance's.
    ///
    /// # Errors
    /// When it is not in recovery, clients are open, it is not out in time, or `timeline` was begun
    /// here before.
    async fn promote(&self, timeline: u32, within: Duration) -> Result<Switch, ChangeError>;

    /// The histories that this instance knows.
    ///
    /// # Errors
    /// When a file cannot be read.
    async fn read_history(&self) -> Result<Vec<HistoryFile>, DiskError>;

    /// Takes the means to receive WAL away, on disk only. Enough for a server that is down.
    ///
    /// # Errors
    /// When a file cannot be written.
    async fn erase_upstream(&self) -> Result<(), DiskError>;

    /// Takes the means away and ends the stream; returns when nothing can be received any more.
    ///
    /// # Errors
    /// When that is not certain in time; what is on disk stays erased.
    async fn detach(
        &self,
        postmaster: &dyn Postmaster,
        within: Duration,
    ) -> Result<Duration, ChangeError>;

    /// Replays all that was received, without regard for queries, and says how far that reaches.
    ///
    /// # Errors
    /// When the server still has an upstream, or is not done in time.
    async fn recruit(
        &self,
        postmaster: &dyn Postmaster,
        within: Duration,
    ) -> Result<Position, ChangeError>;

    /// Follows `upstream` from now on.
    ///
    /// # Errors
    /// When a file cannot be written or the server not be told.
    async fn follow(
        &self,
        upstream: &Upstream,
        postmaster: &dyn Postmaster,
    ) -> Result<(), ChangeError>;

    /// Keeps one slot for each of `instances`, and drops Regent's unused slots for others.
    ///
    /// # Errors
    /// When the server refuses.
    async fn ensure_slots(&self, instances: &[String], within: Duration)
    -> Result<(), ChangeError>;

    /// Puts a set in force and returns once no other can acknowledge a commit and a transaction
    /// begun after that has returned (on a standby: once they are on disk, and the server was told
    /// to read them; [`Engine::write_epoch`] sees that it did).
    ///
    /// # Errors
    /// When that is not certain in time; what is on disk stays.
    async fn set_sync_names(
        &self,
        names: &SyncNames,
        postmaster: &dyn Postmaster,
        within: Duration,
    ) -> Result<Duration, ChangeError>;

    /// Lets clients in, those of `refused` roles and databases left out, and returns once that is so.
    ///
    /// # Errors
    /// When that is not so in time.
    async fn open_clients(
        &self,
        refused: &[Override],
        postmaster: &dyn Postmaster,
        within: Duration,
    ) -> Result<(), ChangeError>;

    /// Sessions of clients whose commits wait for less than the names ask for, as far as that can be
    /// seen. `postmaster` is the first process as this host numbers it.
    ///
    /// # Errors
    /// No answer within `within`.
    async fn lowered(&self, postmaster: Option<i32>, within: Duration)
    -> Result<Lowered, SqlError>;

    /// With clients let in: refuses these roles and databases and no others, and ends their sessions
    /// and the ones that are named.
    ///
    /// # Errors
    /// When that was not done in time.
    async fn shut_out(
        &self,
        refused: &[Override],
        sessions: &[LoweredSession],
        postmaster: &dyn Postmaster,
        within: Duration,
    ) -> Result<(), ChangeError>;

    /// Keeps clients out, ends their sessions, and returns once that is so.
    ///
    /// # Errors
    /// When that is not so in time.
    async fn close_clients(
        &self,
        postmaster: &dyn Postmaster,
        within: Duration,
    ) -> Result<(), ChangeError>;

    /// Writes a checkpoint; before a planned stop, and at the source of a rewind.
    ///
    /// # Errors
    /// When it is not done within `within`.
    async fn checkpoint(&self, within: Duration) -> Result<(), SqlError>;

    /// Whether the server on this directory was stopped in order as a primary, and where its WAL
    /// ends then. Only for a server that is down.
    ///
    /// # Errors
    /// When the control file or the WAL cannot be read.
    async fn clean_stop(&self) -> Result<Option<CleanStop>, DiskError>;

    /// How far the WAL on this directory reaches. Only for a server that is down.
    ///
    /// # Errors
    /// When the control file or the WAL cannot be read.
    async fn wal_end(&self) -> Result<CleanStop, DiskError>;

    /// What `source`, a primary, writes.
    ///
    /// # Errors
    /// It cannot be reached within `within`, or is no primary yet.
    async fn source_line(&self, source: &Source, within: Duration) -> Result<SourceLine, SqlError>;

    /// How this directory relates to that line. Only for a server that is down.
    ///
    /// # Errors
    /// When the control file or the WAL cannot be read.
    async fn compare(&self, source: &SourceLine) -> Result<Relation, DiskError>;

    /// Whether this directory has WAL that the timeline `timeline` of the source, with its history,
    /// does not have. Only for a server that is down.
    ///
    /// # Errors
    /// When the control file or the WAL cannot be read.
    async fn needs_rewind(&self, timeline: u32, history: &str) -> Result<bool, DiskError>;

    /// Keeps a copy of what only this instance has, says which commits that were, and makes the
    /// directory a copy of `source` that can follow it. Only for a server that is down.
    ///
    /// # Errors
    /// When it is not possible; unless the error came before any write, the directory is
    /// quarantined then and needs a clone.
    async fn rewind(
        &self,
        source: &Source,
        timeline: u32,
        history: &str,
    ) -> Result<(GenerationId, LostTransactions), RebuildError>;

    /// Copies `source` anew and keeps the old directory, the newest only. `progress` hears bytes.
    ///
    /// # Errors
    /// When a program fails; the old directory is untouched then.
    async fn clone_from(
        &self,
        source: &Source,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<GenerationId, RebuildError>;
}
