//! The prober: fresh connections to every host in parallel, a row through each that takes it. It
//! sees a second primary that a steady client, on one connection, would never meet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::steady::Ready;
use super::{Access, AccessError, Ledger, Pace, Table};

/// Probes of one host under way at once: one that swallows everything is asked again while old
/// questions wait for their deadline; one that is slow is not buried under logins, each of which
/// costs both sides a password check.
const AT_ONCE: usize = 8;

/// A prober that runs until it is stopped or dropped.
pub struct Prober {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    access: Access,
    table: Table,
    pace: Pace,
    next: AtomicI64,
    stop: AtomicBool,
    ledger: Mutex<Ledger>,
}

impl Prober {
    /// Starts probing every host, into a table that exists. Must be called in a tokio runtime.
    pub fn start(access: Access, table: Table, pace: Pace) -> Self {
        let count = access.hosts.len();
        let shared = Arc::new(Shared {
            access,
            table,
            pace,
            next: AtomicI64::new(1),
            stop: AtomicBool::new(false),
            ledger: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for host in 0..count {
            tasks.spawn(probe(Arc::clone(&shared), host));
        }
        Self { shared, tasks }
    }

    /// Stops, waits for the probes under way, and hands the ledger over.
    pub async fn stop(mut self) -> Ledger {
        self.shared.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        std::mem::take(&mut *self.shared.ledger.lock())
    }
}

async fn probe(shared: Arc<Shared>, host: usize) {
    let mut ticks = tokio::time::interval(shared.pace.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut under_way = JoinSet::new();
    while !shared.stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        while under_way.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let shared = Arc::clone(&shared);
        under_way.spawn(async move {
            if let Err(error) = once(&shared, host).await {
                shared.ledger.lock().trouble(format!("host {host}: {error}"));
            }
            drop(place);
        });
    }
    while under_way.join_next().await.is_some() {}
}

async fn once(shared: &Shared, host: usize) -> Result<(), AccessError> {
    let session = shared.access.writable_host(host, shared.pace.connect).await?;
    let ready = Ready::prepare(session, host, &shared.table, shared.pace).await?;
    let id = shared.next.fetch_add(1, Ordering::Relaxed);
    let (attempt, why, _) = ready.row(id, shared.pace.statement).await;
    let mut ledger = shared.ledger.lock();
    ledger.note(attempt);
    if let Some(why) = why {
        ledger.trouble(format!("host {host}: {why}"));
    }
    Ok(())
}
