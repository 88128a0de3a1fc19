//! The elections table: one holder, a queue, a value.
//!
//! The next holder is the waiting candidate with the highest priority; among equals one in the
//! preferred locality; among those the one that waited longest. A holder is never displaced by a
//! better candidate: leadership ends by resignation, by the end of the session, or because the
//! grant was never taken up (C8).
//!
//! An epoch is (incarnation counter, revision of the granting entry), and an entry grants one key
//! at most once; so epochs of a key rise strictly (S3), also when the election is deleted and made
//! again in between.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::describe::{check_expect, check_locality};
use super::journal::Draft;
use super::session;
use crate::command::{Expect, UnusedGrant};
use crate::id::{ElectionName, Epoch, Locality, Nonce, Revision, SessionId};
use crate::limits::{
    MAX_CANDIDATES, MAX_ELECTIONS, MAX_GRANTS_PER_ENTRY, MAX_PLACES_PER_SESSION, MAX_QUEUE_BYTES,
    MAX_VALUE_BYTES,
};
use crate::reply::{Rejection, Reply};

/// One election.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Election {
    /// Highest epoch ever granted here (S3), whether or not its holder is still there.
    pub epoch: Epoch,
    /// The present leader.
    pub holder: Option<Holder>,
    /// Those who wait, in order of arrival.
    pub queue: Vec<Candidate>,
    /// Where the leader should rather be; empty parts do not matter.
    pub preferred: Locality,
    /// Revision of the first campaign or `PutElection`.
    pub created: Revision,
    /// Revision of the last change.
    pub changed: Revision,
}

/// The leader of an election.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Whose lease it is.
    pub session: SessionId,
    /// Its fencing token.
    pub epoch: Epoch,
    /// What it proclaimed last; at first what it campaigned with.
    pub value: Vec<u8>,
    /// Revision of the last proclamation; of the grant until then.
    pub proclaimed: Revision,
    /// As it campaigned.
    pub priority: i32,
    /// As it campaigned.
    pub locality: Locality,
}

/// One who waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its session.
    pub session: SessionId,
    /// Higher goes first.
    pub priority: i32,
    /// Where it is.
    pub locality: Locality,
    /// Revision of its first campaign: its place in the queue.
    pub since: Revision,
    /// What it will proclaim when it is granted.
    pub value: Vec<u8>,
}

impl Election {
    fn new(revision: Revision) -> Self {
        Self {
            epoch: Epoch::NONE,
            holder: None,
            queue: Vec::new(),
            preferred: Locality::default(),
            created: revision,
            changed: revision,
        }
    }

    /// Everyone with a place here: the holder, then the queue.
    pub fn sessions(&self) -> impl Iterator<Item = SessionId> {
        let holder = self.holder.iter().map(|holder| holder.session);
        holder.chain(self.queue.iter().map(|candidate| candidate.session))
    }

    /// Whether `session` leads or waits here.
    pub fn has(&self, session: SessionId) -> bool {
        self.sessions().any(|placed| placed == session)
    }

    /// Whether the same sessions have the same places in both; values and preferences may differ.
    pub(super) fn same_places(&self, other: &Self) -> bool {
        self.queue.len() == other.queue.len() && self.sessions().eq(other.sessions())
    }

    /// Who is granted next: the index in the queue.
    pub fn next(&self) -> Option<usize> {
        (0..self.queue.len()).min_by_key(|at| self.rank(&self.queue[*at]))
    }

    /// How many of the queue are granted before `session`; `None` if it does not wait.
    pub fn ahead_of(&self, session: SessionId) -> Option<u32> {
        let mine = self.rank(self.queue.iter().find(|waiting| waiting.session == session)?);
        let ahead = self.queue.iter().filter(|waiting| self.rank(waiting) < mine).count();
        Some(u32::try_from(ahead).unwrap_or(u32::MAX))
    }

    fn rank(&self, candidate: &Candidate) -> (Reverse<i32>, bool, Revision) {
        let elsewhere = !candidate.locality.within(&self.preferred);
        (Reverse(candidate.priority), elsewhere, candidate.since)
    }
}

/// What a candidate brings.
pub(super) struct Bid {
    pub session: SessionId,
    pub nonce: Nonce,
    pub priority: i32,
    pub locality: Locality,
    pub value: Vec<u8>,
}

