//! C1: until when a holder may act, counted from the first transmission of exactly the renewal
//! that was acknowledged.
//!
//! It must never say "held" at an instant at which the cluster may already have given the lease to
//! another (S5): every doubt (unknown number, late answer, reading out of order) makes it shorter.
//!
//! What a client does with it: [`HolderClock::next`] when [`HolderClock::due_at`] is reached, send
//! that, [`HolderClock::answered`] with what came back; before each act on the resource
//! [`HolderClock::is_held`]; and stop acting, without being told, at
//! [`HolderClock::valid_until`].

use std::collections::{BTreeSet, VecDeque};

use super::Rules;
use crate::command::Renewal;
use crate::id::{Epoch, Nonce, RenewalNumber, Revision, SessionId};
use crate::reply::RenewalOutcome;
use crate::time::{Micros, Reading};

/// Transmissions remembered. At ten renewals per ttl this is six ttls: an answer to an older one
/// could not make the lease valid any more.
const MAX_SENT: usize = 64;
/// Epochs given up one by one that are remembered; beyond that everything below the oldest is over.
const MAX_GIVEN_UP: usize = 1_024;

/// What a session is, as its opening was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HolderSession {
    /// Its id.
    pub session: SessionId,
    /// Which start of this client opened it.
    pub nonce: Nonce,
    /// [`Incarnation::counter`](crate::id::Incarnation::counter) of the answer's stamp; epochs of
    /// any other are never held.
    pub incarnation: u64,
    /// How long the cluster waits without a renewal, in milliseconds.
    pub ttl_ms: u64,
    /// How often to renew, in milliseconds.
    pub renew_interval_ms: u64,
    /// How long this client needs to stop acting, in milliseconds.
    pub fence_budget_ms: u64,
}

/// What came back for a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A committed entry judged it.
    Outcome(RenewalOutcome),
    /// The node did not pass it on (C5): send a new one.
    Resend,
}

/// Why everything of this session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoidReason {
    /// The cluster says that the session is not open.
    SessionGone,
    /// Another start of this client owns it.
    NonceStale,
    /// The machine was rebooted, restored or cloned: its readings mean nothing any more.
    ClockChanged,
    /// The cluster was restored or recovered.
    IncarnationChanged,
    /// This clock differs from a majority of the nodes' (C9).
    ClockDiffers,
    /// The client closed it.
    Closed,
}

/// What may be said of one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No acknowledged renewal has named it yet (C8): wait, do not act.
    Unconfirmed,
    /// Act, until [`HolderClock::valid_until`].
    Held,
    /// It was given up, or its time ran out; it never comes back. If the cluster still shows this
    /// session as the holder, resign, then campaign anew.
    Over,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    number: RenewalNumber,
    at: Reading,
    named: Revision,
}

/// The holder's clock of one session.
#[derive(Clone, Debug)]
pub struct HolderClock {
    of: HolderSession,
    length: Micros,
    /// First transmissions not yet known to be outdated, by rising number.
    sent: VecDeque<Sent>,
    last_number: RenewalNumber,
    last_sent: Option<Reading>,
    /// The transmission the validity counts from; only ever replaced by a later one.
    base: Option<Sent>,
    acked: RenewalNumber,
    /// Highest grant heard of; what the next renewal names.
    known_grant: Revision,
    /// Highest grant that the log has said it gave to this very session. Another one of the same client
    /// may be the lease's: naming its grant here is taken, and confirms nothing.
    given: Revision,
    /// Highest grant an acknowledged renewal has named: those up to here are confirmed.
    confirmed: Revision,
    /// Everything up to here is over (latch).
    over_through: Revision,
    given_up: BTreeSet<Revision>,
    /// Highest reading seen on each clock: threads may hand readings in out of order.
    latest: Reading,
    hurry: bool,
    void: Option<VoidReason>,
}

impl HolderClock {
    /// A clock for a session just opened; nothing is held.
    pub fn new(of: HolderSession, rules: Rules) -> Self {
        let length = rules.short(of.ttl_ms).saturating_sub(Micros::from_ms(of.fence_budget_ms));
        Self {
            of,
            length,
            sent: VecDeque::new(),
            last_number: RenewalNumber(0),
            last_sent: None,
            base: None,
            acked: RenewalNumber(0),
            known_grant: Revision(0),
            given: Revision(0),
            confirmed: Revision(0),
            over_through: Revision(0),
            given_up: BTreeSet::new(),
            latest: Reading::default(),
            hurry: true,
            void: None,
        }
    }

    /// The session this clock belongs to.
    pub fn session(&self) -> &HolderSession {
        &self.of
    }

    /// The renewal to send now, with a new number. `now` must be read *before* the first byte can
    /// leave; the same renewal may go out again on another connection, it keeps this instant.
    pub fn next(&mut self, now: Reading) -> Renewal {
        self.last_number = RenewalNumber(self.last_number.0 + 1);
        let sent = Sent { number: self.last_number, at: now, named: self.known_grant };
        if self.sent.len() == MAX_SENT {
            self.sent.pop_front();
        }
        self.sent.push_back(sent);
        self.last_sent = Some(now);
        self.hurry = false;
        Renewal {
            session: self.of.session,
            nonce: self.of.nonce,
            number: sent.number,
            acked: self.acked,
            known_grant: sent.named,
        }
    }

