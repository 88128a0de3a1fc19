//! Commits that must be acknowledged by the synchronous set: canary, probe, epoch.
//!
//! A commit that waits cannot be given up: closing the session leaves the backend waiting, and it
//! keeps its row lock. So a lane has at most one, in a task of its own; a caller whose time is up
//! leaves it there, and the next caller waits for it first. Were it otherwise, an hour without a
//! standby would fill the server with waiting sessions.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::AGENT;
use super::link::{For, Link, get};
use super::options::Options;
use crate::error::{CommitError, SqlError};

type Ended = (Option<Link>, Result<Duration, CommitError>);

#[derive(Default)]
struct Inside {
    link: Option<Link>,
    running: Option<JoinHandle<Ended>>,
    /// The names that the session showed when it was opened, until its next commit.
    known: Option<String>,
}

/// A place for one commit at a time.
#[derive(Default)]
pub(super) struct Lane(Mutex<Inside>);

/// A statement wrapped so that its commit waits for the set whatever role or database say.
pub(super) fn synchronous(statement: &str) -> String {
    format!("BEGIN; SET LOCAL synchronous_commit = on; {statement}; COMMIT")
}

async fn commit(options: Arc<Options>, link: Option<Link>, sql: String, by: Instant) -> Ended {
    let link = match link.filter(|link| !link.is_closed()) {
        Some(link) => link,
        None => match Link::open(&options, AGENT, For::Commits, by).await {
            Ok(link) => link,
            Err(e) => return (None, Err(e.into())),
        },
    };
    link.take_warnings();
    let began = Instant::now();
    if let Err(e) = link.execute("commit", &sql).await {
        return (None, Err(e.into()));
    }
    match link.take_warnings().pop() {
        Some((code, message)) => (Some(link), Err(CommitError::Warned { code, message })),
        None => (Some(link), Ok(began.elapsed())),
    }
}

impl Inside {
    async fn begin(
        &mut self,
        options: &Arc<Options>,
        statement: &str,
        by: Instant,
    ) -> Result<(), CommitError> {
        if self.running.is_some() && self.finish(by).await.is_none() {
            return Err(CommitError::StillWaiting);
        }
        self.known = None;
        let task = commit(Arc::clone(options), self.link.take(), synchronous(statement), by);
        self.running = Some(tokio::spawn(task));
        Ok(())
    }

    /// Has a session of a server that has read `names`. Only what a session shows when it is new is
    /// the postmaster's; an older one reads the file by itself, whenever it gets to that.
    async fn knows(
        &mut self,
        options: &Options,
        names: &str,
        by: Instant,
    ) -> Result<(), CommitError> {
        const ASK: &str = "SELECT current_setting('synchronous_standby_names') AS names";
        let is_open = self.link.as_ref().is_some_and(|link| !link.is_closed());
        if is_open && self.known.as_deref() == Some(names) {
            return Ok(());
        }
        loop {
            let link = Link::open(options, AGENT, For::Commits, by).await?;
            let row = link.row("read the names", ASK, by).await?;
            if get::<String>(&row, "names")? == names {
                (self.link, self.known) = (Some(link), Some(names.to_owned()));
                return Ok(());
            }
            let pause = timeout_at(by, sleep(Duration::from_millis(2)));
            pause.await.map_err(|_| SqlError::TimedOut("the server reads its settings"))?;
        }
    }

    /// Waits for what runs, until `by`; `None` when it still does.
    async fn finish(&mut self, by: Instant) -> Option<Result<Duration, CommitError>> {
        let task = self.running.as_mut()?;
        let ended = timeout_at(by, task).await.ok()?;
        self.running = None;
        match ended {
            Ok((link, result)) => {
                self.link = link;
                Some(result)
            }
            Err(_) => Some(Err(SqlError::TimedOut("the session was ended").into())),
        }
    }
}

impl Lane {
    async fn lock(&self, by: Instant) -> Result<MutexGuard<'_, Inside>, CommitError> {
        timeout_at(by, self.0.lock()).await.map_err(|_| CommitError::StillWaiting)
    }

    /// One synchronous commit of `statement`; how long it took from its first byte on.
    pub(super) async fn run(
        &self,
        options: &Arc<Options>,
        statement: &str,
        by: Instant,
    ) -> Result<Duration, CommitError> {
        // Held to the end: nobody else may take this one's answer for its own.
        let mut inside = self.lock(by).await?;
        inside.begin(options, statement, by).await?;
        inside.finish(by).await.unwrap_or(Err(CommitError::TimedOut))
    }

    /// Logs in and sees `names` there, for [`Self::run_under`] to find; nothing while a commit runs.
    pub(super) async fn ready(
        &self,
        options: &Arc<Options>,
        names: &str,
        by: Instant,
    ) -> Result<(), CommitError> {
        let mut inside = self.lock(by).await?;
        match inside.running {
            Some(_) => Ok(()),
            None => inside.knows(options, names, by).await,
        }
    }

    /// As [`Self::run`], in a session of a server that has read `names`: what commits there waits
    /// for them.
    pub(super) async fn run_under(
        &self,
        options: &Arc<Options>,
        names: &str,
        statement: &str,
        by: Instant,
    ) -> Result<Duration, CommitError> {
        let mut inside = self.lock(by).await?;
        if inside.running.is_some() && inside.finish(by).await.is_none() {
            return Err(CommitError::StillWaiting);
        }
        inside.knows(options, names, by).await?;
        inside.begin(options, statement, by).await?;
        inside.finish(by).await.unwrap_or(Err(CommitError::TimedOut))
    }

    /// Starts one; it runs on by itself.
    pub(super) async fn begin(
        &self,
        options: &Arc<Options>,
        statement: &str,
        by: Instant,
    ) -> Result<(), CommitError> {
        self.lock(by).await?.begin(options, statement, by).await
    }

    /// Waits for the one that was started.
    pub(super) async fn wait(&self, by: Instant) -> Result<Duration, CommitError> {
        let mut inside = self.lock(by).await?;
        inside.finish(by).await.unwrap_or(Err(CommitError::TimedOut))
    }

    /// Whether one runs now.
    pub(super) async fn is_running(&self) -> bool {
        let inside = self.0.lock().await;
        inside.running.as_ref().is_some_and(|task| !task.is_finished())
    }
}