/// Campaigning again tells where one stands. One who waits keeps its place and brings its new value
/// and priority; one who leads keeps what it proclaimed, because a client that comes back and
/// campaigns to learn its standing must not undo its own proclamation.
pub(super) fn campaign(
    draft: &mut Draft<'_>,
    name: &ElectionName,
    bid: Bid,
) -> Result<Reply, Rejection> {
    draft.bootstrapped()?;
    let places = session::live(draft, bid.session, bid.nonce)?.places;
    check_value(&bid.value)?;
    check_locality("locality", &bid.locality)?;
    let elections = draft.rows().elections();
    let old = elections.get(name).cloned();
    if old.is_none() && elections.len() >= MAX_ELECTIONS {
        return Err(quota("elections", MAX_ELECTIONS));
    }
    if places as usize >= MAX_PLACES_PER_SESSION
        && !old.as_ref().is_some_and(|row| row.has(bid.session))
    {
        return Err(quota("elections one session leads or waits in", MAX_PLACES_PER_SESSION));
    }
    let mut row = old.as_deref().cloned().unwrap_or_else(|| Election::new(draft.revision));
    let session = bid.session;
    match &mut row.holder {
        Some(holder) if holder.session == session => {
            holder.priority = bid.priority;
            holder.locality = bid.locality;
        }
        Some(_) => enqueue(&mut row, bid, draft.revision)?,
        None => {
            enqueue(&mut row, bid, draft.revision)?;
            grant_next(draft, name, &mut row, "nobody led");
        }
    }
    let reply = match &row.holder {
        Some(holder) if holder.session == session => {
            Reply::Granted { epoch: holder.epoch, revision: draft.revision }
        }
        _ => {
            let ahead = row.ahead_of(session).expect("it was put into the queue above");
            Reply::Queued { ahead, revision: draft.revision }
        }
    };
    if old.as_deref() != Some(&row) {
        row.changed = draft.revision;
        draft.set_election(name, Some(row));
    }
    Ok(reply)
}

fn enqueue(row: &mut Election, bid: Bid, revision: Revision) -> Result<(), Rejection> {
    let others = row.queue.iter().filter(|waiting| waiting.session != bid.session);
    let (count, bytes) =
        others.fold((0, 0), |(count, bytes), waiting| (count + 1, bytes + waiting.value.len()));
    if count >= MAX_CANDIDATES {
        return Err(quota("candidates in the queue", MAX_CANDIDATES));
    }
    if bytes + bid.value.len() > MAX_QUEUE_BYTES {
        return Err(quota("bytes of values in the queue", MAX_QUEUE_BYTES));
    }
    let Bid { session, priority, locality, value, .. } = bid;
    match row.queue.iter_mut().find(|waiting| waiting.session == session) {
        Some(waiting) => {
            *waiting = Candidate { session, priority, locality, since: waiting.since, value };
        }
        None => row.queue.push(Candidate { session, priority, locality, since: revision, value }),
    }
    Ok(())
}

/// Gives a free election to the next in its queue, unless a new life still waits for the leases of
/// the one before. The caller writes the row.
fn grant_next(draft: &mut Draft<'_>, name: &ElectionName, row: &mut Election, why: &str) {
    if draft.rows().cluster().grants_held_ms == 0 {
        grant(draft, name, row, why);
    }
}

fn grant(draft: &mut Draft<'_>, name: &ElectionName, row: &mut Election, why: &str) {
    let Some(at) = row.next() else { return };
    let Candidate { session, priority, locality, value, .. } = row.queue.remove(at);
    let epoch = draft.epoch();
    row.epoch = epoch;
    let proclaimed = draft.revision;
    row.holder = Some(Holder { session, epoch, value, proclaimed, priority, locality });
    if let Some(grantee) = draft.rows().sessions().get(&session) {
        let mut marks = grantee.marks();
        let owner = grantee.owner.to_string();
        marks.grant = draft.revision;
        draft.mark_session(session, marks);
        let outcome = format!("session {session} of {owner} leads under epoch {epoch}");
        draft.note("election.granted", name.as_str(), why, &outcome);
    }
}