    /// When the next renewal is due; `None` once the session is void. It is due sooner after a
    /// request to resend and after a grant that no renewal has named, but never in a hot loop.
    pub fn due_at(&self) -> Option<Reading> {
        if self.void.is_some() {
            return None;
        }
        let interval = Micros::from_ms(self.of.renew_interval_ms.max(1));
        let wait = if self.hurry { Micros(interval.0 / 8) } else { interval };
        Some(self.last_sent.map_or(self.latest, |at| at.plus(wait)))
    }

    /// The answer to renewal `number` arrived. Returns whether the validity was extended.
    pub fn answered(&mut self, number: RenewalNumber, answer: Answer, now: Reading) -> bool {
        let now = self.see(now);
        match answer {
            Answer::Resend => {
                // Only the newest transmission can say that something is still to be done.
                self.hurry |= number == self.last_number;
                false
            }
            Answer::Outcome(RenewalOutcome::Extended { number, grant }) => {
                self.granted_revision(grant);
                self.given = self.given.max(grant);
                self.extend(number, now)
            }
            // Not this number but `have` was applied: the very same entry of the log that its own
            // answer would have reported, which may have been lost on the way. Of what was given to
            // this session by then nothing is known but by other answers.
            Answer::Outcome(RenewalOutcome::NumberStale { have }) => self.extend(have, now),
            Answer::Outcome(RenewalOutcome::SessionGone) => {
                self.void(VoidReason::SessionGone);
                false
            }
            Answer::Outcome(RenewalOutcome::NonceStale) => {
                self.void(VoidReason::NonceStale);
                false
            }
        }
    }

    fn extend(&mut self, number: RenewalNumber, now: Reading) -> bool {
        let Ok(at) = self.sent.binary_search_by_key(&number, |sent| sent.number) else {
            // Never sent, or so long ago that it proves nothing: without its instant of
            // transmission no deadline can be derived.
            return false;
        };
        let sent = self.sent[at];
        self.sent.drain(..=at);
        self.acked = self.acked.max(number);
        if self.void.is_some() || now.since(sent.at) >= self.length {
            return false;
        }
        let rises = self.base.is_none_or(|base| {
            sent.at.boottime_us >= base.at.boottime_us && sent.at.raw_us >= base.at.raw_us
        });
        if rises {
            self.base = Some(sent);
        }
        // What was named counts even if the readings did not rise: `base` then ends sooner. It counts as
        // the log counts it: not beyond what this session was given (C8).
        self.confirmed = self.confirmed.max(sent.named.min(self.given));
        rises
    }

    /// A grant was heard of (answer to a campaign, watch). The next renewal names it.
    pub fn granted(&mut self, epoch: Epoch) {
        if epoch.incarnation == self.of.incarnation {
            self.granted_revision(epoch.revision);
        }
    }

    fn granted_revision(&mut self, grant: Revision) {
        if grant > self.known_grant {
            self.known_grant = grant;
            self.hurry = true;
        }
    }

    /// Until when acting is allowed if nothing more is heard; `None`: not at all. It only rises.
    pub fn valid_until(&self) -> Option<Reading> {
        match self.void {
            Some(_) => None,
            None => self.base.map(|base| base.at.plus(self.length)),
        }
    }

    /// Whether this session may act under `epoch` at `now`. The epoch must have been granted to
    /// this session; whether it was, only the cluster's answer can tell.
    ///
    /// `now` must be read before the act it decides about; an act that takes longer than the fence
    /// budget must ask again.
    pub fn is_held(&mut self, now: Reading, epoch: Epoch) -> bool {
        self.standing(now, epoch) == Standing::Held
    }

    /// What may be said of `epoch` at `now`.
    pub fn standing(&mut self, now: Reading, epoch: Epoch) -> Standing {
        self.see(now);
        let grant = epoch.revision;
        // A grant is an entry after the one that opened the session.
        let ours = epoch.incarnation == self.of.incarnation && grant.0 > self.of.session.0;
        if self.void.is_some()
            || !ours
            || grant <= self.over_through
            || self.given_up.contains(&grant)
        {
            return Standing::Over;
        }
        if self.base.is_none() || grant > self.confirmed {
            return Standing::Unconfirmed;
        }
        Standing::Held
    }

    /// This epoch was resigned, or is about to be: it is not held from here on. To be called
    /// *before* the resignation is sent.
    pub fn give_up(&mut self, epoch: Epoch) {
        self.given_up.insert(epoch.revision);
        if self.given_up.len() > MAX_GIVEN_UP
            && let Some(oldest) = self.given_up.pop_first()
        {
            self.over_through = self.over_through.max(oldest);
        }
    }

    /// Ends everything of this session for good.
    pub fn void(&mut self, reason: VoidReason) {
        self.void.get_or_insert(reason);
        self.base = None;
    }

    /// Why the session is over, if it is.
    pub fn void_reason(&self) -> Option<VoidReason> {
        self.void
    }

    /// Notes that it is `now`, and latches what ran out: a deadline that fired never revives.
    fn see(&mut self, now: Reading) -> Reading {
        self.latest = Reading {
            boottime_us: self.latest.boottime_us.max(now.boottime_us),
            raw_us: self.latest.raw_us.max(now.raw_us),
        };
        if self.base.is_some_and(|base| self.latest.since(base.at) >= self.length) {
            self.over_through = self.over_through.max(self.confirmed);
            self.base = None;
        }
        self.latest
    }
}

#[cfg(test)]
#[path = "holder_tests.rs"]
mod tests;
