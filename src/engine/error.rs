//! Why an operation failed; one enum for each family. No text here holds a connection string.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A data directory, its files, the server's programs.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file could not be read or written.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program of the server is missing.
    #[error("{program} was not found in {}; install the server's package", places.join(", "))]
    NoProgram {
        /// Its name.
        program: String,
        /// Where it was looked for.
        places: Vec<String>,
    },
    /// The programs are of a version that Regent does not know.
    #[error("version {0:?} is not supported; 13 to 18 are")]
    Version(String),
    /// The data directory and the programs do not fit together.
    #[error("the data is of version {data}, the programs in {} are of {programs}", bin.display())]
    OtherVersion {
        /// Version of the data.
        data: u32,
        /// Version of the programs.
        programs: u32,
        /// Where the programs are.
        bin: PathBuf,
    },
    /// A user to run as does not exist.
    #[error("there is no user {0:?}")]
    NoUser(String),
    /// A file does not have the form it must have.
    #[error("{what} in {} cannot be understood", path.display())]
    Unreadable {
        /// What was looked for.
        what: String,
        /// In which file.
        path: PathBuf,
    },
    /// A promotion was begun here before, and its number may not be taken twice.
    #[error("timeline {0} was begun here already; another grant is needed")]
    TimelineMade(u32),
    /// Somebody reported a timeline that nobody can have begun.
    #[error("timeline {least} is too far from {own}, where this instance is")]
    TimelineFar {
        /// The newest one here.
        own: u32,
        /// The one to begin.
        least: u32,
    },
    /// A program failed.
    #[error("{program} failed ({status}): {last_lines}")]
    Program {
        /// Its name.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        last_lines: String,
    },
    /// A program did not end in time.
    #[error("{program} did not end within {after:?}")]
    ProgramTimedOut {
        /// Its name.
        program: String,
        /// The limit.
        after: Duration,
    },
    /// A rewind was interrupted here: only a clone may follow.
    #[error("an interrupted {0} left this directory unusable; it needs a clone")]
    Quarantined(String),
    /// Somebody else's cluster, or one that was released.
    #[error("{} is not Regent's: nothing of it is started; `regent agent adopt` first", .0.display())]
    NotAdopted(PathBuf),
    /// A setting of the caller makes no sense.
    #[error("{0}")]
    Setting(String),
}

/// A connection to the server and a question to it.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// No session could be opened.
    #[error("cannot open a session")]
    Connect(#[source] tokio_postgres::Error),
    /// A statement failed.
    #[error("cannot {what}")]
    Statement {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No answer in time.
    #[error("no answer in time: {0}")]
    TimedOut(&'static str),
    /// The server hides values from the agent's role: it lacks `pg_monitor`.
    #[error("the agent's role may not see {0}; grant it pg_monitor")]
    Hidden(&'static str),
    /// The password or another file could not be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// A commit that must be synchronous. Whatever is here: the commit may or may not be there.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// It returned with a warning, so somebody cancelled the wait: it is not acknowledged.
    #[error("the commit returned with a warning ({code}): {message}")]
    Warned {
        /// SQLSTATE.
        code: String,
        /// The server's words.
        message: String,
    },
    /// It did not return in time; it goes on waiting.
    #[error("the commit did not return in time")]
    TimedOut,
    /// An earlier one still waits, and no second one is started.
    #[error("an earlier commit still waits")]
    StillWaiting,
    /// It failed.
    #[error(transparent)]
    Sql(#[from] SqlError),
}

/// A change of a running server: promote, detach, follow, names, clients, slots.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// A file could not be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The server did not answer, or refused.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// A commit that was part of the change failed.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The server could not be reloaded, or one of its processes not be ended.
    #[error("cannot signal the server")]
    Signal(#[source] io::Error),
    /// It did not happen in time. What is on disk stays.
    #[error("not in time: {0}")]
    TimedOut(&'static str),
    /// The server is not in recovery.
    #[error("the server is not in recovery")]
    NotInRecovery,
    /// The server is in recovery.
    #[error("the server is in recovery")]
    InRecovery,
    /// Clients could get in before the epoch is written.
    #[error("clients are let in; close them before a promotion")]
    ClientsOpen,
    /// The server still follows an upstream.
    #[error("the server still has an upstream; detach it first")]
    NotDetached,
}

/// Init, adoption, rewind and clone.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// Files or programs.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The directory is not empty.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// A server runs on it, or seems to.
    #[error("{} may be in use by process {pid}", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// What `postmaster.pid` names.
        pid: i32,
    },
    /// It may not be adopted as it is.
    #[error("{}", .0.join("; "))]
    CannotAdopt(Vec<String>),
    /// No rewind is possible: neither hint bits are logged nor do pages have checksums, or the
    /// histories share nothing.
    #[error("a rewind is not possible: {0}; clone instead")]
    CannotRewind(String),
    /// The source did not answer.
    #[error(transparent)]
    Sql(#[from] SqlError),
}
