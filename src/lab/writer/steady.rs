//! The steady writer: one connection, one row every few milliseconds, and at once to the next host
//! when a host is gone. What it measures is what an application would see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::MissedTickBehavior;
use tokio_postgres::Statement;
use tokio_postgres::error::{Severity, SqlState};

use super::ledger::{Attempt, Fate, Ledger};
use super::{Access, AccessError, Pace, Session, Table};

/// A writer that runs until it is stopped or dropped.
pub struct Writer {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    ledger: Mutex<Ledger>,
    stop: AtomicBool,
}

impl Writer {
    /// Starts writing into a table that exists. Must be called in a tokio runtime.
    pub fn start(access: Access, table: Table, pace: Pace) -> Self {
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(write(Arc::clone(&shared), access, table, pace));
        Self { shared, task }
    }

    /// What is known so far. Held for a moment only: the writer waits for it.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.shared.ledger.lock()
    }

    /// Waits until a row that was sent at `since` or later is acknowledged, at most `within`; when
    /// that was, and which host said so.
    pub async fn acked_since(&self, since: Instant, within: Duration) -> Option<Attempt> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(attempt) = self.ledger().first_ack(since) {
                return Some(*attempt);
            }
            if Instant::now() >= deadline {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Stops after the row that is under way, and hands the ledger over.
    pub async fn stop(mut self) -> Ledger {
        self.shared.stop.store(true, Ordering::Relaxed);
        // An error is a panic of the task; what it wrote down until then is what there is.
        let _ = (&mut self.task).await;
        std::mem::take(&mut *self.shared.ledger.lock())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection that is ready to take rows.
pub(super) struct Ready {
    session: Session,
    insert: Statement,
    pub(super) host: usize,
}

impl Ready {
    pub(super) async fn prepare(
        session: Session,
        host: usize,
        table: &Table,
        pace: Pace,
    ) -> Result<Self, AccessError> {
        let sql = format!("INSERT INTO {} (id) VALUES ($1)", table.name());
        let insert = session.prepare(&sql, pace.statement).await?;
        Ok(Self { session, insert, host })
    }

    /// Writes one row; what became of it, why if it is not there for certain, and whether the
    /// connection is still of use.
    pub(super) async fn row(&self, id: i64, within: Duration) -> (Attempt, Option<String>, bool) {
        let warned = self.session.warnings();
        let begun = Instant::now();
        let asked = async { self.session.client().execute(&self.insert, &[&id]).await };
        let answer = tokio::time::timeout(within, asked).await;
        let done = Instant::now();
        let (fate, why, usable) = match answer {
            Ok(Ok(_)) if self.session.warnings() == warned => (Fate::Acked, None, true),
            Ok(Ok(_)) => {
                (Fate::Unknown, Some("a commit came back with a warning".to_owned()), true)
            }
            Ok(Err(error)) => {
                let fate = fate_of(&error);
                let source = error;
                let error = AccessError::Postgres { what: "a row", source };
                (fate, Some(error.to_string()), false)
            }
            Err(_) => (Fate::Unknown, Some(format!("a row took longer than {within:?}")), false),
        };
        (Attempt { id, host: self.host, begun, done, fate }, why, usable)
    }
}

/// A single statement that ends in an ERROR was rolled back. FATAL and worse end the session, and
/// may come after the commit is on disk (an administrator's shutdown during the wait for a
/// standby); so may the end of the connection.
fn fate_of(error: &tokio_postgres::Error) -> Fate {
    let Some(server) = error.as_db_error() else { return Fate::Unknown };
    let is_error = match server.parsed_severity() {
        Some(severity) => matches!(severity, Severity::Error),
        None => server.severity() == "ERROR",
    };
    let unclear =
        [SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN, SqlState::TRANSACTION_RESOLUTION_UNKNOWN];
    if is_error && !unclear.contains(server.code()) { Fate::Failed } else { Fate::Unknown }
}

async fn write(shared: Arc<Shared>, access: Access, table: Table, pace: Pace) {
    let mut ready: Option<Ready> = None;
    let (mut next, mut at) = (1_i64, 0);
    let mut ticks = tokio::time::interval(pace.every);
    // After a silence it goes on in its rhythm; it does not catch up in a burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !shared.stop.load(Ordering::Relaxed) {
        let Some(one) = &ready else {
            match connect(&access, &table, pace, at).await {
                Ok(one) => {
                    at = one.host;
                    ready = Some(one);
                }
                Err(error) => {
                    shared.ledger.lock().trouble(error.to_string());
                    tokio::time::sleep(pace.pause).await;
                }
            }
            continue;
        };
        ticks.tick().await;
        let (attempt, why, usable) = one.row(next, pace.statement).await;
        next += 1;
        let mut ledger = shared.ledger.lock();
        ledger.note(attempt);
        if let Some(why) = why {
            ledger.trouble(why);
        }
        drop(ledger);
        if !usable {
            ready = None;
            // One that hangs would take the next deadline too.
            at = (at + 1) % access.hosts.len().max(1);
        }
    }
}

async fn connect(
    access: &Access,
    table: &Table,
    pace: Pace,
    first: usize,
) -> Result<Ready, AccessError> {
    let (session, host) = access.writable(pace, first).await?;
    Ready::prepare(session, host, table, pace).await
}
