//! C4 and C8: proposes the end of sessions that lapsed and of candidates that never took up what
//! they were granted; and, in a new life of the cluster, the first grants.
//!
//! It must never propose by hope: only in a term whose first entry this node has applied itself
//! (before that its state may be old), only by clocks that are of the state's own revision, and
//! not at all while a majority of the peers contradicts this node's clock (C9). `apply` then still
//! compares the renewal number that each proposal names (C4): a renewal committed first wins.
//!
//! The lease of a role is waited for as long as the longest ttl that its holder was ever promised under
//! this epoch (docs/adr/0010): a later session with a shorter one does not take back what its fencer
//! was told.
//!
//! A candidate that does not confirm its grant (C8) never acted, so no clock is needed to take it
//! back; the time it gets here is only manners. One that leads other elections on confirmed grants
//! is left to its ttl: `apply` would refuse, because it ends the whole session
//! ([`expire_grants`](crate::command::Command::ExpireGrants) says why).

use std::collections::BTreeMap;

use super::Decision;
use crate::command::{Command, Lapsed, UnusedGrant};
use crate::effect::{Applied, Change};
use crate::id::{ElectionName, Epoch, SessionId};
use crate::lease::NodeClock;
use crate::lease::skew::SkewVerdict;
use crate::limits::GRANT_TIMEOUT_MS;
use crate::mutant::{Mutant, leaves_out};
use crate::state::State;
use crate::state::session::Session;
use crate::time::{Micros, Reading};

/// Sessions in one entry: with a few leases each this applies in a few milliseconds; the death of
/// 100,000 clients at once takes a hundred ticks.
pub const MAX_LAPSED_PER_ENTRY: usize = 1_000;
/// Grants in one entry, for the same reason.
pub const MAX_UNUSED_PER_ENTRY: usize = 1_000;
/// Unconfirmed grants watched at a time; the others come up when these are done.
const MAX_PENDING: usize = 20_000;
/// How often the watched grants are looked at: a fraction of the timeout.
const LOOK_EVERY: Micros = Micros::from_ms(100);
/// Names in one line of the report.
const MAX_NAMED: usize = 5;

/// What the leader sees at one tick.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The state, locked for reading together with the clocks.
    pub state: &'a State,
    /// The term in which this node leads *and whose first entry it has applied*; `None` otherwise.
    pub term: Option<u64>,
    /// What C9 says of this node's clock.
    pub skew: SkewVerdict,
    /// This node's clock.
    pub now: Reading,
}

/// The leader's memory between ticks.
#[derive(Clone, Debug, Default)]
pub struct Expiry {
    term: Option<u64>,
    abstaining: bool,
    /// Grants not seen confirmed yet, and when this leader saw them first: a hint that no safety
    /// rests on. One entry can grant several elections, so the name is part of the key.
    pending: BTreeMap<(Epoch, ElectionName), Reading>,
    looked: Option<Reading>,
}

impl Expiry {
    /// A leader's memory with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// An entry was applied. May be called on every node; only a leader keeps what it says.
    pub fn observe(&mut self, applied: &Applied, now: Reading) {
        if self.term.is_none() {
            return;
        }
        for change in &applied.changes {
            let Change::Election(name, Some(row)) = change else { continue };
            let Some(holder) = &row.holder else { continue };
            if holder.epoch.revision == applied.revision {
                self.watch(holder.epoch, name, now);
            }
        }
    }

    fn watch(&mut self, epoch: Epoch, name: &ElectionName, since: Reading) {
        if self.pending.len() < MAX_PENDING {
            self.pending.entry((epoch, name.clone())).or_insert(since);
        }
    }

    /// What to propose now. Cheap when nothing is due; to be called once per tick.
    pub fn decide(&mut self, view: &View<'_>, clock: &mut NodeClock) -> Decision {
        let mut decision = Decision::default();
        let Some(term) = view.term else {
            if self.term.take().is_some() {
                self.pending.clear();
                decision.say(false, "no expiry: this node does not lead any more".into());
            }
            return decision;
        };
        if self.term != Some(term) {
            self.term = Some(term);
            self.pending.clear();
            self.looked = None;
            let (sessions, grants) = (clock.session_count(), view.state.unconfirmed().len());
            decision.say(
                false,
                format!(
                    "leading in term {term}: {sessions} sessions and {grants} unconfirmed grants \
                     are watched"
                ),
            );
        }
        if self.must_abstain(view, clock, &mut decision) {
            return decision;
        }
        if clock.at() != view.state.revision() {
            let (clocks, state) = (clock.at(), view.state.revision());
            decision
                .say(false, format!("no expiry: clocks are at {clocks}, the state is at {state}"));
            return decision;
        }
        open_grants(view, clock, &mut decision);
        lapsed_sessions(view, clock, &mut decision);
        if self.looked.is_none_or(|at| view.now.since(at) >= LOOK_EVERY) {
            self.looked = Some(view.now);
            self.unused_grants(view, &mut decision);
        }
        decision
    }

    /// C9.
    fn must_abstain(
        &mut self,
        view: &View<'_>,
        clock: &mut NodeClock,
        decision: &mut Decision,
    ) -> bool {
        if let SkewVerdict::Differs { against, peers } = view.skew {
            if !self.abstaining {
                let text =
                    format!("no expiry: {against} of {peers} peers contradict this clock (C9)");
                decision.say(false, text);
            }
            self.abstaining = true;
            return true;
        }
        if std::mem::take(&mut self.abstaining) {
            // What was counted with the clock that differed proves nothing.
            clock.restart(view.now);
            decision.say(false, "the peers agree with this clock again: timers start anew".into());
        }
        false
    }

