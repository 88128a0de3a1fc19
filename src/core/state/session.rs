//! The sessions table. A session is what renews; the leases it holds live and end with it.
//!
//! A lease is judged by the log alone: a renewal by its number and nonce, an expiry by the renewal
//! it saw (C4). No clock decides here. Who may send a renewal is checked by the node that has the
//! client's stream, because one entry carries the renewals of many; everything else is checked
//! against the session's owner here.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::election;
use super::journal::Draft;
use super::role;
use crate::authz::{Principal, Role};
use crate::command::{Lapsed, Renewal};
use crate::effect::ClockEffect;
use crate::id::{Nonce, RenewalNumber, Revision, SessionId};
use crate::limits::{
    MAX_RENEWALS_PER_ENTRY, MAX_SESSIONS, MAX_SESSIONS_PER_OWNER, MAX_TEXT_BYTES, MAX_TTL_MS,
};
use crate::mutant::{Mutant, leaves_out};
use crate::reply::{Rejection, RenewalOutcome, Reply};
use crate::role::HolderReport;
use crate::timing::{Timing, TtlAsk};

/// One open session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Who opened it; only the same principal may use it.
    pub owner: Principal,
    /// Which start of the client.
    pub nonce: Nonce,
    /// Free text for people (host, program).
    pub label: String,
    /// How long it may go without a renewal, in milliseconds.
    pub ttl_ms: u64,
    /// How often it means to renew, in milliseconds.
    pub renew_interval_ms: u64,
    /// How long its client needs to stop acting, in milliseconds.
    pub fence_budget_ms: u64,
    /// Newest renewal applied.
    pub renewed: RenewalNumber,
    /// Newest acknowledgement the client has named.
    pub acked: RenewalNumber,
    /// Highest grant the client has named (C8); grants above it are not confirmed.
    pub known_grant: Revision,
    /// Highest grant given to it.
    pub grant: Revision,
    /// How many elections it leads or waits in; it must be 0 to vanish without a search.
    pub places: u32,
}

/// The part of a session that renewals and grants change: small, so that 33,000 renewals a second
/// leave no copies of labels and owners in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Marks {
    pub renewed: RenewalNumber,
    pub acked: RenewalNumber,
    pub known_grant: Revision,
    pub grant: Revision,
    pub places: u32,
}

impl Session {
    /// What it asks of C6.
    pub fn ask(&self) -> TtlAsk {
        TtlAsk {
            ttl_ms: self.ttl_ms,
            renew_interval_ms: self.renew_interval_ms,
            fence_budget_ms: self.fence_budget_ms,
        }
    }

    pub(super) fn marks(&self) -> Marks {
        let Self { renewed, acked, known_grant, grant, places, .. } = *self;
        Marks { renewed, acked, known_grant, grant, places }
    }

    pub(super) fn set_marks(&mut self, marks: Marks) {
        let Marks { renewed, acked, known_grant, grant, places } = marks;
        self.renewed = renewed;
        self.acked = acked;
        self.known_grant = known_grant;
        self.grant = grant;
        self.places = places;
    }
}

/// The session, if it is open and belongs to who asks.
pub(super) fn owned<'d>(draft: &'d Draft<'_>, id: SessionId) -> Result<&'d Session, Rejection> {
    let Some(session) = draft.rows().sessions().get(&id) else {
        return Err(Rejection::SessionGone { session: id });
    };
    if session.owner != *draft.by {
        return Err(Rejection::NotOwner { session: id, owner: session.owner.to_string() });
    }
    Ok(session)
}

/// As [`owned`], and of this start of the client.
pub(super) fn live<'d>(
    draft: &'d Draft<'_>,
    id: SessionId,
    nonce: Nonce,
) -> Result<&'d Session, Rejection> {
    let session = owned(draft, id)?;
    if session.nonce != nonce {
        return Err(Rejection::NonceStale { session: id });
    }
    Ok(session)
}

/// C6: whether the cluster can keep such a lease through a change of its leader.
pub(super) fn check_ttl(timing: &Timing, ask: &TtlAsk) -> Result<(), Rejection> {
    let invalid = |field: &str, problem: String, fix: String| {
        Err(Rejection::Invalid { field: field.to_owned(), problem, fix })
    };
    if ask.ttl_ms > MAX_TTL_MS {
        let problem = format!("{} ms is longer than a day", ask.ttl_ms);
        return invalid("ttl_ms", problem, format!("use at most {MAX_TTL_MS}"));
    }
    if ask.renew_interval_ms == 0 {
        let fix = format!("{} is usual", TtlAsk::default_interval_ms(ask.ttl_ms));
        return invalid("renew_interval_ms", "it is 0".to_owned(), fix);
    }
    if timing.allows(ask) {
        return Ok(());
    }
    Err(Rejection::TtlTooShort {
        ttl_ms: ask.ttl_ms,
        least_ms: timing.least_ttl_like(ask),
        terms: timing.terms(ask),
    })
}

