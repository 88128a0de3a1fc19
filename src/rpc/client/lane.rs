//! Lanes: what makes a retried write happen once.
//!
//! The cluster remembers the last serial of each lane and its reply. So a lane is used by one write
//! at a time, and every attempt of that write carries the same serial. A lane whose write was given
//! up without an answer can be used again: its next serial is higher, and the old attempt, should
//! it still arrive, is refused.

use std::sync::{Mutex, PoisonError};

use regent_core::command::Request;
use regent_core::id::{ClientId, Serial};

/// One lane. Whoever owns it runs one write at a time through it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lane {
    client: u64,
    serial: u64,
}

impl Lane {
    /// A lane that nobody has used. Random and not 0: two clients that share a lane would take
    /// each other's replies.
    pub fn fresh() -> Self {
        Self { client: rand::random_range(1..=u64::MAX), serial: 0 }
    }

    /// The id of its next write. From here on an older one that is still on its way is refused.
    pub fn next(&mut self) -> Request {
        self.serial += 1;
        Request { client: ClientId(self.client), serial: Serial(self.serial) }
    }
}

/// The free lanes of a client. The one used last is used next, so that few are ever in use.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    free: Mutex<Vec<Lane>>,
}

/// A lane in use by one write; free again when dropped.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    lanes: &'a Lanes,
    lane: Lane,
    request: Request,
}

impl Lanes {
    pub fn take(&self) -> Taken<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut lane = free.unwrap_or_else(Lane::fresh);
        let request = lane.next();
        Taken { lanes: self, lane, request }
    }
}

impl Taken<'_> {
    pub fn request(&self) -> Request {
        self.request
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.lanes.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.lane);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_has_one_write_at_a_time_and_its_serial_rises() {
        let lanes = Lanes::default();
        let (a, b) = (lanes.take(), lanes.take());
        assert_ne!(a.request().client, b.request().client);
        let first = b.request();
        drop(b);
        let again = lanes.take().request();
        assert_eq!(again.client, first.client);
        assert_eq!(again.serial.0, first.serial.0 + 1);
        drop(a);
        assert_eq!(lanes.free.lock().expect("not poisoned").len(), 2);
    }
}
