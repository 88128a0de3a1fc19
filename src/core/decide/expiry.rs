//! C4 and C8: proposes the end of sessions that lapsed and of candidates that never took up what
//! they were granted.
//!
//! It must never propose by hope: only in a term whose first entry this node has applied itself
//! (before that its state may be old), only by clocks that are of the state's own revision, and
//! not at all while a majority of the peers contradicts this node's clock (C9). `apply` then still
//! compares the renewal number that each proposal names (C4): a renewal committed first wins.
//!
//! # A candidate that does not confirm (C8)
//!
//! It never acted, so it is OUT without a clock. But its *session* may be alive, and a late renewal
//! of it would be acknowledged; the acknowledgement names only the highest grant of the session.
//! Taking a single grant away from a session that lives on has a hole: [granted A at 10 and B at
//! 20, both while it was cut off; A expires unconfirmed and goes to another; it comes back, names
//! 20, is acknowledged, and must think that 10 was confirmed with it]. So the whole session ends,
//! with its renewal number compared, and only if it leads nothing that it has confirmed; one that
//! does is left to its ttl. Such a client finds `SessionGone`, which nobody can misread.

use std::collections::{BTreeMap, BTreeSet};

use super::{Decision, Line};
use crate::command::{Command, Lapsed};
use crate::effect::{Applied, Change};
use crate::id::{ElectionName, Revision, SessionId};
use crate::lease::NodeClock;
use crate::lease::skew::SkewVerdict;
use crate::limits::GRANT_TIMEOUT_MS;
use crate::state::State;
use crate::state::session::Session;
use crate::time::{Micros, Reading};

/// Sessions in one entry: with a few leases each this applies in a few milliseconds; the death of
/// 100,000 clients at once takes a hundred ticks.
pub const MAX_LAPSED_PER_ENTRY: usize = 1_000;
/// Unconfirmed grants watched. A new leader, or the next grant, finds what did not fit; without it
/// they would end with their sessions' ttl.
const MAX_PENDING: usize = 50_000;
/// How often the elections may be walked to see what a tardy session leads besides.
const WALK_EVERY: Micros = Micros::from_ms(1_000);
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

#[derive(Clone, Copy, Debug)]
struct Pending {
    session: SessionId,
    /// When this leader saw it first; a hint that no safety rests on.
    since: Reading,
}

