//! PostgreSQL 13 to 18 behind the trait `Engine`. All SQL of Regent is in this folder.
//!
//! | file | what it has |
//! |---|---|
//! | `options`, `programs`, `control` | where an instance lives, its programs, what is on disk |
//! | `durable`, `managed`, `hba`, `passfile`, `scram`, `marker` | the files that Regent writes |
//! | `init`, `start`, `rewind`, `copy` | what happens to a directory without a server |
//! | `adopt`, `foreign`, `release` | a cluster that was not, or will not be, Regent's |
//! | `link`, `secure`, `observe`, `commit` | sessions, facts, commits that must be acknowledged |
//! | `knock` | whether another server is there |
//! | `standby`, `sync_names`, `clients`, `slots` | changes of a running server |
//! | `sessions`, `memory` | whose commits wait for less than they should |
//! | `history`, `wal` | timelines and records |
//!
//! Three roles, none a superuser: one observes, promotes and writes Regent's own two tables, one
//! streams, one reads files for a rewind.

mod adopt;
mod clients;
mod commit;
mod control;
mod copy;
mod durable;
mod foreign;
mod hba;
mod history;
mod init;
mod knock;
mod link;
mod managed;
mod marker;
mod memory;
mod observe;
mod options;
mod passfile;
mod programs;
mod release;
mod rewind;
mod scram;
mod secure;
mod sessions;
mod slots;
mod source;
mod standby;
mod start;
mod sync_names;
mod wal;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use regent_core::id::Epoch;
use regent_core::role::Position;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::error::SqlState;

pub use adopt::{Ask, Survey};
pub use control::Running;
pub use options::Options;
pub use programs::Programs;
pub use secure::TlsFiles;

use crate::engine::{Engine, Postmaster};
use crate::error::{ChangeError, CommitError, DiskError, RebuildError, SqlError};
use crate::facts::{
    CleanStop, Discovery, GenerationId, HistoryFile, LostTransactions, Lowered, LoweredSession,
    Observation, Override, Relation, SourceLine, Switch,
};
use crate::orders::{Secret, Secrets, Source, StartAs, StartCommand, SyncNames, Upstream};
use commit::Lane;
use link::{For, Link};
use managed::Managed;
pub(crate) use managed::names_text;

const AGENT: &str = "regent_agent";
const REPLICATION: &str = "regent_replication";
const REWIND: &str = "regent_rewind";

const CANARY: &str = "UPDATE regent.canary SET n = n + 1 WHERE id = 1";
/// What tells the probe of a change of names from the canary, in the server's list of sessions.
const PROBE_ROW: &str = "WHERE id = 2";
const PROBE: &str = "UPDATE regent.canary SET n = n + 1 WHERE id = 2";

/// One PostgreSQL instance.
pub struct Postgres {
    options: Arc<Options>,
    programs: Programs,
    /// Held by whatever changes the directory, until that is over: also when nobody waits for it
    /// any more.
    turn: Arc<Mutex<()>>,
    monitor: Mutex<Option<Arc<Link>>>,
    canary: Lane,
    epoch: Lane,
    probe: Lane,
    /// How its processes are looked into.
    eyes: Mutex<Option<memory::Known>>,
}

impl Postgres {
    /// Finds the programs that fit the data.
    ///
    /// # Errors
    /// Names what is missing and where it was looked for.
    pub fn new(options: Options) -> Result<Self, DiskError> {
        let wanted = control::data_version(&options.data_dir)?;
        let programs =
            Programs::find(options.bin_dir.as_deref(), wanted, options.run_as.as_deref())?;
        Ok(Self {
            options: Arc::new(options),
            programs,
            turn: Arc::default(),
            monitor: Mutex::default(),
            canary: Lane::default(),
            epoch: Lane::default(),
            probe: Lane::default(),
            eyes: Mutex::default(),
        })
    }

