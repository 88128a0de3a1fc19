//! C2 and C3: the two clocks that every node keeps for every session.
//!
//! - *not-before-expiry* (C2): before it, nobody may take the session's leases. It starts when this
//!   node applied the newest renewal, so a new leader neither shortens nor extends a lease.
//! - *believed-live* (C3): until it, this node may name the session as a holder. It starts at the
//!   sending time of a read index round whose answer was below the renewal's index: at that
//!   instant the renewal was not yet committed, so every node's C2 clock started later.
//!
//! A node that replays a backlog applies old renewals late: for C2 that only makes it more patient,
//! and for C3 it has no round answered below them (or only a long past one), so it names nobody.
//!
//! Cost: one map lookup per renewal, one heap entry per session that moves about once per ttl; no
//! scan per tick. About 100 bytes per session.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use super::{Rules, since_shorter};
use crate::effect::ClockEffect;
use crate::id::{Revision, SessionId};
use crate::mutant::{Mutant, leaves_out};
use crate::time::{Micros, Reading};

/// Read index rounds remembered. A node further behind than these names nobody until it has
/// caught up, which is what C3 wants of it.
const MAX_ROUNDS: usize = 64;
/// Sessions looked at in one call of [`NodeClock::due`]: bounds a tick after a change of leader,
/// when every entry of the heap is out of date. The rest comes with the next ticks.
const MAX_LOOKS: usize = 20_000;
/// A session that was reported due is reported again after this long if it is still there: its
/// expiry was proposed and lost.
const REPORT_AGAIN: Micros = Micros::from_ms(500);
/// Heap entries above twice the sessions that are tolerated before the heap is built anew.
const HEAP_SLACK: usize = 1_024;

#[derive(Clone, Copy, Debug)]
struct Clock {
    ttl_ms: u64,
    /// When this node applied the newest renewal, or started.
    applied: Reading,
    /// q of C3 for that renewal.
    believed_from: Option<Reading>,
}

/// A read index round: when it was asked, and what it was answered.
#[derive(Clone, Copy, Debug)]
struct Round {
    sent: Reading,
    answer: Revision,
}

/// The lease clocks of one node.
#[derive(Clone, Debug)]
pub struct NodeClock {
    rules: Rules,
    /// Last entry these clocks have seen. Expiry names the renewal number of the state, so clocks
    /// and state must be of one revision whenever both are asked.
    at: Revision,
    sessions: BTreeMap<SessionId, Clock>,
    /// How many sessions have which ttl; the first key paces the read index rounds.
    ttls: BTreeMap<u64, usize>,
    /// Rising on both fields.
    rounds: VecDeque<Round>,
    /// One entry per session (stale ones of ended sessions until they surface): the BOOTTIME at
    /// which it is worth a look. Never later than the session really is due.
    looks: BinaryHeap<Reverse<(u64, SessionId)>>,
    /// Since when leases of the life before are waited for (see [`NodeClock::outlasts`]).
    waits_since: Option<Reading>,
}

