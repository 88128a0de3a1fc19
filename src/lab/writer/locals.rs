//! Clients on a host's own side of a cut: sessions that were open before it, each with at most one
//! row under way. One session would hang at its first row and prove nothing about the time after it;
//! these send a row every few milliseconds for as long as one of them is free.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::steady::Ready;
use super::{Access, AccessError, Ledger, Pace, Table};

/// Sessions; below what PostgreSQL takes by default, with room for others.
const SESSIONS: usize = 50;
/// One row each 60 ms: if every row hangs, the sessions last for the lease of a lab, 3 s.
const EVERY: Duration = Duration::from_millis(60);
/// New sessions under way at once, when all old ones hang or are gone.
const FRESH: usize = 2;

/// Clients that run until they are stopped or dropped.
pub struct Locals {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    access: Access,
    host: usize,
    table: Table,
    idle: Mutex<Vec<Ready>>,
    next: AtomicI64,
    stop: AtomicBool,
    ledger: Mutex<Ledger>,
}

impl Locals {
    /// Opens the sessions to one host, into a table that exists, and begins to write. Rows wait for
    /// their answer until the session ends.
    ///
    /// # Errors
    /// A session could not be opened.
    pub async fn start(access: Access, host: usize, table: Table) -> Result<Self, AccessError> {
        let mut idle = Vec::new();
        for _ in 0..SESSIONS {
            let session = access.writable_host(host, Pace::STEADY.connect).await?;
            idle.push(Ready::prepare(session, host, &table, Pace::STEADY).await?);
        }
        let shared = Arc::new(Shared {
            access,
            host,
            table,
            idle: Mutex::new(idle),
            next: AtomicI64::new(1),
            stop: AtomicBool::new(false),
            ledger: Mutex::default(),
        });
        let task = tokio::spawn(write(Arc::clone(&shared)));
        Ok(Self { shared, task })
    }

    /// Rows acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.shared.ledger.lock().summary().acked
    }

    /// Stops, and hands the ledger over. Rows that still wait are in no ledger.
    pub async fn stop(mut self) -> Ledger {
        self.shared.stop.store(true, Ordering::Relaxed);
        // An error is a panic of the task; what it wrote down until then is what there is.
        let _ = (&mut self.task).await;
        std::mem::take(&mut *self.shared.ledger.lock())
    }
}

impl Drop for Locals {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn write(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let fresh = Arc::new(Semaphore::new(FRESH));
    let mut under_way = JoinSet::new();
    while !shared.stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        while under_way.try_join_next().is_some() {}
        let ready = shared.idle.lock().pop();
        let mine = Arc::clone(&shared);
        match (ready, Arc::clone(&fresh).try_acquire_owned()) {
            (Some(ready), _) => {
                under_way.spawn(row(mine, ready));
            }
            (None, Ok(place)) => {
                under_way.spawn(async move {
                    match open(&mine).await {
                        Ok(ready) => row(mine, ready).await,
                        Err(error) => mine.ledger.lock().trouble(error.to_string()),
                    }
                    drop(place);
                });
            }
            (None, Err(_)) => {}
        }
    }
}

async fn open(shared: &Shared) -> Result<Ready, AccessError> {
    let session = shared.access.writable_host(shared.host, Pace::STEADY.connect).await?;
    Ready::prepare(session, shared.host, &shared.table, Pace::STEADY).await
}

async fn row(shared: Arc<Shared>, ready: Ready) {
    let id = shared.next.fetch_add(1, Ordering::Relaxed);
    let (attempt, why, usable) = ready.row(id, Duration::MAX).await;
    let mut ledger = shared.ledger.lock();
    ledger.note(attempt);
    if let Some(why) = why {
        ledger.trouble(why);
    }
    drop(ledger);
    if usable {
        shared.idle.lock().push(ready);
    }
}