/// Whether `owner`, who has `open` sessions, may open another one: no single client's certificate,
/// stolen or badly programmed, may take the cluster's sessions from all others. Those who could do
/// worse anyway have no bound of their own.
fn check_owned(owner: &Principal, open: usize) -> Result<(), Rejection> {
    let bounded = !matches!(owner.role, Role::Node | Role::Operator | Role::Admin);
    if bounded && open >= MAX_SESSIONS_PER_OWNER {
        let what = format!("open sessions of {owner}");
        return Err(Rejection::Quota { what, limit: MAX_SESSIONS_PER_OWNER as u64 });
    }
    Ok(())
}

pub(super) fn open(
    draft: &mut Draft<'_>,
    ask: TtlAsk,
    nonce: Nonce,
    label: String,
) -> Result<Reply, Rejection> {
    draft.bootstrapped()?;
    super::describe::check_text("label", &label, MAX_TEXT_BYTES)?;
    check_ttl(&draft.rows().cluster().timing, &ask)?;
    if draft.rows().sessions().len() >= MAX_SESSIONS {
        let what = "open sessions".to_owned();
        return Err(Rejection::Quota { what, limit: MAX_SESSIONS as u64 });
    }
    check_owned(draft.by, draft.rows().sessions_of(draft.by))?;
    let session = SessionId(draft.revision.0);
    let row = Session {
        owner: draft.by.clone(),
        nonce,
        label,
        ttl_ms: ask.ttl_ms,
        renew_interval_ms: ask.renew_interval_ms,
        fence_budget_ms: ask.fence_budget_ms,
        renewed: RenewalNumber(0),
        acked: RenewalNumber(0),
        known_grant: Revision(0),
        grant: Revision(0),
        places: 0,
    };
    draft.open_session(session, row);
    draft.clock(ClockEffect::Renewed(session));
    Ok(Reply::SessionOpened { session, revision: draft.revision })
}

/// `reports` are of the renewals at the places they name; places that do not rise are passed over.
pub(super) fn renew(
    draft: &mut Draft<'_>,
    renewals: &[Renewal],
    reports: &[(u32, HolderReport)],
) -> Result<Reply, Rejection> {
    check_batch("renewals in one entry", renewals.len())?;
    let kept = role::holder::is_kept(draft);
    let mut reports = reports.iter().peekable();
    let mut renew_at = |(place, renewal): (u32, &Renewal)| {
        while reports.next_if(|(of, _)| *of < place).is_some() {}
        let report = reports.next_if(|(of, _)| *of == place).map(|(_, report)| report);
        let outcome = renew_one(draft, renewal);
        if kept
            && matches!(outcome, RenewalOutcome::Extended { .. })
            && let Some(service) = draft.rows().lease_of(renewal.session).cloned()
        {
            role::holder::renewed(draft, &service, renewal.session, report);
        }
        outcome
    };
    let outcomes = (0u32..).zip(renewals).map(&mut renew_at).collect();
    Ok(Reply::Renewed { outcomes, revision: draft.revision })
}

fn renew_one(draft: &mut Draft<'_>, renewal: &Renewal) -> RenewalOutcome {
    let Some(session) = draft.rows().sessions().get(&renewal.session) else {
        return RenewalOutcome::SessionGone;
    };
    if session.nonce != renewal.nonce {
        return RenewalOutcome::NonceStale;
    }
    // PROTOCOL.md D: under a fence the holder's lease is never extended, whatever its agent knows.
    if is_fenced(draft, renewal.session) && !leaves_out(Mutant::FenceRefusesRenewals) {
        return RenewalOutcome::SessionGone;
    }
    let mut marks = session.marks();
    if renewal.number <= marks.renewed {
        return RenewalOutcome::NumberStale { have: marks.renewed };
    }
    // Nobody can have heard of a grant, or of an acknowledgement, that was not given: a client that
    // names one does not confirm grants to come, nor claim acknowledgements to come.
    marks.known_grant = marks.known_grant.max(renewal.known_grant.min(marks.grant));
    marks.acked = marks.acked.max(renewal.acked.min(marks.renewed));
    marks.renewed = renewal.number;
    draft.mark_session(renewal.session, marks);
    draft.clock(ClockEffect::Renewed(renewal.session));
    RenewalOutcome::Extended { number: renewal.number, grant: marks.grant }
}

fn is_fenced(draft: &Draft<'_>, session: SessionId) -> bool {
    let rows = draft.rows();
    let role = rows.lease_of(session).and_then(|service| rows.roles().get(service));
    role.is_some_and(|role| role.fence.is_some())
}

