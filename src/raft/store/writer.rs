//! Group commit: drains a queue, appends once per batch, completes callbacks in order.
//!
//! The same driver runs on a thread of its own over a real disk, and inline, without a thread,
//! in a simulation. It must never complete a request before its group is synced, nor two requests
//! out of order: the layer above takes a completion as a promise about everything before it.
//!
//! A full disk is waited out: the batch is held and tried again, and nothing behind it is
//! acknowledged meanwhile, except purge marks of entries that are durable already, because purging
//! is what makes room. A failed disk ends everything.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;

use super::figures::{Counters, LogFigures};
use super::record::{self, Record};
use super::segment::{Preparation, ZeroedFile};
use super::wal::{Wal, WalError};

/// Called once, when the records are durable, or never will be.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Why the driver waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// A group is written and not yet synced: the time that an fdatasync takes. A simulator that
    /// crashes here meets unsynced writes.
    Sync,
    /// The disk is full; the same batch is tried again after this pause.
    Retry,
}

/// How long a full disk is left alone before the held batch is tried again.
pub const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Requests in one group at most; keeps the wait of the first one short.
const MAX_BATCH_REQUESTS: usize = 1024;
/// Bytes in one group at most, unless a single request is larger: a few milliseconds of writing.
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;

/// A handle to the driver of a log; clones share it. The queue has no limit of its own: the layer
/// above bounds what is under way and looks at [`Writer::queued`].
#[derive(Clone)]
pub struct Writer(Arc<Handle>);

struct Handle {
    queue: UnboundedSender<Message>,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Not joined here: the last clone may be dropped by a callback, on the driver itself.
        let _ = self.queue.unbounded_send(Message::Close);
    }
}

#[derive(Default)]
struct Shared {
    queued: AtomicUsize,
    counters: Counters,
    /// Why nothing is acknowledged; empty while the log can be written.
    problem: Mutex<String>,
    /// What is wrong and stops nothing.
    trouble: Mutex<String>,
}

struct Request {
    records: Vec<Record>,
    done: Done,
}

enum Message {
    Request(Request),
    Prepared(io::Result<ZeroedFile>),
    Close,
}

/// Where segments are zeroed ahead of need.
enum Ahead {
    /// On another thread, which answers through the queue.
    Thread(mpsc::Sender<Preparation>),
    /// At once, because simulated zeros cost nothing.
    Inline,
}

impl Writer {
    /// Drives the log on a thread of its own; a second one zeroes segments ahead.
    pub fn spawn_thread(wal: Wal) -> io::Result<Self> {
        let (queue, messages) = unbounded();
        let (prepare, preparations) = mpsc::channel::<Preparation>();
        let answers = queue.clone();
        let ahead = std::thread::Builder::new().name("wal-ahead".into()).spawn(move || {
            while let Ok(mut preparation) = preparations.recv() {
                // The writer may be gone; then nobody needs the file.
                let _ = answers.unbounded_send(Message::Prepared(preparation.run()));
            }
        })?;
        let shared = Arc::new(Shared::default());
        let driver = Driver::new(wal, messages, shared.clone(), Ahead::Thread(prepare));
        let main = std::thread::Builder::new().name("wal".into()).spawn(move || {
            futures::executor::block_on(driver.run(|pause| {
                if pause == Pause::Retry {
                    // This thread has nothing else to do while the disk is full.
                    std::thread::sleep(RETRY_PAUSE);
                }
                std::future::ready(())
            }));
        })?;
        Ok(Self(Arc::new(Handle { queue, shared, threads: Mutex::new(vec![main, ahead]) })))
    }

    /// Drives the log by the returned future, without a thread; `pause` says how long to wait.
    /// Dropping the future is a crash: callbacks that have not run never will.
    pub fn task<P, F>(wal: Wal, pause: P) -> (Self, impl Future<Output = ()> + Send + 'static)
    where
        P: FnMut(Pause) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (queue, messages) = unbounded();
        let shared = Arc::new(Shared::default());
        let driver = Driver::new(wal, messages, shared.clone(), Ahead::Inline);
        let writer = Self(Arc::new(Handle { queue, shared, threads: Mutex::default() }));
        (writer, driver.run(pause))
    }

