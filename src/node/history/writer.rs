//! The history: a bounded queue in front, one thread that writes, reads from anywhere.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use regent_core::state::audit::{AuditHash, AuditRecord};

use super::RecordSource;
use super::gaps::{Missing, Ranges};
use super::store::{Found, Store, StoreError, set_aside};
use crate::http::metrics::Metrics;

/// Batches waiting for the thread: entries make few records each, so this is seconds of the
/// busiest cluster; beyond it is a gap that is filled later.
const MAX_QUEUED: usize = 4_096;
/// Records written at once.
const MAX_BATCH: usize = 1_024;
/// Records fetched at once: well below a message's limit.
const MAX_FETCH: u64 = 1_000;
/// Most records of one [`History::list`].
const MAX_LIST: usize = 10_000;
/// How often gaps are looked at while there are any.
const FILL_INTERVAL: Duration = Duration::from_secs(2);
/// A store that cannot be opened is tried again after this long.
const REOPEN_INTERVAL: Duration = Duration::from_secs(30);
/// Where a link is broken the records below it are of another life of the cluster; so many are
/// given up at once, and fetched again.
const GIVE_UP: u64 = 1_024;

/// Where the history lives and how long.
#[derive(Clone, Debug)]
pub struct HistoryConfig {
    /// A directory of its own.
    pub dir: PathBuf,
    /// Newest records to keep; `None`: all.
    pub keep_records: Option<u64>,
}

/// How the history is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryStatus {
    /// Oldest record stored.
    pub oldest: Option<u64>,
    /// Newest record stored.
    pub newest: Option<u64>,
    /// Newest record that exists, as far as this node was told.
    pub head: u64,
    /// What is missing in between, oldest first.
    pub missing: Vec<Missing>,
    /// Bytes on disk.
    pub bytes: u64,
    /// Why there is no store at present; empty: there is one.
    pub problem: String,
}

/// A piece of the history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Consecutive, verified records.
    pub records: Vec<Arc<AuditRecord>>,
    /// What is missing right behind them, if that is why they end.
    pub missing: Option<Missing>,
}

enum Work {
    Records(Vec<Arc<AuditRecord>>),
    Flush(SyncSender<()>),
}

/// The history of a node; cheap to clone. The thread ends, flushed, when the last clone is gone.
#[derive(Clone)]
pub struct History {
    queue: SyncSender<Work>,
    inner: Arc<Inner>,
}

struct Inner {
    config: HistoryConfig,
    metrics: Arc<Metrics>,
    store: RwLock<Option<Store>>,
    ranges: Mutex<Ranges>,
    head: AtomicU64,
    problem: Mutex<String>,
}

impl History {
    /// Opens the history. Never fails: a store that cannot be opened is set aside, and if that
    /// does not help the node runs without one and says so in [`History::status`].
    pub fn open(config: HistoryConfig, metrics: Arc<Metrics>) -> Self {
        let inner = Arc::new(Inner {
            config,
            metrics,
            store: RwLock::default(),
            ranges: Mutex::default(),
            head: AtomicU64::new(0),
            problem: Mutex::new("it is being opened".into()),
        });
        let (queue, work) = sync_channel(MAX_QUEUED);
        let thread = inner.clone();
        let spawned = std::thread::Builder::new()
            .name("regent-history".into())
            .spawn(move || thread.run(&work));
        if let Err(error) = spawned {
            *inner.problem.lock() = format!("its thread cannot be started: {error}");
        }
        Self { queue, inner }
    }

    /// Takes new records, in order; never waits. What does not fit becomes a gap.
    pub fn record(&self, records: &[Arc<AuditRecord>]) {
        let Some(last) = records.last() else { return };
        self.inner.head.fetch_max(last.number, Ordering::Relaxed);
        // Full, or the thread is gone: the head tells that something is missing.
        let _ = self.queue.try_send(Work::Records(records.to_vec()));
    }

    /// Says how far the chain reaches: at start and after a snapshot, from the state's head.
    pub fn set_head(&self, number: u64) {
        self.inner.head.fetch_max(number, Ordering::Relaxed);
    }

    /// Consecutive records from `from` (0: the oldest stored) on, at most `limit`. Reads the disk:
    /// call it where blocking is allowed. The newest are in the state's window before they are
    /// here.
    pub fn list(&self, from: u64, limit: usize) -> Page {
        self.inner.list(from, limit.min(MAX_LIST))
    }

    /// Oldest record stored.
    pub fn oldest(&self) -> Option<u64> {
        self.inner.ranges.lock().oldest()
    }

    /// What is missing, oldest first.
    pub fn missing(&self) -> Vec<Missing> {
        self.inner.missing()
    }