    /// The programs in use.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Makes a role that may log in, and a database that it owns. Only while no server runs on the
    /// directory, and only where it would come up as a primary.
    ///
    /// # Errors
    /// When the directory may be in use, or the server's program refuses.
    pub async fn create_app(
        &self,
        user: &str,
        password: &Secret,
        database: &str,
    ) -> Result<(), RebuildError> {
        init::create_app(&self.options, &self.programs, user, password, database).await
    }

    /// Makes a superuser for people, who logs in with this password. As [`Postgres::create_app`].
    ///
    /// # Errors
    /// When the directory may be in use, or the server's program refuses.
    pub async fn create_admin(&self, user: &str, password: &Secret) -> Result<(), RebuildError> {
        init::create_admin(&self.options, &self.programs, user, password).await
    }

    /// What an adoption of the directory would replace, and what speaks against it. Changes nothing.
    ///
    /// # Errors
    /// When what is there cannot be read.
    pub async fn survey(&self, ask: &Ask) -> Result<Survey, DiskError> {
        adopt::survey(&self.options, &self.programs, ask).await
    }

    /// Makes Regent's roles in the server that runs, and writes a checkpoint, so that it stops fast.
    ///
    /// # Errors
    /// When the superuser cannot log in, or the server refuses.
    pub async fn adopt_running(&self, survey: &Survey, ask: &Ask) -> Result<(), RebuildError> {
        adopt::make_ready(&self.options, &self.programs, survey, ask).await
    }

    /// Makes a cluster that was stopped in order one of Regent's: roles, settings, access; closed on
    /// disk. What is replaced is kept aside. May be repeated after a failure.
    ///
    /// # Errors
    /// What speaks against it, or what failed.
    pub async fn adopt(&self, ask: &Ask) -> Result<GenerationId, RebuildError> {
        let _turn = self.turn().await;
        adopt::adopt(&self.options, &self.programs, ask).await
    }

    /// Makes a closed directory an ordinary one, which starts with its own settings. Only when nobody
    /// can be granted the role any more.
    ///
    /// # Errors
    /// When a server runs, or a file cannot be written.
    pub async fn release(&self) -> Result<(), RebuildError> {
        let _turn = self.turn().await;
        release::release(&self.options, &self.programs)
    }

    /// The server that runs on the directory, whoever started it.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub async fn running(&self) -> Result<Option<Running>, DiskError> {
        self.disk(|options, _| control::running(&options.data_dir)).await
    }

    /// The right to change what lies on disk. An operation that is given up may still be at it, in
    /// a thread or a program that cannot be called back: it has this right until its end, and whoever
    /// comes next waits for that, so that what is on disk afterwards is the newer one's work.
    async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// File work that changes something.
    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Options, &Programs) -> Result<T, DiskError> + Send + 'static,
    ) -> Result<T, DiskError> {
        let turn = self.turn().await;
        self.disk(move |options, programs| {
            let _turn = turn;
            work(options, programs)
        })
        .await
    }

    /// File work, away from the threads that answer: a disk that hangs must not stop the agent.
    async fn disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Options, &Programs) -> Result<T, DiskError> + Send + 'static,
    ) -> Result<T, DiskError> {
        let (options, programs) = (Arc::clone(&self.options), self.programs.clone());
        match tokio::task::spawn_blocking(move || work(&options, &programs)).await {
            Ok(result) => result,
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }

    /// The session that stays open, opened again if it ended.
    async fn monitor(&self, by: Instant) -> Result<Arc<Link>, SqlError> {
        let mut held = timeout_at(by, self.monitor.lock())
            .await
            .map_err(|_| SqlError::TimedOut("another session is being opened"))?;
        if let Some(link) = held.as_ref().filter(|link| !link.is_closed()) {
            return Ok(Arc::clone(link));
        }
        let link = Arc::new(Link::open(&self.options, AGENT, For::Facts, by).await?);
        *held = Some(Arc::clone(&link));
        Ok(link)
    }

    /// Drops a session that did not answer: its next answer would be to an old question.
    async fn forget(&self, link: &Arc<Link>) {
        let mut held = self.monitor.lock().await;
        if held.as_ref().is_some_and(|now| Arc::ptr_eq(now, link)) {
            *held = None;
        }
    }

    async fn facts(&self, by: Instant) -> Result<Observation, SqlError> {
        let free = self
            .disk(|options, _| {
                let dir = &options.data_dir;
                let stat = rustix::fs::statvfs(dir).map_err(|e| DiskError::Io {
                    what: "look at the file system of",
                    path: dir.clone(),
                    source: e.into(),
                })?;
                Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
            })
            .await?;
        let link = self.monitor(by).await?;
        let seen = observe::observe(&link, free, by).await;
        if seen.is_err() {
            self.forget(&link).await;
        }
        let mut seen = seen?;
        if seen.in_recovery && seen.receiver.is_none() {
            // Without a stream only the files say on which timeline the last WAL came.
            let known = seen.position.timeline;
            seen.position.timeline =
                self.disk(move |o, _| wal::newest_timeline(&o.data_dir, known)).await?;
        }
        Ok(seen)
    }
}