/// Gives free elections to the next in their queues, although grants are held back: the wait is over.
/// Whether none is left.
pub(super) fn grant_free(draft: &mut Draft<'_>) -> bool {
    let elections = draft.rows().elections().iter();
    let mut free = elections.filter(|(_, row)| row.holder.is_none() && !row.queue.is_empty());
    let some = free.by_ref().take(MAX_GRANTS_PER_ENTRY);
    let some: Vec<_> = some.map(|(name, row)| (name.clone(), Election::clone(row))).collect();
    let all = free.next().is_none();
    for (name, mut row) in some {
        grant(draft, &name, &mut row, "grants were held back");
        row.changed = draft.revision;
        draft.set_election(&name, Some(row));
    }
    all
}

/// Takes all of `gone` out of an election; if one of them led, the next is granted. `what` names
/// the audit record of a lost leadership, `why` its cause.
pub(super) fn leave(
    draft: &mut Draft<'_>,
    name: &ElectionName,
    gone: &BTreeSet<SessionId>,
    what: &'static str,
    why: &str,
) {
    let Some(old) = draft.rows().elections().get(name) else { return };
    let mut row = Election::clone(old);
    row.queue.retain(|waiting| !gone.contains(&waiting.session));
    if let Some(holder) = row.holder.take_if(|holder| gone.contains(&holder.session)) {
        let outcome = format!("session {} led under epoch {}", holder.session, holder.epoch);
        draft.note(what, name.as_str(), why, &outcome);
        grant_next(draft, name, &mut row, &format!("next after session {}", holder.session));
    }
    row.changed = draft.revision;
    draft.set_election(name, Some(row));
}

pub(super) fn resign(
    draft: &mut Draft<'_>,
    name: &ElectionName,
    id: SessionId,
    nonce: Nonce,
) -> Result<Reply, Rejection> {
    session::live(draft, id, nonce)?;
    if !find(draft, name)?.has(id) {
        return Err(Rejection::NotHolder { election: name.to_string(), session: id });
    }
    leave(draft, name, &BTreeSet::from([id]), "election.resigned", "it resigned");
    Ok(Reply::Done { revision: draft.revision })
}

/// Ends the leadership under `epoch` and no other: the session may have won again since, and its
/// holder believes in that lease (S5); or it waits, and has not said that it gives up its place.
pub(super) fn resign_epoch(
    draft: &mut Draft<'_>,
    name: &ElectionName,
    id: SessionId,
    nonce: Nonce,
    epoch: Epoch,
) -> Result<Reply, Rejection> {
    session::live(draft, id, nonce)?;
    let row = find(draft, name)?;
    if epoch != row.epoch {
        return Err(Rejection::EpochStale { have: row.epoch, got: epoch });
    }
    if row.holder.as_ref().is_none_or(|holder| holder.session != id) {
        return Err(Rejection::NotHolder { election: name.to_string(), session: id });
    }
    leave(draft, name, &BTreeSet::from([id]), "election.resigned", "it resigned");
    Ok(Reply::Done { revision: draft.revision })
}

/// A proclamation names the epoch, so its sender knows of the grant: it confirms the lease as a
/// renewal would (C8). Otherwise a grant could be taken back as "never acted on" after it had
/// acted.
pub(super) fn proclaim(
    draft: &mut Draft<'_>,
    name: &ElectionName,
    id: SessionId,
    epoch: Epoch,
    value: Vec<u8>,
) -> Result<Reply, Rejection> {
    let row = find(draft, name)?;
    let have = row.epoch;
    // The epoch comes before the session: to one who was fenced, the epoch in force says why.
    if epoch < have {
        return Err(Rejection::EpochStale { have, got: epoch });
    }
    let mut marks = session::owned(draft, id)?.marks();
    let Some(holder) = row.holder.as_ref().filter(|holder| holder.session == id) else {
        return Err(Rejection::NotHolder { election: name.to_string(), session: id });
    };
    if holder.epoch != epoch {
        return Err(Rejection::EpochStale { have, got: epoch });
    }
    check_value(&value)?;
    if marks.known_grant < epoch.revision {
        marks.known_grant = epoch.revision;
        draft.mark_session(id, marks);
    }
    let mut row = Election::clone(&row);
    if let Some(holder) = &mut row.holder {
        holder.value = value;
        holder.proclaimed = draft.revision;
    }
    row.changed = draft.revision;
    draft.set_election(name, Some(row));
    Ok(Reply::Done { revision: draft.revision })
}