pub(super) fn close(
    draft: &mut Draft<'_>,
    id: SessionId,
    nonce: Nonce,
) -> Result<Reply, Rejection> {
    live(draft, id, nonce)?;
    end(draft, &BTreeSet::from([id]), End::Closed);
    Ok(Reply::Done { revision: draft.revision })
}

pub(super) fn expire(draft: &mut Draft<'_>, lapsed: &[Lapsed]) -> Result<Reply, Rejection> {
    check_batch("sessions in one entry", lapsed.len())?;
    let sessions = draft.rows().sessions();
    let gone: BTreeSet<SessionId> = lapsed
        .iter()
        .filter(|lapsed| {
            // C4: a renewal that was committed first wins.
            sessions.get(&lapsed.session).is_some_and(|row| row.renewed == lapsed.seen)
        })
        .map(|lapsed| lapsed.session)
        .collect();
    end(draft, &gone, End::Expired);
    Ok(Reply::Expired { count: gone.len() as u32, revision: draft.revision })
}

/// Why sessions end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The leader waited until their holders cannot believe in them any more (C2).
    Expired,
    /// Their client said so.
    Closed,
    /// A grant was not taken up in time (C8).
    Unused,
    /// A later start of the same agent took over, or the next epoch was granted.
    Replaced,
}

impl End {
    const fn why(self) -> &'static str {
        match self {
            Self::Expired => "its session expired",
            Self::Closed => "its session was closed",
            Self::Unused => "its grant was not taken up in time",
            Self::Replaced => "a later session took its place",
        }
    }
}

/// Ends all of `gone` together: an election that several of them held or waited in is given to the
/// next once, and to none of them.
pub(super) fn end(draft: &mut Draft<'_>, gone: &BTreeSet<SessionId>, how: End) {
    let why = how.why();
    for session in gone {
        role::life::session_ended(draft, *session, how);
    }
    let elections: BTreeSet<_> =
        gone.iter().flat_map(|session| draft.rows().places_of(*session)).cloned().collect();
    for name in &elections {
        election::leave(draft, name, gone, "election.lost", why);
    }
    for session in gone {
        draft.end_session(*session);
        draft.clock(ClockEffect::Ended(*session));
    }
}

pub(super) fn check_batch(what: &str, len: usize) -> Result<(), Rejection> {
    if len <= MAX_RENEWALS_PER_ENTRY {
        return Ok(());
    }
    Err(Rejection::Quota { what: what.to_owned(), limit: MAX_RENEWALS_PER_ENTRY as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Command, Entry};
    use crate::id::Incarnation;
    use crate::state::State;
    use crate::time::WallMs;

    #[test]
    fn one_client_may_open_its_share_of_sessions_and_not_those_of_others() {
        let mut state = State::default();
        let mut run = |by: &Principal, command: &Command| {
            let entry = Entry::new(WallMs(1), by.clone(), None, command);
            state.apply(state.revision().next(), &entry.encode()).reply
        };
        let (ann, bob) = (Principal::new(Role::Client, "ann"), Principal::new(Role::Client, "bob"));
        let incarnation = Incarnation { counter: 1, id: 7 };
        let (cluster, timing) = ("t".to_owned(), Timing::LAN);
        run(&Principal::cluster(), &Command::Bootstrap { incarnation, cluster, timing });
        let open = Command::OpenSession {
            ttl_ms: 10_000,
            renew_interval_ms: 500,
            fence_budget_ms: 250,
            nonce: Nonce(1),
            label: String::new(),
        };
        let mut last = SessionId(0);
        for _ in 0..MAX_SESSIONS_PER_OWNER {
            let Reply::SessionOpened { session, .. } = run(&ann, &open) else {
                panic!("refused too early");
            };
            last = session;
        }
        let limit = MAX_SESSIONS_PER_OWNER as u64;
        let what = "open sessions of client/ann".to_owned();
        assert_eq!(run(&ann, &open), Reply::Rejected(Rejection::Quota { what, limit }));
        assert!(matches!(run(&bob, &open), Reply::SessionOpened { .. }));
        // One that ends gives its place back.
        run(&ann, &Command::CloseSession { session: last, nonce: Nonce(1) });
        assert!(matches!(run(&ann, &open), Reply::SessionOpened { .. }));
    }

    #[test]
    fn who_runs_the_cluster_has_no_bound_of_its_own() {
        let at = |role| check_owned(&Principal::new(role, "x"), MAX_SESSIONS_PER_OWNER).is_ok();
        let free: Vec<Role> = Role::ALL.into_iter().filter(|role| at(*role)).collect();
        assert_eq!(free, [Role::Node, Role::Operator, Role::Admin]);
    }
}
