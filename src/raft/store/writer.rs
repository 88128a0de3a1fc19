//! Group commit: drains a queue, appends once per batch, completes callbacks in order.

use std::future::Future;
use std::io;
use std::time::Duration;

use super::record::Record;
use super::wal::Wal;

/// Called once, when the records are durable, or never will be.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Why the driver waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// A group is written and not yet synced: the time that an fdatasync takes.
    Sync,
    /// The disk is full; the same batch is tried again after this pause.
    Retry,
}

/// How long a full disk is left alone before the held batch is tried again.
pub const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A handle to the driver of a log; clones share it.
#[derive(Clone)]
pub struct Writer {
    _private: (),
}

impl Writer {
    /// Drives the log on a thread of its own.
    pub fn spawn_thread(wal: Wal) -> io::Result<Self> {
        let _ = wal;
        Ok(Self { _private: () })
    }

    /// Drives the log by the returned future, without a thread; `pause` says how long to wait.
    /// Dropping the future is a crash: callbacks that have not run never will.
    pub fn task<P, F>(wal: Wal, pause: P) -> (Self, impl Future<Output = ()> + Send + 'static)
    where
        P: FnMut(Pause) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let _ = (wal, pause);
        (Self { _private: () }, std::future::ready(()))
    }

    /// Queues records; `done` runs on the driver, in the order of the calls.
    pub fn submit(&self, records: Vec<Record>, done: Done) {
        let _ = (records, done);
    }

    /// Requests that wait or are under way.
    pub fn queued(&self) -> usize {
        0
    }

    /// What is wrong with the disk, for people; empty when all is well.
    pub fn problem(&self) -> String {
        String::new()
    }

    /// Finishes what is queued, then ends the driver (and joins its thread). Afterwards every
    /// submit fails.
    pub fn close(&self) {}
}
