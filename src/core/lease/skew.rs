//! C9: does this machine's clock run like those of its peers? Decided from pairs of exchanges, with
//! the round trip as the bound of what each can prove.
//!
//! ```text
//! me    S1 ─────── R1 ................... S2 ─────── R2
//! peer        P1                               P2
//! ```
//! Between P1 and P2 at least `S2 − R1` and at most `R2 − S1` passed on my clock. What the peer's
//! clock shows beyond that window is *proven* difference; inside it nothing is claimed, so a slow
//! network never looks like a bad clock.
//!
//! A pause cannot be seen from inside; a node that differs from a majority of its peers is itself
//! the odd one and proposes no expiry until it agrees again *and* its timers were started anew
//! ([`NodeClock::restart`](super::NodeClock::restart)).

use std::collections::BTreeMap;

use crate::id::{NodeId, Nonce};
use crate::limits::{PAUSE_MARGIN_MS, RHO_ALARM_PPM, RHO_PPM};
use crate::time::{Micros, Reading};

/// Rates are compared over at least this long; shorter ones drown in the round trip.
const RATE_LEAST: Micros = Micros::from_ms(5_000);
/// After this long the reference for the rate is taken anew, so that a change shows soon.
const RATE_WINDOW: Micros = Micros::from_ms(60_000);

/// One exchange of readings with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// My clock before the request left.
    pub sent: Reading,
    /// My clock after the answer came.
    pub received: Reading,
    /// The peer's clock, read in between.
    pub peer: Reading,
    /// Which start of the peer: a restarted one is not compared with its former self.
    pub nonce: Nonce,
}

/// Proven difference of two clocks over the time between two exchanges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Proven {
    differ: Micros,
    /// The longest that can have passed on my clock.
    over: Micros,
}

impl Proven {
    fn between(a: &Exchange, b: &Exchange) -> Self {
        let peer = b.peer.since(a.peer);
        let least = b.sent.since(a.received);
        let most = b.received.since(a.sent);
        let differ = peer.saturating_sub(most).max(least.saturating_sub(peer));
        Self { differ, over: most }
    }

    fn ppm(self) -> u64 {
        let ppm = u128::from(self.differ.0) * 1_000_000 / u128::from(self.over.0.max(1));
        u64::try_from(ppm).unwrap_or(u64::MAX)
    }
}

#[derive(Clone, Copy, Debug)]
struct Peer {
    last: Exchange,
    /// Where the running rate window began.
    reference: Exchange,
    /// Difference since the exchange before the last one.
    step: Micros,
    /// The one before that. A pause between two peers' answers of one round shows with one of them
    /// now and with the other a round later: a jump counts until both must have seen it.
    step_before: Micros,
    /// The largest such difference in the running window. A rate shows in every step, a pause in
    /// one: without this one, a pause within the margin does not look like a rate beyond rho.
    largest_step: Micros,
    /// Proven rate difference of the running window, or of the one before while it is short.
    ppm: u64,
}

impl Peer {
    fn differs(&self) -> bool {
        is_jump(self.step) || is_jump(self.step_before) || self.ppm > RHO_PPM
    }
}

fn is_jump(step: Micros) -> bool {
    step > Micros::from_ms(PAUSE_MARGIN_MS)
}

/// What C9 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkewVerdict {
    /// No majority of the peers contradicts this clock.
    Agrees,
    /// A majority does: propose no expiry; a client's lease is over.
    Differs {
        /// How many peers contradict.
        against: usize,
        /// Of how many.
        peers: usize,
    },
}

/// This machine's clock compared with its peers' (for a node: the other voters; for a client: the
/// nodes).
#[derive(Clone, Debug, Default)]
pub struct Skew {
    peers: BTreeMap<NodeId, Option<Peer>>,
}

impl Skew {
    /// Nothing compared yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whom to compare with. Those that stay keep what is known of them.
    pub fn set_peers(&mut self, peers: impl IntoIterator<Item = NodeId>) {
        let mut old = std::mem::take(&mut self.peers);
        self.peers = peers.into_iter().map(|id| (id, old.remove(&id).flatten())).collect();
    }

    /// An exchange with `peer` was completed. Exchanges with one peer are made one after the other;
    /// one from somebody who is no peer is ignored.
    pub fn exchanged(&mut self, peer: NodeId, exchange: Exchange) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let fresh = Peer {
            last: exchange,
            reference: exchange,
            step: Micros(0),
            step_before: Micros(0),
            largest_step: Micros(0),
            ppm: 0,
        };
        let Some(before) = known.as_ref().filter(|known| known.last.nonce == exchange.nonce) else {
            *known = Some(fresh);
            return;
        };
        let step = Proven::between(&before.last, &exchange).differ;
        let step_before = before.step;
        if is_jump(step) {
            // A jump is not a rate: the window starts after it.
            *known = Some(Peer { step, step_before, ..fresh });
            return;
        }
        let mut window = Proven::between(&before.reference, &exchange);
        let largest_step = before.largest_step.max(step);
        window.differ = window.differ.saturating_sub(largest_step);
        let ppm = if window.over >= RATE_LEAST { window.ppm() } else { before.ppm };
        *known = Some(if window.over >= RATE_WINDOW {
            Peer { step, step_before, ppm, ..fresh }
        } else {
            Peer { last: exchange, step, step_before, largest_step, ppm, ..*before }
        });
    }

    /// Whether a majority of the peers contradicts this clock, as of the last exchanges with each.
    /// Peers never heard of count as not contradicting: who is alone abstains from nothing, and
    /// cannot commit an expiry either.
    pub fn verdict(&self) -> SkewVerdict {
        let against = self.peers.values().flatten().filter(|peer| peer.differs()).count();
        let peers = self.peers.len();
        if 2 * against > peers {
            SkewVerdict::Differs { against, peers }
        } else {
            SkewVerdict::Agrees
        }
    }

    /// Whether this machine must abstain (C9).
    pub fn abstains(&self) -> bool {
        self.verdict() != SkewVerdict::Agrees
    }

    /// The highest proven rate difference to any peer, in parts per million; for a metric.
    pub fn worst_ppm(&self) -> u64 {
        self.peers.values().flatten().map(|peer| peer.ppm).max().unwrap_or(0)
    }

    /// Whether somebody should look at the clocks (0.2 %), long before leases are in danger.
    pub fn alarms(&self) -> bool {
        self.worst_ppm() > RHO_ALARM_PPM
    }
}

#[cfg(test)]
#[path = "skew_tests.rs"]
mod tests;