    /// How it is.
    pub fn status(&self) -> HistoryStatus {
        let (oldest, newest) = {
            let ranges = self.inner.ranges.lock();
            (ranges.oldest(), ranges.newest())
        };
        HistoryStatus {
            oldest,
            newest,
            head: self.inner.head.load(Ordering::Relaxed),
            missing: self.inner.missing(),
            bytes: self.inner.store.read().as_ref().map_or(0, Store::bytes),
            problem: self.inner.problem.lock().clone(),
        }
    }

    /// Waits until everything taken so far is with the kernel; false after `timeout`.
    pub fn flush(&self, timeout: Duration) -> bool {
        let (done, answered) = sync_channel(1);
        let until = Instant::now() + timeout;
        let mut work = Work::Flush(done);
        // The queue may be full for a moment; `send` has no deadline of its own.
        while let Err(error) = self.queue.try_send(work) {
            let std::sync::mpsc::TrySendError::Full(back) = error else { return false };
            if Instant::now() >= until {
                return false;
            }
            work = back;
            std::thread::sleep(Duration::from_millis(5));
        }
        answered.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok()
    }

    /// Fills one gap, the newest first. Returns how many records came.
    pub async fn fill_once(&self, source: &dyn RecordSource) -> usize {
        if !self.inner.problem.lock().is_empty() {
            return 0;
        }
        let Some(missing) = self.missing().pop().map(|gap| gap.newest(MAX_FETCH)) else { return 0 };
        let mut records = source.window_records(missing);
        if records.is_empty() {
            records = source.peer_records(missing).await.into_iter().map(Arc::new).collect();
        }
        let asked = |record: &Arc<AuditRecord>| {
            (missing.first..=missing.last).contains(&record.number)
                && record.computed_hash() == record.hash
        };
        let offered = records.len();
        records.retain(asked);
        if records.len() < offered {
            tracing::warn!(?missing, "a source offered audit records that do not verify");
        }
        records.sort_by_key(|record| record.number);
        let count = records.len();
        match self.queue.try_send(Work::Records(records)) {
            Ok(()) => count,
            Err(_) => 0,
        }
    }

    /// Fills gaps for as long as the history lives.
    pub async fn fill_forever(self, source: Arc<dyn RecordSource>) {
        loop {
            tokio::time::sleep(FILL_INTERVAL).await;
            while self.fill_once(source.as_ref()).await > 0 {
                let history = self.clone();
                let flushed = tokio::task::spawn_blocking(move || history.flush(FILL_INTERVAL));
                if !flushed.await.unwrap_or(false) {
                    break;
                }
            }
        }
    }
}