impl NodeClock {
    /// Clocks of a node without sessions.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            at: Revision(0),
            sessions: BTreeMap::new(),
            ttls: BTreeMap::new(),
            rounds: VecDeque::new(),
            looks: BinaryHeap::new(),
            waits_since: None,
        }
    }

    /// The state was replaced by one at revision `at`: this node started, or installed a snapshot.
    /// Every session (id and ttl in milliseconds) counts from `now` (C2), none is believed (C3).
    pub fn reset(
        &mut self,
        at: Revision,
        sessions: impl IntoIterator<Item = (SessionId, u64)>,
        now: Reading,
    ) {
        self.at = at;
        self.sessions.clear();
        self.ttls.clear();
        self.looks.clear();
        self.waits_since = None;
        for (session, ttl_ms) in sessions {
            self.open(session, Clock { ttl_ms, applied: now, believed_from: None });
        }
    }

    /// This node's clock cannot be trusted for the time behind it (C9): what it counted is void.
    /// Same as a restart of the node.
    pub fn restart(&mut self, now: Reading) {
        let sessions: Vec<_> =
            self.sessions.iter().map(|(id, clock)| (*id, clock.ttl_ms)).collect();
        self.reset(self.at, sessions, now);
        self.rounds.clear();
    }

    /// The entry at `index` was applied at `now`. `ttl_ms_of` looks a session's ttl up in the state
    /// after the entry; it is asked only for sessions not seen before. To be called for every
    /// entry, while the state is still locked by whoever applied it.
    pub fn apply(
        &mut self,
        index: Revision,
        effects: &[ClockEffect],
        now: Reading,
        mut ttl_ms_of: impl FnMut(SessionId) -> Option<u64>,
    ) {
        self.at = index;
        let mut believed_from = None;
        let mut looked = false;
        for effect in effects {
            match *effect {
                ClockEffect::Renewed(session) => {
                    if !looked {
                        believed_from = match leaves_out(Mutant::BelievedFromRound) {
                            true => Some(now),
                            false => self.round_below(index),
                        };
                        looked = true;
                    }
                    if let Some(clock) = self.sessions.get_mut(&session) {
                        clock.applied = now;
                        clock.believed_from = believed_from;
                    } else if let Some(ttl_ms) = ttl_ms_of(session) {
                        self.open(session, Clock { ttl_ms, applied: now, believed_from });
                    }
                }
                ClockEffect::Ended(session) => self.end(session),
                ClockEffect::Reset => self.reset(index, [], now),
            }
        }
    }

    fn open(&mut self, session: SessionId, clock: Clock) {
        *self.ttls.entry(clock.ttl_ms).or_default() += 1;
        self.look_at(session, clock.applied.plus(self.rules.long(clock.ttl_ms)));
        self.sessions.insert(session, clock);
    }

    fn end(&mut self, session: SessionId) {
        let Some(clock) = self.sessions.remove(&session) else { return };
        if let Some(count) = self.ttls.get_mut(&clock.ttl_ms) {
            *count -= 1;
            if *count == 0 {
                self.ttls.remove(&clock.ttl_ms);
            }
        }
        // A follower never pops: sessions that come and go must not pile up here.
        if self.looks.len() > 2 * self.sessions.len() + HEAP_SLACK {
            self.looks = self
                .sessions
                .iter()
                .map(|(id, clock)| {
                    let due = clock.applied.plus(self.rules.long(clock.ttl_ms));
                    Reverse((due.boottime_us, *id))
                })
                .collect();
        }
    }

    fn look_at(&mut self, session: SessionId, at: Reading) {
        self.looks.push(Reverse((at.boottime_us, session)));
    }

    /// A read index round that this node began at `sent` (read before the request left) was
    /// answered with `answer`. The leader asks itself, and needs the quorum round like the others.
    pub fn read_index_answered(&mut self, sent: Reading, answer: Revision) {
        while let Some(last) = self.rounds.back() {
            // Answers that overtook each other: dropping the one asked earlier only shortens belief.
            if last.sent.boottime_us > sent.boottime_us || last.sent.raw_us > sent.raw_us {
                return;
            }
            if last.answer < answer {
                break;
            }
            // Asked earlier and answered no lower: the new round serves better for every index.
            self.rounds.pop_back();
        }
        if self.rounds.len() == MAX_ROUNDS {
            self.rounds.pop_front();
        }
        self.rounds.push_back(Round { sent, answer });
    }

    /// q of C3 for an entry at `index`.
    fn round_below(&self, index: Revision) -> Option<Reading> {
        let below = self.rounds.partition_point(|round| round.answer < index);
        below.checked_sub(1).map(|at| self.rounds[at].sent)
    }

    /// When the next read index round should be sent: a sixth of the smallest ttl after the latest
    /// one was; `None` when there are no sessions. A due time in the past means now.
    pub fn next_read_index_due(&self) -> Option<Reading> {
        let (ttl_ms, _) = self.ttls.first_key_value()?;
        let every = Micros((Micros::from_ms(*ttl_ms).0 / 6).max(1_000));
        Some(self.rounds.back().map_or(Reading::default(), |round| round.sent.plus(every)))
    }

    /// Whether this node may name `session` as a holder at `now` (C3).
    pub fn believed_live(&self, session: SessionId, now: Reading) -> bool {
        self.believed_for(session, now).is_some()
    }

    /// How much longer this node may name `session` if nothing more is heard: what a relay is told
    /// as the most it may believe. `None`: not at all.
    pub fn believed_for(&self, session: SessionId, now: Reading) -> Option<Micros> {
        let clock = self.sessions.get(&session)?;
        let passed = now.since(clock.believed_from?);
        let length = self.rules.short(clock.ttl_ms);
        (passed < length).then(|| length.saturating_sub(passed))
    }

    /// Whether this node's C2 clock allows to propose the expiry of `session` at `now`.
    pub fn may_expire(&self, session: SessionId, now: Reading) -> bool {
        self.sessions
            .get(&session)
            .is_some_and(|clock| since_shorter(now, clock.applied) >= self.rules.long(clock.ttl_ms))
    }

    /// Whether a lease of `ttl_ms` that began with the newest renewal of `session` has run out by now,
    /// whatever the session's own ttl is (C2).
    pub fn has_waited(&self, session: SessionId, ttl_ms: u64, now: Reading) -> bool {
        self.sessions
            .get(&session)
            .is_some_and(|clock| since_shorter(now, clock.applied) >= self.rules.long(ttl_ms))
    }

    /// Whether a lease with a ttl of `ttl_ms` of which nothing is known, and which nobody renews since
    /// the first time this is asked, has run out by now (C2). Counts anew after a reset or a restart.
    pub fn outlasts(&mut self, ttl_ms: u64, now: Reading) -> bool {
        let since = *self.waits_since.get_or_insert(now);
        since_shorter(now, since) >= self.rules.long(ttl_ms)
    }

    /// Whether [`NodeClock::outlasts`] was asked before.
    pub fn is_waiting(&self) -> bool {
        self.waits_since.is_some()
    }

    /// At most `limit` sessions whose expiry may be proposed at `now`. One that was named is named
    /// again after `REPORT_AGAIN` at the earliest, as long as it is there and not renewed.
    pub fn due(&mut self, now: Reading, limit: usize) -> Vec<SessionId> {
        let mut due = Vec::new();
        for _ in 0..MAX_LOOKS {
            if due.len() == limit {
                break;
            }
            let Some(Reverse((at, session))) = self.looks.peek().copied() else { break };
            if at > now.boottime_us {
                break;
            }
            self.looks.pop();
            let Some(clock) = self.sessions.get(&session).copied() else { continue };
            let passed = since_shorter(now, clock.applied);
            let length = self.rules.long(clock.ttl_ms);
            let again = if passed >= length {
                due.push(session);
                REPORT_AGAIN
            } else {
                // At least a millisecond, so that a frozen raw clock cannot make this loop spin.
                length.saturating_sub(passed).max(Micros(1_000))
            };
            self.look_at(session, now.plus(again));
        }
        due
    }

    /// Last entry these clocks have seen.
    pub fn at(&self) -> Revision {
        self.at
    }

    /// Sessions known to this node.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// The smallest ttl of all sessions, in milliseconds.
    pub fn least_ttl_ms(&self) -> Option<u64> {
        self.ttls.first_key_value().map(|(ttl_ms, _)| *ttl_ms)
    }
}

#[cfg(test)]
#[path = "node_clock_tests.rs"]
mod tests;