    /// C8.
    fn unused_grants(&mut self, view: &View<'_>, decision: &mut Decision) {
        let state = view.state;
        if self.pending.len() < state.unconfirmed().len() {
            for name in state.unconfirmed() {
                let holder = state.elections().get(name).and_then(|row| row.holder.as_ref());
                if let Some(holder) = holder {
                    self.watch(holder.epoch, name, view.now);
                }
            }
        }
        let mut unused = Vec::new();
        self.pending.retain(|(epoch, name), since| {
            let Some(session) = unconfirmed(state, name, *epoch) else { return false };
            if unused.len() == MAX_UNUSED_PER_ENTRY
                || view.now.since(*since) < patience(&state.sessions()[&session])
            {
                return true;
            }
            // The proposal may be lost, the other leases may be resigned: looked at again later.
            *since = view.now;
            if leads_confirmed(state, session) {
                decision.say(
                    false,
                    format!(
                        "session {session} does not confirm {name} {epoch}, but leads others: \
                         left to its ttl"
                    ),
                );
            } else {
                unused.push(UnusedGrant { election: name.clone(), epoch: *epoch });
            }
            true
        });
        if !unused.is_empty() {
            let names = list(unused.iter().map(|one| format!("{} {}", one.election, one.epoch)));
            decision.say(true, format!("grants not confirmed, taken back (C8): {names}"));
            decision.commands.push(Command::ExpireGrants { unused });
        }
    }
}

/// After a restore or a recovery: proposes that elections are granted again once no holder of the
/// life before can believe in its lease (S5). What it was told last it was told before the new
/// life began, and so before this leader's first look.
fn open_grants(view: &View<'_>, clock: &mut NodeClock, decision: &mut Decision) {
    let (held_ms, incarnation) = (view.state.grants_held_ms(), view.state.incarnation());
    if held_ms == 0 {
        return;
    }
    if !clock.is_waiting() {
        let text = format!(
            "incarnation {incarnation}: nothing is granted while holders of the life before may \
             believe in leases of {held_ms} ms"
        );
        decision.say(false, text);
    }
    if clock.outlasts(held_ms, view.now) {
        decision.say(true, format!("grants open again in incarnation {incarnation}"));
        decision.commands.push(Command::OpenGrants { incarnation });
    }
}

/// C4.
fn lapsed_sessions(view: &View<'_>, clock: &mut NodeClock, decision: &mut Decision) {
    let sessions = view.state.sessions();
    let due = clock.due(view.now, MAX_LAPSED_PER_ENTRY);
    let name_renewal = |session| Some(Lapsed { session, seen: sessions.get(&session)?.renewed });
    let outlasted = |session: &SessionId| {
        let longest = view.state.longest_ttl_of_lease(*session);
        let early = leaves_out(Mutant::LaterClock);
        let longest = longest.map(|ttl_ms| if early { ttl_ms * 3 / 4 } else { ttl_ms });
        longest.is_none_or(|ttl_ms| clock.has_waited(*session, ttl_ms, view.now))
    };
    let lapsed: Vec<_> = due.into_iter().filter(outlasted).filter_map(name_renewal).collect();
    if !lapsed.is_empty() {
        let names =
            list(lapsed.iter().map(|one| format!("{} after renewal {}", one.session, one.seen)));
        decision.say(true, format!("sessions lapsed, expiry proposed (C4): {names}"));
        decision.commands.push(Command::ExpireSessions { lapsed });
    }
}

/// The session that holds `name` under `epoch` and has not confirmed it.
fn unconfirmed(state: &State, name: &ElectionName, epoch: Epoch) -> Option<SessionId> {
    let holder = state.elections().get(name)?.holder.as_ref()?;
    let known_grant = state.sessions().get(&holder.session)?.known_grant;
    (holder.epoch == epoch && known_grant < epoch.revision).then_some(holder.session)
}

/// Whether `session` may be acting somewhere: it leads on a grant that it confirmed.
fn leads_confirmed(state: &State, session: SessionId) -> bool {
    let Some(row) = state.sessions().get(&session) else { return false };
    state.elections_of(session).iter().any(|name| {
        let holder = state.elections().get(name).and_then(|row| row.holder.as_ref());
        holder.is_some_and(|holder| {
            holder.session == session && holder.epoch.revision <= row.known_grant
        })
    })
}

/// How long a candidate may take to confirm: the grant timeout, but time for a client that renews
/// seldom to hear of the grant with one renewal and to confirm it with the next.
fn patience(session: &Session) -> Micros {
    Micros::from_ms(GRANT_TIMEOUT_MS.max(session.renew_interval_ms.saturating_mul(3)))
}

fn list(items: impl ExactSizeIterator<Item = String>) -> String {
    let count = items.len();
    let mut text = items.take(MAX_NAMED).collect::<Vec<_>>().join(", ");
    if count > MAX_NAMED {
        text.push_str(&format!(" and {} more", count - MAX_NAMED));
    }
    text
}

#[cfg(test)]
#[path = "expiry_tests.rs"]
mod tests;
