//! What the holder of a role said last (PROTOCOL.md C4), and the policies it has not taken up yet (C7).
//!
//! A table of its own, because a row changes with each renewal: watchers are not told, and the role's
//! row stands. It says nothing of who the holder is. What a holder said stays here when its session
//! ends, until the next one *acts*: a holder that never confirmed its grant wrote nothing (C8), so that
//! what could be lost is still what the one before it had.

use serde::{Deserialize, Serialize};

use super::row::ServiceRole;
use crate::id::{Epoch, InstanceName, RenewalNumber, Revision, ServiceName, SessionId};
use crate::limits::{MAX_FORMER_POLICIES, MAX_WATERMARKS};
use crate::role::{HolderInstant, HolderReport, StopInstant, Watermark};
use crate::spec::Policy;
use crate::state::journal::Draft;
use crate::state::session::Session;
use crate::state::version::REPORTS_LEVEL;

/// What is known of a service's holder beside the role's row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderRow {
    /// The last committed renewal that carried a report; `None`: there was none, or one without a
    /// report came after it.
    pub renewal: Option<LastRenewal>,
    /// Policies of before, which a holder may still act by; the oldest first.
    pub former: Vec<FormerPolicy>,
}

/// A policy that was replaced and may still be in force at the holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerPolicy {
    /// The revision that replaced it: a holder that names this one, or a later one, is done with it.
    pub until: Revision,
    /// As it was.
    pub policy: Policy,
}

/// The last committed renewal of a holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRenewal {
    /// Whose.
    pub instance: InstanceName,
    /// Under which epoch.
    pub epoch: Epoch,
    /// Over which session.
    pub session: SessionId,
    /// Its number.
    pub number: RenewalNumber,
    /// The longest ttl that any renewal of this epoch has named, in milliseconds: its deadlines only
    /// rise (docs/adr/0010).
    pub ttl_ms: u64,
    /// What it said.
    pub report: HolderReport,
    /// Watermarks of this epoch and this boot of its machine, the oldest first; both fields rise.
    pub marks: Vec<Watermark>,
    /// When its last process had ended, as its receipt said.
    pub stopped: Option<StopInstant>,
    /// Once the next epoch was granted: by when it was out. `None`: nobody can tell.
    pub out_by: Option<HolderInstant>,
}

impl HolderRow {
    /// The policy that binds (C7): a change is in force for safety only when the holder has named its
    /// revision in a renewal; until then each rule is the safer of both.
    pub fn policy_in_force(&self, declared: &Policy) -> Policy {
        self.former.iter().fold(*declared, |binds, former| binds.safer(&former.policy))
    }
}

/// Whether the cluster has the level for any of this.
pub(in crate::state) fn is_kept(draft: &Draft<'_>) -> bool {
    draft.rows().cluster().feature_level >= REPORTS_LEVEL
}

/// A renewal of the lease of `service` was taken. One that does not name the grant is of a holder that
/// does not act yet (C8).
pub(in crate::state) fn renewed(
    draft: &mut Draft<'_>,
    service: &ServiceName,
    id: SessionId,
    report: Option<&HolderReport>,
) {
    let rows = draft.rows();
    let (Some(role), Some(session)) = (rows.roles().get(service), rows.sessions().get(&id)) else {
        return;
    };
    let named = role.lease.as_ref().is_some_and(|lease| session.known_grant >= lease.mark);
    let Some(holder) = role.holder.as_ref().filter(|_| named) else { return };
    let old = rows.holders().get(service);
    let Some(report) = report else {
        // The last one says nothing, so nothing is known (C4).
        if let Some(old) = old.filter(|old| old.renewal.is_some()) {
            let row = HolderRow { renewal: None, former: old.former.clone() };
            draft.set_holder(service, Some(row));
        }
        return;
    };
    let before = old.and_then(|old| old.renewal.as_ref());
    let renewal = Some(next(role, holder, id, session, before, *report));
    let taken_up = |former: &&FormerPolicy| former.until > report.policy;
    let former = old.map(|old| old.former.iter().filter(taken_up).cloned().collect());
    draft.set_holder(service, Some(HolderRow { renewal, former: former.unwrap_or_default() }));
}

