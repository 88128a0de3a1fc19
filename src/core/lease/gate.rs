//! C5: which renewals a node passes on. One gate per session on one client stream.
//!
//! This guards liveness, not safety: over a link that is dead in one direction a client would keep
//! its leases in the cluster's eyes while its own clock (C1) has long run out, and nobody could
//! take over. Hence nothing here may hold a sound link up for more than one resend.

use crate::id::RenewalNumber;
use crate::time::{Micros, Reading};

/// Acknowledgements remembered until they are two intervals old. They are noted at most every half
/// interval, so four reach back two intervals whatever the client's pace.
const SLOTS: usize = 4;

/// What to do with a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it on.
    Pass,
    /// It waited longer than ttl/2: answer RESEND.
    TooOld,
    /// The client has not seen what this node told it two intervals ago: answer RESEND.
    HalfDead,
}

/// Whether a renewal that was received at `received` extends nothing any more at `now` (first
/// sentence of C5). Every queue asks this when it hands renewals on, the leader's too.
pub fn too_old(received: Reading, now: Reading, ttl_ms: u64) -> bool {
    now.since(received) > Micros(Micros::from_ms(ttl_ms).0 / 2)
}

#[derive(Clone, Copy, Debug, Default)]
struct Ack {
    number: RenewalNumber,
    at_us: u64,
}

/// The gate of one session on one stream. A new stream gets a new gate: what went lost on the old
/// one says nothing about this one.
#[derive(Clone, Debug)]
pub struct Gate {
    ttl_ms: u64,
    interval_us: u64,
    /// When this node last said anything on this session; `None`: not yet on this stream.
    spoke_at_us: Option<u64>,
    /// Newest acknowledgement that is more than two intervals old.
    floor: RenewalNumber,
    recent: [Ack; SLOTS],
    recent_count: usize,
}

impl Gate {
    /// A gate for a session on a stream just opened.
    pub fn new(ttl_ms: u64, renew_interval_ms: u64) -> Self {
        Self {
            ttl_ms,
            interval_us: Micros::from_ms(renew_interval_ms.max(1)).0,
            spoke_at_us: None,
            floor: RenewalNumber(0),
            recent: [Ack::default(); SLOTS],
            recent_count: 0,
        }
    }

    /// Judges a renewal that names `acked` as the newest acknowledgement its client has seen, was
    /// read from the stream at `received`, and would be passed on at `now`.
    pub fn judge(&mut self, acked: RenewalNumber, received: Reading, now: Reading) -> Verdict {
        if too_old(received, now, self.ttl_ms) {
            return Verdict::TooOld;
        }
        self.age(now);
        if acked < self.floor { Verdict::HalfDead } else { Verdict::Pass }
    }

    /// The acknowledgement of `number` goes out on this stream.
    pub fn ack_sent(&mut self, number: RenewalNumber, now: Reading) {
        self.age(now);
        let at_us = now.boottime_us;
        let newest = self.recent_count.checked_sub(1).map(|last| self.recent[last].at_us);
        let spaced = newest.is_none_or(|at| at_us.saturating_sub(at) >= self.interval_us / 2);
        if spaced && self.recent_count < SLOTS {
            self.recent[self.recent_count] = Ack { number, at_us };
            self.recent_count += 1;
        }
        self.spoke_at_us = Some(at_us);
    }

    /// Another answer than an acknowledgement (RESEND) goes out on this stream.
    pub fn resend_sent(&mut self, now: Reading) {
        self.age(now);
        self.spoke_at_us = Some(now.boottime_us);
    }

    /// Moves acknowledgements over two intervals old into the floor; forgets everything when this
    /// node itself was silent for that long (it was frozen, or had no leader): the client cannot
    /// have seen what was not said.
    fn age(&mut self, now: Reading) {
        let now_us = now.boottime_us;
        let old = |at: u64| now_us.saturating_sub(at) > 2 * self.interval_us;
        if self.spoke_at_us.is_none_or(old) {
            self.floor = RenewalNumber(0);
            self.recent_count = 0;
            return;
        }
        let gone = self.recent[..self.recent_count].iter().take_while(|ack| old(ack.at_us)).count();
        if gone > 0 {
            self.floor = self.floor.max(self.recent[gone - 1].number);
            self.recent.copy_within(gone..self.recent_count, 0);
            self.recent_count -= gone;
        }
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
