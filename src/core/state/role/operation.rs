//! What follows a grant, and what people say: the verified promotion, phases, approvals, pauses.

use super::judge::Case;
use super::row::{Answer, Approval, Operation, Pause, Promotion, ServiceRole};
use super::{
    active, holder_or_cluster, load, no_fence, not_found, operation_in, plan, rule, same_epoch,
    save, this_fence,
};
use crate::authz::Role;
use crate::id::{Epoch, InstanceName, Revision, ServiceName};
use crate::limits::MAX_TEXT_BYTES;
use crate::reply::{Rejection, Reply, RoleRule};
use crate::role::{Loss, Lsn, Phase};
use crate::spec::OnViolation;
use crate::state::describe::check_text;
use crate::state::journal::Draft;

/// The canary returned: routes open. Said again after a fence that was given up, it opens them again.
pub(super) fn promoted(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    epoch: Epoch,
    timeline: u32,
    switch: Lsn,
) -> Result<Reply, Rejection> {
    let (service, mut role) = load(draft, name)?;
    holder_or_cluster(draft, name, &role)?;
    same_epoch(&role, epoch)?;
    no_fence(&role)?;
    if role.lapse_counts(service.spec.policy.mode) && role.lapsed.is_some() {
        let why = "the primary's lease has lapsed".to_owned();
        return Err(rule(RoleRule::TooLate, why));
    }
    let same = role.promoted.is_some_and(|was| was.timeline == timeline && was.switch == switch);
    let is_drained = role.operation.is_some_and(|id| {
        let row = draft.rows().operations().get(&(name.clone(), id));
        row.is_some_and(|row| plan::is_drained(row, &role))
    });
    if same && (role.routes_open || is_drained) {
        return Ok(Reply::Unchanged { revision: role.changed });
    }
    let key = role.operation.map(|id| (name.clone(), id));
    let repair = match key {
        Some(key) if awaits(draft, &key, epoch) => {
            let row = operation_in(draft, &key, Phase::Repair)?;
            Some((key, row))
        }
        _ => None,
    };
    if !same {
        role.promoted = Some(Promotion { timeline, switch, revision: draft.revision });
        role.timeline = role.timeline.max(timeline);
    }
    // What was closed for a switchover stays closed for it, whatever its primary went through since.
    role.routes_open = !is_drained;
    role.confirmed = true;
    let holder = role.holder.as_ref().map_or("nobody", |holder| holder.as_str()).to_owned();
    save(draft, name, role);
    if let Some((key, row)) = repair {
        draft.set_operation(&key, Some(row));
    }
    let outcome = format!("{holder} under epoch {epoch}, timeline {timeline} from {switch}");
    draft.note("role.promoted", name.as_str(), "", &outcome);
    Ok(Reply::Done { revision: draft.revision })
}

/// Whether this operation granted `epoch` and waits for its promotion.
fn awaits(draft: &Draft<'_>, key: &crate::state::OperationKey, epoch: Epoch) -> bool {
    let row = draft.rows().operations().get(key);
    row.is_some_and(|row| row.phase == Phase::Promote && row.epoch == Some(epoch))
}

/// Promote, Repair, Done: only forward, and only by the cluster. All other phases are begun by the
/// commands that do what they stand for.
pub(super) fn advance(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    operation: Revision,
    phase: Phase,
) -> Result<Reply, Rejection> {
    load(draft, name)?;
    if draft.by.role != Role::Node {
        return Err(Rejection::Invalid {
            field: "phase".to_owned(),
            problem: format!("{} does not run operations", draft.by),
            fix: "the cluster advances them by itself".to_owned(),
        });
    }
    let key = (name.clone(), operation);
    let Some(was) = draft.rows().operations().get(&key).map(|row| row.phase) else {
        return Err(not_found("operation", format!("{name}/{operation}")));
    };
    if was == phase {
        return Ok(Reply::Unchanged { revision: draft.revision });
    }
    if !matches!((was, phase), (Phase::Promote, Phase::Repair) | (Phase::Repair, Phase::Done)) {
        return Err(rule(RoleRule::WrongPhase, format!("{phase} does not follow {was}")));
    }
    let row = operation_in(draft, &key, phase)?;
    draft.set_operation(&key, Some(row));
    let resource = format!("{name}/{operation}");
    draft.note("operation.advanced", &resource, "", &format!("from {was} to {phase}"));
    Ok(Reply::Done { revision: draft.revision })
}