/// The leader's memory between ticks.
#[derive(Clone, Debug, Default)]
pub struct Expiry {
    term: Option<u64>,
    abstaining: bool,
    /// Grants not seen confirmed yet. One entry can grant several elections, so the name is part.
    pending: BTreeMap<(Revision, ElectionName), Pending>,
    walked: Option<Reading>,
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
                self.watch(holder.epoch.revision, name, holder.session, now);
            }
        }
    }

    fn watch(&mut self, grant: Revision, name: &ElectionName, session: SessionId, since: Reading) {
        if self.pending.len() < MAX_PENDING {
            self.pending.insert((grant, name.clone()), Pending { session, since });
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
            self.find_unconfirmed(view);
            let (sessions, grants) = (clock.session_count(), self.pending.len());
            decision.say(
                false,
                format!("leading in term {term}: {sessions} sessions and {grants} unconfirmed grants are watched"),
            );
        }
        if let SkewVerdict::Differs { against, peers } = view.skew {
            if !self.abstaining {
                decision.say(
                    false,
                    format!(
                        "no expiry: {against} of {peers} peers contradict this node's clock (C9)"
                    ),
                );
            }
            self.abstaining = true;
            return decision;
        }
        if std::mem::take(&mut self.abstaining) {
            // What was counted with the clock that differed proves nothing.
            clock.restart(view.now);
            decision
                .say(false, "the peers agree with this clock again: all timers start anew".into());
        }
        if clock.at() != view.state.revision() {
            let (clocks, state) = (clock.at(), view.state.revision());
            decision
                .say(false, format!("no expiry: clocks are at {clocks}, the state is at {state}"));
            return decision;
        }
        self.lapsed_sessions(view, clock, &mut decision);
        self.tardy_candidates(view, &mut decision);
        decision
    }

    fn lapsed_sessions(&self, view: &View<'_>, clock: &mut NodeClock, decision: &mut Decision) {
        let due = clock.due(view.now, MAX_LAPSED_PER_ENTRY);
        let lapsed = name_renewals(view.state, due);
        if !lapsed.is_empty() {
            let names = list(lapsed.iter().map(|one| one.session));
            decision.say(true, format!("sessions lapsed, expiry proposed: {names}"));
            decision.commands.push(Command::ExpireSessions { lapsed });
        }
    }

    /// Builds the list of grants that nobody confirmed yet; each gets the whole timeout from now.
    fn find_unconfirmed(&mut self, view: &View<'_>) {
        self.pending.clear();
        self.walked = None;
        for (name, row) in view.state.elections() {
            let Some(holder) = &row.holder else { continue };
            let grant = holder.epoch.revision;
            let confirmed = view
                .state
                .sessions()
                .get(&holder.session)
                .is_some_and(|session| session.known_grant >= grant);
            if !confirmed {
                self.watch(grant, name, holder.session, view.now);
            }
        }
    }

    fn tardy_candidates(&mut self, view: &View<'_>, decision: &mut Decision) {
        let mut tardy = BTreeSet::new();
        let state = view.state;
        let may_walk = self.walked.is_none_or(|at| view.now.since(at) >= WALK_EVERY);
        let mut to_walk = BTreeMap::new();
        self.pending.retain(|(grant, name), pending| {
            let leads =
                state.elections().get(name).and_then(|row| row.holder.as_ref()).is_some_and(
                    |holder| holder.session == pending.session && holder.epoch.revision == *grant,
                );
            let Some(session) = state.sessions().get(&pending.session) else { return false };
            if !leads || session.known_grant >= *grant {
                return false;
            }
            if view.now.since(pending.since) < patience(session) {
                return true;
            }
            if session.places <= 1 {
                tardy.insert(pending.session);
            } else if may_walk {
                to_walk.insert(pending.session, session.known_grant);
            }
            true
        });
        let mut left_alone = BTreeSet::new();
        if !to_walk.is_empty() {
            self.walked = Some(view.now);
            for row in state.elections().values() {
                let Some(holder) = &row.holder else { continue };
                let confirmed = to_walk
                    .get(&holder.session)
                    .is_some_and(|known_grant| holder.epoch.revision <= *known_grant);
                if confirmed {
                    to_walk.remove(&holder.session);
                    left_alone.insert(holder.session);
                    decision.say(
                        false,
                        format!(
                            "session {} does not confirm a grant, but leads others that it confirmed: left to its ttl",
                            holder.session
                        ),
                    );
                }
            }
            tardy.extend(to_walk.into_keys());
        }
        let tardy: BTreeSet<_> = tardy.into_iter().take(MAX_LAPSED_PER_ENTRY).collect();
        // A proposal may be lost, and a lease may be resigned: looked at again after the timeout.
        for pending in self.pending.values_mut() {
            if tardy.contains(&pending.session) || left_alone.contains(&pending.session) {
                pending.since = view.now;
            }
        }
        if !tardy.is_empty() {
            let names = list(tardy.iter().copied());
            decision.say(
                true,
                format!("candidates did not confirm their grant, expiry proposed (C8): {names}"),
            );
            let lapsed = name_renewals(state, tardy);
            decision.commands.push(Command::ExpireSessions { lapsed });
        }
    }
}

impl Decision {
    fn say(&mut self, acted: bool, text: String) {
        self.report.push(Line { acted, text });
    }
}

/// How long a candidate may take to confirm: the grant timeout, but time for a client that renews
/// seldom to hear of the grant with one renewal and to confirm it with the next.
fn patience(session: &Session) -> Micros {
    Micros::from_ms(GRANT_TIMEOUT_MS.max(session.renew_interval_ms.saturating_mul(3)))
}

/// Compare-and-set (C4): each session with the renewal that the state, and so the clock, saw last.
fn name_renewals(state: &State, sessions: impl IntoIterator<Item = SessionId>) -> Vec<Lapsed> {
    let known = |session| Some((session, state.sessions().get(&session)?.renewed));
    sessions.into_iter().filter_map(known).map(|(session, seen)| Lapsed { session, seen }).collect()
}

fn list(sessions: impl ExactSizeIterator<Item = SessionId>) -> String {
    let count = sessions.len();
    let mut text = sessions.take(MAX_NAMED).map(|id| id.to_string()).collect::<Vec<_>>().join(", ");
    if count > MAX_NAMED {
        text.push_str(&format!(" and {} more", count - MAX_NAMED));
    }
    text
}