fn after(within: Duration) -> Instant {
    Instant::now() + within
}

#[async_trait]
impl Engine for Postgres {
    async fn settled(&self) {
        drop(self.turn().await);
    }

    async fn check(&self) -> Result<Discovery, DiskError> {
        control::discover(&self.options, &self.programs).await
    }

    async fn init(&self, secrets: &Secrets) -> Result<GenerationId, RebuildError> {
        init::init(&self.options, &self.programs, secrets).await
    }

    async fn prepare_start(&self, start: &StartAs) -> Result<StartCommand, DiskError> {
        let start = start.clone();
        self.change(move |options, programs| start::prepare(options, programs, &start)).await
    }

    async fn after_start(&self) -> Result<(), DiskError> {
        self.change(|options, _| start::after(options)).await
    }

    async fn probe(&self, within: Duration) -> Result<Duration, SqlError> {
        let began = Instant::now();
        let by = began + within;
        let link = match Link::open(&self.options, AGENT, For::Facts, by).await {
            // It is alive and says so: another primary would be as full a moment later.
            Err(SqlError::Connect(e)) if e.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) => {
                return Ok(began.elapsed());
            }
            other => other?,
        };
        link.row("ask anything", "SELECT 1", by).await?;
        Ok(began.elapsed())
    }

    async fn knock(&self, address: &str) -> std::io::Result<()> {
        knock::knock(address).await
    }

    async fn observe(&self, within: Duration) -> Result<Observation, SqlError> {
        self.facts(after(within)).await
    }

    async fn canary(&self, within: Duration) -> Result<Duration, CommitError> {
        self.canary.run(&self.options, CANARY, after(within)).await
    }

    async fn write_epoch(&self, epoch: Epoch, within: Duration) -> Result<Duration, CommitError> {
        // Writes in any case: a transaction that changed nothing would return without a wait.
        let statement = format!(
            "INSERT INTO regent.epoch (incarnation, revision) VALUES ({}, {})
             ON CONFLICT (incarnation, revision) DO UPDATE SET at = now()",
            epoch.incarnation, epoch.revision
        );
        let by = after(within);
        let names = self
            .disk(|options, programs| {
                Ok(Managed::load(&options.data_dir, programs.owner)?.get(managed::NAMES).to_owned())
            })
            .await
            .map_err(SqlError::from)?;
        self.epoch.run_under(&self.options, &names, &statement, by).await
    }

    async fn promote(&self, timeline: u32, within: Duration) -> Result<Switch, ChangeError> {
        standby::promote(self, timeline, after(within)).await
    }

    async fn read_history(&self) -> Result<Vec<HistoryFile>, DiskError> {
        self.disk(|o, _| history::read_all(&o.data_dir)).await
    }

    async fn erase_upstream(&self) -> Result<(), DiskError> {
        standby::erase(self).await
    }

    async fn detach(
        &self,
        postmaster: &dyn Postmaster,
        within: Duration,
    ) -> Result<Duration, ChangeError> {
        let began = Instant::now();
        standby::detach(self, postmaster, began + within).await?;
        Ok(began.elapsed())
    }

    async fn recruit(
        &self,
        postmaster: &dyn Postmaster,
        within: Duration,
    ) -> Result<Position, ChangeError> {
        standby::recruit(self, postmaster, after(within)).await
    }

    async fn follow(
        &self,
        upstream: &Upstream,
        postmaster: &dyn Postmaster,
    ) -> Result<(), ChangeError> {
        standby::follow(self, upstream, postmaster).await
    }

    async fn ensure_slots(
        &self,
        instances: &[String],
        within: Duration,
    ) -> Result<(), ChangeError> {
        slots::ensure(&self.options, instances, after(within)).await
    }

    async fn set_sync_names(
        &self,
        names: &SyncNames,
        postmaster: &dyn Postmaster,
        within: Duration,
    ) -> Result<Duration, ChangeError> {
        let began = Instant::now();
        sync_names::set(self, names, postmaster, began + within).await?;
        Ok(began.elapsed())
    }

    async fn open_clients(
        &self,
        refused: &[Override],
        postmaster: &dyn Postmaster,
        within: Duration,
    ) -> Result<(), ChangeError> {
        clients::open(self, refused, postmaster, after(within)).await
    }

    async fn lowered(
        &self,
        postmaster: Option<i32>,
        within: Duration,
    ) -> Result<Lowered, SqlError> {
        sessions::look(self, postmaster, after(within)).await
    }

    async fn shut_out(
        &self,
        refused: &[Override],
        sessions: &[LoweredSession],
        postmaster: &dyn Postmaster,
        within: Duration,
    ) -> Result<(), ChangeError> {
        sessions::shut_out(self, refused, sessions, postmaster, after(within)).await
    }

    async fn close_clients(
        &self,
        postmaster: &dyn Postmaster,
        within: Duration,
    ) -> Result<(), ChangeError> {
        clients::close(self, postmaster, after(within)).await
    }

    async fn checkpoint(&self, within: Duration) -> Result<(), SqlError> {
        let by = after(within);
        let link = Link::open(&self.options, AGENT, For::Commits, by).await?;
        timeout_at(by, link.execute("write a checkpoint", "CHECKPOINT"))
            .await
            .map_err(|_| SqlError::TimedOut("a checkpoint"))?
    }

    async fn clean_stop(&self) -> Result<Option<CleanStop>, DiskError> {
        let dir = &self.options.data_dir;
        let cluster = control::read(dir, &self.programs).await?;
        wal::clean_stop(dir, &self.programs, &cluster).await
    }

    async fn wal_end(&self) -> Result<CleanStop, DiskError> {
        let dir = &self.options.data_dir;
        let cluster = control::read(dir, &self.programs).await?;
        let (end, line) = wal::end(dir, &self.programs, &cluster).await?;
        Ok(CleanStop { end, timeline: line.timeline })
    }

    async fn source_line(&self, source: &Source, within: Duration) -> Result<SourceLine, SqlError> {
        source::line(&self.options, source, within).await
    }

    async fn compare(&self, source: &SourceLine) -> Result<Relation, DiskError> {
        rewind::compare(&self.options, &self.programs, source).await
    }

    async fn needs_rewind(&self, timeline: u32, history: &str) -> Result<bool, DiskError> {
        let parting = rewind::parting(&self.options, &self.programs, timeline, history).await?;
        Ok(parting.from.is_none_or(|from| from < parting.end))
    }

    async fn rewind(
        &self,
        source: &Source,
        timeline: u32,
        history: &str,
    ) -> Result<(GenerationId, LostTransactions), RebuildError> {
        rewind::rewind(self, source, timeline, history).await
    }

    async fn clone_from(
        &self,
        source: &Source,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<GenerationId, RebuildError> {
        copy::copy(self, source, progress).await
    }
}