/// What people are asked.
pub(super) struct Ask {
    pub candidate: InstanceName,
    pub loss: Loss,
    pub without_out: bool,
    pub question: String,
}

pub(super) fn ask(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    fence: Revision,
    ask: Ask,
) -> Result<Reply, Rejection> {
    check_text("question", &ask.question, MAX_TEXT_BYTES)?;
    let (service, role) = load(draft, name)?;
    let open = this_fence(&role, fence)?;
    let (key, Ask { candidate, loss, without_out, question }) =
        ((name.clone(), open.operation), ask);
    if !service.spec.instances.iter().any(|declared| declared.name == candidate) {
        return Err(not_found("instance", super::at(name, &candidate)));
    }
    // H: people answer to figures of the log.
    let case = Case::in_rows(draft.rows(), name, &service.spec, &role, None);
    case.is_not_below(&candidate, loss).map_err(|why| rule(RoleRule::LossBound, why))?;
    if case.policy.loss_bound.on_violation == OnViolation::Refuse {
        let why = "the policy is to refuse and not to ask".to_owned();
        return Err(rule(RoleRule::LossBound, why));
    }
    let mut row = operation_in(draft, &key, Phase::Approval)?;
    let asked = row.approval.as_ref().filter(|asked| asked.answer.is_none());
    if let Some(asked) = asked
        && asked.candidate == candidate
        && (asked.loss, asked.without_out) == (loss, without_out)
    {
        return Ok(Reply::Unchanged { revision: asked.id });
    }
    let id = draft.revision;
    let outcome = format!("{id}: {candidate} as primary? {question}");
    row.approval = Some(Approval { id, candidate, loss, without_out, question, answer: None });
    draft.set_operation(&key, Some(row));
    draft.note("approval.opened", name.as_str(), &format!("fence {fence}"), &outcome);
    Ok(Reply::Done { revision: id })
}

/// A denial keeps the fence open: what is proved stays proved, and another question may be asked.
pub(super) fn answer(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    approval: Revision,
    granted: bool,
    reason: String,
) -> Result<Reply, Rejection> {
    check_text("reason", &reason, MAX_TEXT_BYTES)?;
    let (_, role) = load(draft, name)?;
    let missing = || not_found("approval", format!("{name}/{approval}"));
    let key = (name.clone(), role.fence.as_ref().ok_or_else(missing)?.operation);
    let rows = draft.rows().operations();
    let asked = rows.get(&key).and_then(|row| row.approval.as_ref());
    let asked = asked.filter(|asked| asked.id == approval).ok_or_else(missing)?;
    if let Some(Answer { by, granted, .. }) = &asked.answer {
        let said = if *granted { "granted" } else { "denied" };
        return Err(rule(RoleRule::WrongPhase, format!("{by} has {said} it already")));
    }
    let mut row: Operation = operation_in(draft, &key, Phase::Fence)?;
    let by = draft.by.to_string();
    if let Some(asked) = &mut row.approval {
        asked.answer = Some(Answer { granted, by, reason: reason.clone() });
    }
    draft.set_operation(&key, Some(row));
    let said = if granted { "granted" } else { "denied" };
    draft.note("approval.answered", name.as_str(), &reason, &format!("{approval}: {said}"));
    Ok(Reply::Done { revision: draft.revision })
}

pub(super) fn pause(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    paused: bool,
    reason: String,
) -> Result<Reply, Rejection> {
    check_text("reason", &reason, MAX_TEXT_BYTES)?;
    active(draft, name)?;
    let role = draft.rows().roles().get(name);
    let mut role = role.map_or_else(|| ServiceRole::new(draft.revision), |row| (**row).clone());
    if role.paused.is_some() == paused {
        return Ok(Reply::Unchanged { revision: role.changed });
    }
    let (since, by) = (draft.revision, draft.by.to_string());
    role.paused = paused.then(|| Pause { since, by, reason: reason.clone() });
    save(draft, name, role);
    let (what, outcome) = if paused {
        ("service.paused", "the cluster changes no role by itself")
    } else {
        ("service.resumed", "the cluster acts by itself again")
    };
    draft.note(what, name.as_str(), &reason, outcome);
    Ok(Reply::Done { revision: draft.revision })
}
