//! What a log has done since it was opened: counted by its driver, read by whoever shows it.
//!
//! Never part of any decision: the counters are relaxed, so two of them may be a group apart.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of flush times, in microseconds: from 50 us (a flush of a good disk) doubling to
/// 13 s (far beyond every deadline).
pub const FLUSH_BOUNDS_US: [u64; 19] = {
    let mut bounds = [0; 19];
    let mut at = 0;
    while at < bounds.len() {
        bounds[at] = 50 << at;
        at += 1;
    }
    bounds
};

/// One class for each bound, and one for what took longer than all of them.
const CLASSES: usize = FLUSH_BOUNDS_US.len() + 1;

/// Figures of a log at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFigures {
    /// Requests that were made durable.
    pub appends: u64,
    /// Bytes written and flushed, heads and fill included.
    pub bytes: u64,
    /// Flushes by how long they took: class `n` is up to [`FLUSH_BOUNDS_US`]`[n]`, the last one is
    /// longer than all of them.
    pub flushes: [u64; CLASSES],
    /// Time spent in flushes, in microseconds.
    pub flush_us: u64,
}

impl LogFigures {
    /// Flushes, however long they took: one for each group.
    pub fn flush_count(&self) -> u64 {
        self.flushes.iter().sum()
    }
}

/// The counters behind [`LogFigures`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    appends: AtomicU64,
    bytes: AtomicU64,
    flushes: [AtomicU64; CLASSES],
    flush_us: AtomicU64,
}

impl Counters {
    /// One flush took `time`.
    pub fn flushed(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let class = FLUSH_BOUNDS_US.partition_point(|bound| *bound < us);
        self.flushes[class].fetch_add(1, Ordering::Relaxed);
        self.flush_us.fetch_add(us, Ordering::Relaxed);
    }

    /// `count` requests more are durable; the log has `bytes` of them all.
    pub fn durable(&self, count: usize, bytes: u64) {
        self.appends.fetch_add(count as u64, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// The figures now.
    pub fn read(&self) -> LogFigures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LogFigures {
            appends: read(&self.appends),
            bytes: read(&self.bytes),
            flushes: std::array::from_fn(|class| read(&self.flushes[class])),
            flush_us: read(&self.flush_us),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_is_counted_in_the_first_class_whose_bound_it_does_not_exceed() {
        for (us, class) in [(0, 0), (50, 0), (51, 1), (100, 1), (13_107_200, 18), (13_107_201, 19)]
        {
            let counters = Counters::default();
            counters.flushed(Duration::from_micros(us));
            let got = counters.read();
            assert_eq!((got.flushes[class], got.flush_count()), (1, 1), "{us} us");
            assert_eq!(got.flush_us, us);
        }
    }
}