    /// Queues records; `done` runs on the driver, in the order of the calls. After
    /// [`Writer::close`] it runs here, with an error.
    pub fn submit(&self, records: Vec<Record>, done: Done) {
        self.0.shared.queued.fetch_add(1, Ordering::Relaxed);
        let message = Message::Request(Request { records, done });
        if let Err(refused) = self.0.queue.unbounded_send(message)
            && let Message::Request(request) = refused.into_inner()
        {
            self.0.shared.queued.fetch_sub(1, Ordering::Relaxed);
            (request.done)(Err(closed()));
        }
    }

    /// Requests that wait or are under way.
    pub fn queued(&self) -> usize {
        self.0.shared.queued.load(Ordering::Relaxed)
    }

    /// What was done so far: requests against flushes says how well they share them.
    pub fn figures(&self) -> LogFigures {
        self.0.shared.counters.read()
    }

    /// Why nothing is acknowledged, for people; empty while the log can be written.
    pub fn problem(&self) -> String {
        self.0.shared.problem.lock().clone()
    }

    /// What is wrong and stops nothing, for people: no reason to refuse anything or to step aside.
    pub fn trouble(&self) -> String {
        self.0.shared.trouble.lock().clone()
    }

    /// Finishes what is queued, then ends the driver and joins its threads. Afterwards every
    /// submit fails. What a full disk holds back fails too. Must not be called by a callback.
    pub fn close(&self) {
        let _ = self.0.queue.unbounded_send(Message::Close);
        for thread in self.0.threads.lock().drain(..) {
            // A panic of the driver has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

fn closed() -> io::Error {
    io::Error::other("the log is closed")
}

struct Driver {
    wal: Option<Wal>,
    messages: UnboundedReceiver<Message>,
    waiting: VecDeque<Request>,
    closing: bool,
    shared: Arc<Shared>,
    ahead: Ahead,
}

impl Driver {
    fn new(
        wal: Wal,
        messages: UnboundedReceiver<Message>,
        shared: Arc<Shared>,
        ahead: Ahead,
    ) -> Self {
        Self { wal: Some(wal), messages, waiting: VecDeque::new(), closing: false, shared, ahead }
    }

    async fn run<P, F>(mut self, mut pause: P)
    where
        P: FnMut(Pause) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(mut wal) = self.wal.take() else {
            return;
        };
        while self.gather(&mut wal).await {
            let batch = self.next_batch();
            if let Err(what) = self.commit(&mut wal, batch, &mut pause).await {
                self.fail_all(&what).await;
                return;
            }
            self.prepare(&mut wal);
        }
        if let Err(error) = wal.close() {
            tracing::warn!(%error, "the log was closed without a mark; nothing is lost");
        }
        // Ends the other thread, before the lock of the directory could be taken again.
        self.messages.close();
    }

    /// Waits for something to do and takes all there is; `false` at the end.
    async fn gather(&mut self, wal: &mut Wal) -> bool {
        loop {
            while let Some(Some(message)) = self.messages.next().now_or_never() {
                self.take(message, wal);
            }
            if !self.waiting.is_empty() {
                return true;
            }
            if self.closing {
                return false;
            }
            match self.messages.next().await {
                Some(message) => self.take(message, wal),
                None => return false,
            }
        }
    }

    fn take(&mut self, message: Message, wal: &mut Wal) {
        match message {
            Message::Request(request) => self.waiting.push_back(request),
            Message::Prepared(outcome) => wal.prepared(outcome),
            Message::Close => {
                self.closing = true;
                self.messages.close();
            }
        }
    }

    fn next_batch(&mut self) -> VecDeque<Request> {
        let mut batch = VecDeque::new();
        let mut bytes = 0usize;
        while let Some(request) = self.waiting.front() {
            let more: usize = request.records.iter().map(record::payload_bytes).sum();
            let full = batch.len() >= MAX_BATCH_REQUESTS || bytes + more > MAX_BATCH_BYTES;
            if full && !batch.is_empty() {
                break;
            }
            bytes += more;
            batch.extend(self.waiting.pop_front());
        }
        batch
    }

    /// Makes one batch durable, however long the disk is full; the error is final.
    async fn commit<P, F>(
        &mut self,
        wal: &mut Wal,
        mut batch: VecDeque<Request>,
        pause: &mut P,
    ) -> Result<(), String>
    where
        P: FnMut(Pause) -> F,
        F: Future<Output = ()>,
    {
        loop {
            let records: Vec<Record> =
                batch.iter().flat_map(|request| request.records.iter().cloned()).collect();
            let outcome = match wal.write_group(&records) {
                Ok(()) => {
                    pause(Pause::Sync).await;
                    let begun = Instant::now();
                    let synced = wal.sync_group();
                    self.shared.counters.flushed(begun.elapsed());
                    synced
                }
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => {
                    self.shared.counters.durable(batch.len(), wal.written_bytes());
                    self.set_problem("");
                    self.set_trouble(wal.trouble().unwrap_or_default());
                    for request in batch {
                        self.complete(request, Ok(()));
                    }
                    return Ok(());
                }
                Err(error @ WalError::Full(_)) => {
                    self.set_problem(&format!(
                        "{error}. Nothing is acknowledged until there is space again; it is tried \
                         every {} ms",
                        RETRY_PAUSE.as_millis()
                    ));
                    self.overtake(wal, &mut batch);
                    self.set_trouble(wal.trouble().unwrap_or_default());
                    if batch.is_empty() {
                        // All of it was written after all: nothing is held any more.
                        self.set_problem("");
                        return Ok(());
                    }
                    if self.closing {
                        for request in batch.into_iter().rev() {
                            self.waiting.push_front(request);
                        }
                        return Err(format!("{error}, and the log is being closed"));
                    }
                    pause(Pause::Retry).await;
                    while let Some(Some(message)) = self.messages.next().now_or_never() {
                        self.take(message, wal);
                    }
                }
                Err(error) => {
                    // Kept, so that they fail in order, ahead of what waits.
                    for request in batch.into_iter().rev() {
                        self.waiting.push_front(request);
                    }
                    return Err(error.to_string());
                }
            }
        }
    }

    /// Writes the purge marks among what is held: they make room. Only marks of entries that are
    /// durable already may pass the entries before them.
    fn overtake(&mut self, wal: &mut Wal, batch: &mut VecDeque<Request>) {
        let durable = wal.last_index();
        let frees = |request: &Request| {
            !request.records.is_empty()
                && request.records.iter().all(
                    |record| matches!(record, Record::Purge { index, .. } if Some(*index) <= durable),
                )
        };
        for held in [batch, &mut self.waiting] {
            let mut at = 0;
            while at < held.len() {
                if !frees(&held[at]) || wal.append(&held[at].records).is_err() {
                    at += 1;
                    continue;
                }
                self.shared.counters.durable(1, wal.written_bytes());
                if let Some(request) = held.remove(at) {
                    self.shared.queued.fetch_sub(1, Ordering::Relaxed);
                    (request.done)(Ok(()));
                }
            }
        }
    }

    fn prepare(&mut self, wal: &mut Wal) {
        let Some(mut preparation) = wal.preparation() else {
            return;
        };
        match &self.ahead {
            Ahead::Inline => wal.prepared(preparation.run()),
            Ahead::Thread(thread) => {
                if let Err(refused) = thread.send(preparation) {
                    drop(refused);
                    wal.prepared(Err(closed()));
                }
            }
        }
    }

    /// The disk has failed: nothing that waits or comes later is ever acknowledged.
    async fn fail_all(mut self, what: &str) {
        self.set_problem(what);
        tracing::error!(what, "the log has failed; this node neither votes nor acknowledges");
        loop {
            while let Some(request) = self.waiting.pop_front() {
                self.complete(request, Err(io::Error::other(what.to_string())));
            }
            match self.messages.next().await {
                Some(Message::Request(request)) => self.waiting.push_back(request),
                Some(Message::Prepared(_)) => {}
                Some(Message::Close) => self.messages.close(),
                None => return,
            }
        }
    }

    fn complete(&self, request: Request, outcome: io::Result<()>) {
        self.shared.queued.fetch_sub(1, Ordering::Relaxed);
        (request.done)(outcome);
    }

    fn set_trouble(&self, what: &str) {
        let mut trouble = self.shared.trouble.lock();
        if *trouble != what {
            if !what.is_empty() {
                tracing::warn!(what, "the log goes on, but something is wrong");
            }
            what.clone_into(&mut trouble);
        }
    }

    fn set_problem(&self, what: &str) {
        let mut problem = self.shared.problem.lock();
        if *problem != what {
            if what.is_empty() {
                tracing::info!("the log is well again");
            } else {
                tracing::warn!(what, "the log has a problem");
            }
            what.clone_into(&mut problem);
        }
    }
}