/// C8: a grant that was never confirmed was never acted on, so it is taken back without a clock,
/// *by ending the session*. Taking back the one grant and leaving the session open has a hole: [the
/// renewal that names the grant is under way while the grant is taken back; it is committed after
/// that, extends the session, and its acknowledgement tells the client that its grant is
/// confirmed]. An ended session answers `SessionGone`, which cannot be misread.
///
/// A session that leads another election on a confirmed grant may be acting there, so it is left to
/// its ttl.
pub(super) fn expire_grants(
    draft: &mut Draft<'_>,
    unused: &[UnusedGrant],
) -> Result<Reply, Rejection> {
    session::check_batch("grants in one entry", unused.len())?;
    let gone: BTreeSet<SessionId> =
        unused.iter().filter_map(|grant| never_acted(draft, grant)).collect();
    session::end(draft, &gone, session::End::Unused);
    Ok(Reply::Expired { count: gone.len() as u32, revision: draft.revision })
}

/// The session of a grant that is in force and unconfirmed, if it has confirmed no other either.
fn never_acted(draft: &Draft<'_>, grant: &UnusedGrant) -> Option<SessionId> {
    let rows = draft.rows();
    let holder = rows.elections().get(&grant.election)?.holder.as_ref()?;
    let known = rows.sessions().get(&holder.session)?.known_grant;
    let confirmed = |name: &ElectionName| {
        let other = rows.elections().get(name).and_then(|row| row.holder.as_ref());
        other.is_some_and(|other| other.session == holder.session && other.epoch.revision <= known)
    };
    let acts = rows.places_of(holder.session).iter().any(confirmed)
        || rows.lease_of(holder.session).is_some();
    (holder.epoch == grant.epoch && !acts).then_some(holder.session)
}

pub(super) fn put(
    draft: &mut Draft<'_>,
    name: &ElectionName,
    preferred: Locality,
    expect: Expect,
) -> Result<Reply, Rejection> {
    draft.bootstrapped()?;
    check_locality("preferred", &preferred)?;
    let old = draft.rows().elections().get(name).cloned();
    check_expect("election", name.as_str(), old.as_ref().map(|row| row.changed), expect)?;
    if old.is_none() && draft.rows().elections().len() >= MAX_ELECTIONS {
        return Err(quota("elections", MAX_ELECTIONS));
    }
    if let Some(old) = old.as_ref().filter(|row| row.preferred == preferred) {
        return Ok(Reply::Unchanged { revision: old.changed });
    }
    let mut row = old.as_deref().cloned().unwrap_or_else(|| Election::new(draft.revision));
    let outcome = format!("preferred {preferred}");
    row.preferred = preferred;
    row.changed = draft.revision;
    draft.set_election(name, Some(row));
    draft.note("election.preferred", name.as_str(), "", &outcome);
    Ok(Reply::Done { revision: draft.revision })
}

pub(super) fn delete(
    draft: &mut Draft<'_>,
    name: &ElectionName,
    expect: Expect,
) -> Result<Reply, Rejection> {
    let row = find(draft, name)?;
    check_expect("election", name.as_str(), Some(row.changed), expect)?;
    if let Some(session) = row.sessions().next() {
        let by = format!("{} sessions, session {session} first", row.sessions().count());
        return Err(Rejection::InUse { what: "election".into(), name: name.to_string(), by });
    }
    draft.set_election(name, None);
    let outcome = format!("deleted; its highest epoch was {}", row.epoch);
    draft.note("election.deleted", name.as_str(), "", &outcome);
    Ok(Reply::Done { revision: draft.revision })
}

fn find(draft: &Draft<'_>, name: &ElectionName) -> Result<Arc<Election>, Rejection> {
    draft
        .rows()
        .elections()
        .get(name)
        .cloned()
        .ok_or_else(|| Rejection::NotFound { what: "election".to_owned(), name: name.to_string() })
}

fn check_value(value: &[u8]) -> Result<(), Rejection> {
    if value.len() <= MAX_VALUE_BYTES {
        Ok(())
    } else {
        Err(quota("bytes of a value", MAX_VALUE_BYTES))
    }
}

fn quota(what: &str, limit: usize) -> Rejection {
    Rejection::Quota { what: what.to_owned(), limit: limit as u64 }
}