fn next(
    role: &ServiceRole,
    holder: &InstanceName,
    id: SessionId,
    session: &Session,
    before: Option<&LastRenewal>,
    report: HolderReport,
) -> LastRenewal {
    let before = before.filter(|last| last.epoch == role.epoch && last.instance == *holder);
    let same_clock = before.filter(|last| last.report.boot == report.boot);
    let mut marks = same_clock.map_or_else(Vec::new, |last| last.marks.clone());
    if let Some(mark) = report.watermark {
        note(&mut marks, mark);
    }
    LastRenewal {
        instance: holder.clone(),
        epoch: role.epoch,
        session: id,
        number: session.renewed,
        ttl_ms: before.map_or(0, |last| last.ttl_ms).max(session.ttl_ms),
        report,
        marks,
        stopped: None,
        out_by: None,
    }
}

/// Takes a mark in. The same end, seen later, is the newer watermark of the two; one that goes back
/// says nothing that may be believed.
fn note(marks: &mut Vec<Watermark>, mark: Watermark) {
    if let Some(last) = marks.last_mut() {
        if !mark.at.covers(&last.at) || mark.sampled < last.sampled {
            return;
        }
        if last.at.covers(&mark.at) {
            *last = mark;
            return;
        }
    }
    if marks.len() >= MAX_WATERMARKS {
        marks.remove(0);
    }
    marks.push(mark);
}

/// The holder's receipt said when its last process had ended.
pub(super) fn stopped(draft: &mut Draft<'_>, service: &ServiceName, stopped: StopInstant) {
    let rows = draft.rows();
    let (Some(role), Some(old)) = (rows.roles().get(service), rows.holders().get(service)) else {
        return;
    };
    let Some(last) = &old.renewal else { return };
    // An end of another boot than that of the renewals is on another clock.
    let of_it = last.epoch == role.epoch
        && role.holder.as_ref() == Some(&last.instance)
        && last.report.boot == stopped.boot;
    if of_it && last.stopped.is_none() {
        let mut row = HolderRow::clone(old);
        row.renewal = row.renewal.map(|last| LastRenewal { stopped: Some(stopped), ..last });
        draft.set_holder(service, Some(row));
    }
}

/// The next epoch is granted: by when the old holder was out, of one that ever acted.
pub(super) fn followed(
    draft: &mut Draft<'_>,
    service: &ServiceName,
    former: Epoch,
    out_by: Option<HolderInstant>,
) {
    let Some(old) = draft.rows().holders().get(service) else { return };
    if old.renewal.as_ref().is_some_and(|last| last.epoch == former) {
        let mut row = HolderRow::clone(old);
        row.renewal = row.renewal.map(|last| LastRenewal { out_by, ..last });
        draft.set_holder(service, Some(row));
    }
}

/// A policy is replaced at this revision: a holder may go on by it (C7).
pub(in crate::state) fn replaced(draft: &mut Draft<'_>, service: &ServiceName, policy: Policy) {
    let held = draft.rows().roles().get(service).is_some_and(|role| role.holder.is_some());
    if !held || !is_kept(draft) {
        return;
    }
    let old = draft.rows().holders().get(service);
    let mut row = old.map(|row| HolderRow::clone(row)).unwrap_or_default();
    row.former.push(FormerPolicy { until: draft.revision, policy });
    if row.former.len() > MAX_FORMER_POLICIES {
        // Two become one that is as careful as both.
        let oldest = row.former.remove(0);
        if let Some(next) = row.former.first_mut() {
            next.policy = next.policy.safer(&oldest.policy);
        }
    }
    draft.set_holder(service, Some(row));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::role::{Lsn, Position};

    fn mark(end: u64, ms: u64) -> Watermark {
        let at = Position { end: Lsn(end), ..Position::default() };
        Watermark { at, sampled: HolderInstant(ms * 1_000) }
    }

    #[test]
    fn an_idle_primary_does_not_push_its_watermarks_out() {
        let mut marks = Vec::new();
        for ms in 0..1_000 {
            note(&mut marks, mark(7, ms));
        }
        assert_eq!(marks, [mark(7, 999)], "the newest instant of the same end");
        for end in 8..1_000 {
            note(&mut marks, mark(end, 1_000 + end));
        }
        assert_eq!(marks.len(), MAX_WATERMARKS);
        assert_eq!(marks.last(), Some(&mark(999, 1_999)));
    }

    #[test]
    fn a_mark_that_goes_back_in_wal_or_in_time_is_not_taken() {
        let mut marks = vec![mark(10, 500)];
        note(&mut marks, mark(9, 600));
        note(&mut marks, mark(11, 400));
        assert_eq!(marks, [mark(10, 500)]);
    }
}
