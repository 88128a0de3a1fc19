//! C9 for a holder: is this machine's clock one that a lease can be counted with?
//!
//! A pause by a hypervisor cannot be seen from inside, and neither can a clock that runs slow: both
//! make a lease last longer here than at the nodes. So now and then every node of the keep-alive is
//! asked what its clock shows, and a clock that a majority of the voters contradicts ends the
//! leases. A clock that went back, or of another boot, is none at all: this process was restored or
//! moved.
//!
//! This must only ever end leases. What it cannot prove (too few nodes answer, an old node tells
//! nothing) leaves them to C1.

use std::collections::HashMap;

use regent_core::id::{NodeId, Nonce};
use regent_core::lease::Skew;
use regent_core::lease::holder::VoidReason;
use regent_core::lease::skew::{Exchange, SkewVerdict};
use regent_core::time::{Micros, Reading};

use crate::clock::Clock;
use crate::pb::v1;

/// Shortest time between two rounds: nodes compare themselves as often.
const LEAST_INTERVAL: Micros = Micros::from_ms(1_000);
/// Rounds per ttl: a pause is found while most of the lease is still to come, and the questions
/// are few beside the renewals.
const ROUNDS_PER_TTL: u64 = 4;

/// What is known of this machine's clock.
pub(super) struct Clocks {
    skew: Skew,
    boot: Option<String>,
    /// The newest reading of the one task that asks.
    latest: Reading,
    round: u64,
    last_round: Option<Reading>,
    /// By stream: which round it was asked in, and when.
    asked: HashMap<u64, (u64, Reading)>,
    /// Found wrong by itself, without any node.
    changed: bool,
}

impl Clocks {
    pub fn new(clock: &dyn Clock) -> Self {
        Self {
            skew: Skew::new(),
            boot: clock.boot(),
            latest: clock.now(),
            round: 0,
            last_round: None,
            asked: HashMap::new(),
            changed: false,
        }
    }

    /// Begins a round if one is due for sessions of this ttl; its number, for [`Clocks::ask`].
    pub fn begin_round(&mut self, clock: &dyn Clock, ttl_ms: u64) -> Option<u64> {
        let now = clock.now();
        let back = now.boottime_us < self.latest.boottime_us || now.raw_us < self.latest.raw_us;
        self.changed |= back;
        self.latest = now;
        let interval = LEAST_INTERVAL.max(Micros::from_ms(ttl_ms / ROUNDS_PER_TTL));
        if self.last_round.is_some_and(|last| now.since(last) < interval) {
            return None;
        }
        let boot = clock.boot();
        self.changed |= self.boot.is_some() && boot.is_some() && boot != self.boot;
        self.last_round = Some(now);
        self.round += 1;
        Some(self.round)
    }

    /// A stream is about to be asked in this round; `now` was read before.
    pub fn ask(&mut self, stream: u64, round: u64, now: Reading) {
        self.asked.insert(stream, (round, now));
    }

    /// A stream is gone, and with it its answer.
    pub fn forget(&mut self, stream: u64) {
        self.asked.remove(&stream);
    }

    /// What a node's clock showed.
    pub fn heard(&mut self, stream: u64, told: &v1::NodeClock, received: Reading) {
        let Some((round, sent)) = self.asked.get(&stream).copied() else { return };
        if round != told.probe {
            return;
        }
        self.asked.remove(&stream);
        self.skew.set_peers(told.voters.iter().map(|id| NodeId(*id)));
        let peer = Reading { boottime_us: told.boottime_us, raw_us: told.raw_us };
        let exchange = Exchange { sent, received, peer, nonce: Nonce(told.nonce) };
        self.skew.exchanged(NodeId(told.node), exchange);
    }

    /// Why no lease may be counted with this clock now, if so. A clock that was changed is taken
    /// as a new one from here on: sessions opened after this are counted with it.
    pub fn verdict(&mut self, clock: &dyn Clock) -> Option<VoidReason> {
        if std::mem::take(&mut self.changed) {
            self.boot = clock.boot();
            self.skew = Skew::new();
            self.asked.clear();
            return Some(VoidReason::ClockChanged);
        }
        let differs = self.skew.verdict() != SkewVerdict::Agrees;
        differs.then_some(VoidReason::ClockDiffers)
    }
}