impl Inner {
    fn run(&self, work: &Receiver<Work>) {
        let mut reopen_at = Instant::now();
        loop {
            if self.store.read().is_none() && Instant::now() >= reopen_at {
                self.open_store();
                reopen_at = Instant::now() + REOPEN_INTERVAL;
            }
            let first = match work.recv_timeout(REOPEN_INTERVAL) {
                Ok(first) => first,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut records = Vec::new();
            let mut waiting = Vec::new();
            for work in std::iter::once(first).chain(work.try_iter()) {
                match work {
                    Work::Records(more) => records.extend(more),
                    Work::Flush(done) => waiting.push(done),
                }
                if records.len() >= MAX_BATCH {
                    break;
                }
            }
            self.work(&records);
            // First the figures, then the answer: who waited for a flush may look at them.
            self.report();
            for done in waiting {
                // Nobody waits any more: fine.
                let _ = done.try_send(());
            }
        }
        if let Some(store) = self.store.write().take() {
            let _ = store.flush();
        }
    }

    fn work(&self, records: &[Arc<AuditRecord>]) {
        let outcome = {
            let store = self.store.read();
            let Some(store) = store.as_ref() else { return };
            self.write(store, records).and_then(|()| store.flush())
        };
        if let Err(error) = outcome {
            self.lose_store(&error);
        }
    }

    fn write(&self, store: &Store, records: &[Arc<AuditRecord>]) -> Result<(), StoreError> {
        for record in records {
            self.give_up_other_life(store, record)?;
        }
        store.put(records.iter().map(Arc::as_ref))?;
        let mut ranges = self.ranges.lock();
        for record in records {
            ranges.insert(record.number);
        }
        drop(ranges);
        let unwanted = self.wanted().saturating_sub(1);
        let oldest = self.ranges.lock().oldest();
        if oldest.is_some_and(|oldest| oldest <= unwanted) {
            store.remove(0, unwanted)?;
            self.ranges.lock().remove(0, unwanted);
        }
        Ok(())
    }

    /// After a restore the chain goes on from an older record: numbers come again with another
    /// content. What does not link with the record at hand is of the other life and goes.
    fn give_up_other_life(&self, store: &Store, record: &AuditRecord) -> Result<(), StoreError> {
        let number = record.number;
        let drop_range = |from: u64, to: u64| {
            store.remove(from, to)?;
            self.ranges.lock().remove(from, to);
            Ok::<(), StoreError>(())
        };
        if let Found::Good(stored) = store.get(number)?
            && stored.hash != record.hash
        {
            drop_range(number, u64::MAX)?;
        }
        let links = |found: Found, fits: &dyn Fn(&AuditRecord) -> bool| match found {
            Found::Good(stored) => fits(&stored),
            Found::Bad => false,
            Found::Nothing => true,
        };
        let hash_of = |stored: &AuditRecord| -> AuditHash { stored.hash };
        if number > 1 && !links(store.get(number - 1)?, &|s| hash_of(s) == record.before) {
            drop_range(number.saturating_sub(GIVE_UP).max(1), number - 1)?;
        }
        if let Some(next) = number.checked_add(1)
            && !links(store.get(next)?, &|s| s.before == record.hash)
        {
            drop_range(next, next.saturating_add(GIVE_UP))?;
        }
        Ok(())
    }

    fn list(&self, from: u64, limit: usize) -> Page {
        let mut page = Page::default();
        let mut bad = None;
        {
            let store = self.store.read();
            let Some(store) = store.as_ref() else { return page };
            let oldest = self.ranges.lock().oldest().unwrap_or(u64::MAX);
            let first = if from == 0 { oldest } else { from };
            let mut before: Option<AuditHash> = None;
            for number in (first..=u64::MAX).take(limit) {
                match store.get(number) {
                    Ok(Found::Good(record)) if before.is_none_or(|hash| hash == record.before) => {
                        before = Some(record.hash);
                        page.records.push(Arc::from(record));
                    }
                    Ok(Found::Nothing) => break,
                    Ok(Found::Good(_) | Found::Bad) => {
                        bad = Some((number, None));
                        break;
                    }
                    Err(error) => {
                        bad = Some((number, Some(error)));
                        break;
                    }
                }
            }
            if let Some((number, None)) = bad {
                tracing::warn!(number, "an audit record of the history is damaged: fetched again");
                if store.remove(number, number).is_ok() {
                    self.ranges.lock().remove(number, number);
                }
            }
        }
        if let Some((_, Some(error))) = bad {
            self.lose_store(&error);
        }
        let next = page.records.last().map_or(from.max(1), |record| record.number + 1);
        page.missing =
            self.missing().into_iter().find(|gap| (gap.first..=gap.last).contains(&next));
        page
    }

    /// First number that is to be kept.
    fn wanted(&self) -> u64 {
        let head = self.head.load(Ordering::Relaxed);
        self.config.keep_records.map_or(1, |keep| head.saturating_sub(keep).saturating_add(1))
    }

    fn missing(&self) -> Vec<Missing> {
        let head = self.head.load(Ordering::Relaxed);
        self.ranges.lock().missing(self.wanted(), head)
    }

    fn open_store(&self) {
        match self.open_and_scan() {
            Ok(()) => self.problem.lock().clear(),
            Err(error) => self.lose_store(&error),
        }
        self.report();
    }

    fn open_and_scan(&self) -> Result<(), StoreError> {
        let store = Store::open(&self.config.dir)?;
        let mut ranges = Ranges::default();
        let mut bad = Vec::new();
        store.scan(|number, good| if good { ranges.insert(number) } else { bad.push(number) })?;
        for number in &bad {
            store.remove(*number, *number)?;
        }
        if !bad.is_empty() {
            tracing::warn!(
                count = bad.len(),
                "damaged audit records of the history are fetched again"
            );
        }
        if let Some(newest) = ranges.newest() {
            self.head.fetch_max(newest, Ordering::Relaxed);
        }
        *self.ranges.lock() = ranges;
        *self.store.write() = Some(store);
        Ok(())
    }

    /// The store is of no use: set it aside and begin anew. Nothing is lost that matters.
    fn lose_store(&self, error: &StoreError) {
        let mut store = self.store.write();
        *store = None;
        *self.ranges.lock() = Ranges::default();
        self.metrics.audit_rebuilt.inc();
        let why = error.to_string();
        let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        match set_aside(&self.config.dir) {
            Ok(aside) => {
                let aside = aside.display();
                tracing::warn!(%why, %source, %aside, "the audit history is set aside and rebuilt");
            }
            Err(error) => {
                tracing::warn!(%why, %source, %error, "the audit history cannot be set aside")
            }
        }
        match Store::open(&self.config.dir) {
            Ok(fresh) => {
                *store = Some(fresh);
                self.problem.lock().clear();
            }
            Err(error) => {
                *self.problem.lock() = format!("it cannot be opened: {error}");
                tracing::warn!(%error, "the node goes on without an audit history");
            }
        }
    }

    fn report(&self) {
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let missing: u64 = self.missing().iter().map(Missing::count).sum();
        self.metrics.audit_records.set(count(self.head.load(Ordering::Relaxed)));
        self.metrics.audit_gaps.set(count(missing));
        let bytes = self.store.read().as_ref().map_or(0, Store::bytes);
        self.metrics.audit_bytes.set(count(bytes));
    }
}
