//! Role changes begin, go on and are given up (PROTOCOL.md D): `OpenFence`, `Cut`, takeover, fetch,
//! `CloseFence`.
//!
//! From `OpenFence` on the holder's lease is not extended (see `session::renew`) and its sets do not
//! change, until a grant or `CloseFence`.

use super::judge::electable;
use super::row::{Fence, Operation, ServiceRole};
use super::{at, enter, load, load_held, operation_in, plan, rule, save, this_fence};
use crate::authz::Role;
use crate::id::{Epoch, InstanceName, Revision, ServiceName};
use crate::limits::{MAX_NAME_BYTES, MAX_OPERATIONS_PER_SERVICE, MAX_TEXT_BYTES};
use crate::mutant::{Mutant, leaves_out};
use crate::reply::{Rejection, Reply, RoleRule};
use crate::role::{FenceKind, Loss, Order, Phase, Position, Proof};
use crate::spec::ServiceSpec;
use crate::state::describe::check_text;
use crate::state::journal::Draft;

pub(super) fn open(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    kind: FenceKind,
    seen: Epoch,
    reason: String,
) -> Result<Reply, Rejection> {
    check_text("reason", &reason, MAX_TEXT_BYTES)?;
    let (service, mut role, holder) = load_held(draft, name, seen)?;
    let planned = kind.is_planned();
    // What people announced goes on under its number, whoever proposes its fence.
    let prepared = plan::to_go_on(draft, name, &role, &kind)?;
    if prepared.is_none() {
        not_paused(draft, &role)?;
    }
    check_kind(&service.spec, &role, &kind)?;
    // S8: not even where its promotion was verified while this was on its way.
    let awaits = service.spec.policy.await_routers.percent > 0;
    if planned && awaits && role.routes_open && !leaves_out(Mutant::RoutesFirst) {
        let why = "routers are to leave the primary first, by its policy".to_owned();
        return Err(rule(RoleRule::WrongPhase, why));
    }
    let fence = draft.revision;
    let end_of_last = match prepared {
        Some(_) => None,
        None => end_of_last(draft, name, &role),
    };
    let outcome = format!("fence {fence} for the {} from {holder}", kind.name());
    let (key, mut row) = prepared.unwrap_or_else(|| {
        let row = new_operation(draft, kind.clone(), &holder, reason.clone());
        ((name.clone(), fence), row)
    });
    enter(draft, &mut row, Phase::Fence);
    let operation = key.1;
    let receipts = std::collections::BTreeMap::new();
    let (uncut, taken_over) = (planned, None);
    role.fence = Some(Fence { fence, operation, kind, uncut, taken_over, receipts });
    role.operation = Some(operation);
    role.routes_open = false;
    if planned {
        role.order(&holder, Order::Resign { fence }, fence);
    } else {
        fence_all(&mut role, &holder, fence);
    }
    save(draft, name, role);
    if let Some((key, row)) = end_of_last {
        draft.set_operation(&key, Some(row));
    }
    draft.set_operation(&key, Some(row));
    forget_oldest(draft, name);
    draft.note("role.fenced", name.as_str(), &reason, &outcome);
    Ok(Reply::Done { revision: fence })
}

/// The row of a role change that begins; its first phase is yet to be entered.
pub(super) fn new_operation(
    draft: &Draft<'_>,
    kind: FenceKind,
    holder: &InstanceName,
    reason: String,
) -> Operation {
    Operation {
        kind,
        by: draft.by.to_string(),
        reason,
        from: Some(holder.clone()),
        to: None,
        epoch: None,
        out: None,
        complete: None,
        loss: Loss::default(),
        phase: Phase::Fence,
        history: Vec::new(),
        approval: None,
    }
}

/// E5: what the cluster begins by itself waits for the end of a pause; people may.
fn not_paused(draft: &Draft<'_>, role: &ServiceRole) -> Result<(), Rejection> {
    match &role.paused {
        Some(pause) if draft.by.role == Role::Node => {
            let why =
                format!("{} paused it at revision {}: {}", pause.by, pause.since, pause.reason);
            Err(rule(RoleRule::Paused, why))
        }
        _ => Ok(()),
    }
}

pub(super) fn check_kind(
    spec: &ServiceSpec,
    role: &ServiceRole,
    kind: &FenceKind,
) -> Result<(), Rejection> {
    match kind {
        FenceKind::Failover { verdict, .. } => check_text("verdict", verdict, MAX_NAME_BYTES)?,
        FenceKind::Switchover { .. } => {}
    }
    let Some(to) = kind.wanted() else { return Ok(()) };
    if role.holder.as_ref() == Some(to) {
        return Err(rule(RoleRule::NotFree, format!("{to} is the primary already")));
    }
    electable(spec, role, to).map_err(|why| rule(RoleRule::NotFree, why))
}

/// An operation whose primary is to be changed again is over.
pub(super) fn end_of_last(
    draft: &Draft<'_>,
    name: &ServiceName,
    role: &ServiceRole,
) -> Option<(crate::state::OperationKey, Operation)> {
    let key = (name.clone(), role.operation?);
    let mut row = Operation::clone(draft.rows().operations().get(&key)?);
    if row.phase.is_over() {
        return None;
    }
    // One that was announced only has changed nobody's role.
    let end = if row.phase.is_before_fence() { Phase::GivenUp } else { Phase::Done };
    enter(draft, &mut row, end);
    Some((key, row))
}

pub(super) fn forget_oldest(draft: &mut Draft<'_>, name: &ServiceName) {
    let ids: Vec<_> = draft.rows().operations_of(name).map(|(id, _)| id).collect();
    let many = ids.len().saturating_sub(MAX_OPERATIONS_PER_SERVICE);
    for id in ids.into_iter().take(many) {
        draft.set_operation(&(name.clone(), id), None);
    }
}

/// In lease mode too: standbys give receipts there as recruits.
fn fence_all(role: &mut ServiceRole, holder: &InstanceName, fence: Revision) {
    let revision = fence;
    role.order(holder, Order::Stop { fence }, revision);
    detach_others(role, holder, fence, revision);
}

fn detach_others(
    role: &mut ServiceRole,
    holder: &InstanceName,
    fence: Revision,
    revision: Revision,
) {
    for standby in role.others(holder) {
        role.order(&standby, Order::Detach { fence }, revision);
    }
}

/// The proof of the holder that it stopped, if it gave one.
fn holder_proof(role: &ServiceRole) -> Option<Proof> {
    let receipts = &role.fence.as_ref()?.receipts;
    receipts.get(role.holder.as_ref()?).map(|receipt| receipt.proof)
}

pub(super) fn cut(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    fence: Revision,
) -> Result<Reply, Rejection> {
    let (_, mut role) = load(draft, name)?;
    let open = this_fence(&role, fence)?;
    if !open.kind.is_planned() {
        let why = "it is a failover: its standbys are detached already".to_owned();
        return Err(rule(RoleRule::WrongPhase, why));
    }
    if !open.uncut {
        return Ok(Reply::Unchanged { revision: role.changed });
    }
    let resigned =
        holder_proof(&role) == Some(Proof::Resigned) || leaves_out(Mutant::CutAfterResign);
    let Some(holder) = role.holder.clone().filter(|_| resigned) else {
        let why = "the primary has not resigned: its standbys still need what it writes".to_owned();
        return Err(rule(RoleRule::NotOut, why));
    };
    cut_now(&mut role, &holder, draft.revision);
    save(draft, name, role);
    let outcome = format!("standbys detach under fence {fence}");
    draft.note("role.cut", name.as_str(), &format!("{holder} resigned"), &outcome);
    Ok(Reply::Done { revision: draft.revision })
}

/// The standbys of a switchover detach from this entry on: what they can need of the old primary is
/// written.
pub(super) fn cut_now(role: &mut ServiceRole, holder: &InstanceName, revision: Revision) {
    let Some(open) = &mut role.fence else { return };
    open.uncut = false;
    let fence = open.fence;
    detach_others(role, holder, fence, revision);
}

/// The Resign stays valid under the new fence, all other receipts are void (D).
pub(super) fn take_over(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    planned: Revision,
    verdict: String,
    reason: &str,
) -> Result<Reply, Rejection> {
    check_text("verdict", &verdict, MAX_NAME_BYTES)?;
    check_text("reason", reason, MAX_TEXT_BYTES)?;
    let (_, mut role) = load(draft, name)?;
    let open = this_fence(&role, planned)?;
    if !open.kind.is_planned() {
        let why = "it is a failover already".to_owned();
        return Err(rule(RoleRule::WrongPhase, why));
    }
    not_paused(draft, &role)?;
    let key = (name.clone(), open.operation);
    // A question about the switchover is none about the failover.
    let mut row = operation_in(draft, &key, Phase::Fence)?;
    row.approval = None;
    let fence = draft.revision;
    let outcome = format!("a failover ({verdict}) with fence {fence} takes over the switchover");
    let Some(holder) = role.holder.clone() else {
        return Err(rule(RoleRule::FenceNotOpen, "there is no primary".to_owned()));
    };
    if let Some(open) = &mut role.fence {
        open.receipts.retain(|_, receipt| receipt.proof == Proof::Resigned);
        open.taken_over = Some(planned);
        open.fence = fence;
        open.uncut = false;
        // People's wish stays; the cluster by itself waits for nobody in particular.
        let to = open.kind.wanted().filter(|_| draft.by.role != Role::Node).cloned();
        open.kind = FenceKind::Failover { verdict, to };
    }
    fence_all(&mut role, &holder, fence);
    save(draft, name, role);
    draft.set_operation(&key, Some(row));
    draft.note("role.taken_over", name.as_str(), reason, &outcome);
    Ok(Reply::Done { revision: fence })
}

/// D, fetch: a step of the same fence; the pledge to it stands.
pub(super) fn fetch(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    fence: Revision,
    to: &InstanceName,
    from: InstanceName,
) -> Result<Reply, Rejection> {
    let (_, mut role) = load(draft, name)?;
    let open = this_fence(&role, fence)?;
    let recruit = |who: &InstanceName| -> Result<Position, Rejection> {
        let receipt = open.receipts.get(who).filter(|receipt| receipt.proof == Proof::Recruited);
        receipt
            .and_then(|receipt| receipt.position)
            .ok_or_else(|| rule(RoleRule::NotFree, format!("{who} is no recruit of fence {fence}")))
    };
    let (own, source) = (recruit(to)?, recruit(&from)?);
    if own.covers(&source) {
        let why = format!("{from} is not ahead of {to}");
        return Err(rule(RoleRule::NotFree, why));
    }
    let revision = draft.revision;
    let outcome = format!("from {from}, up to {source}");
    role.order(to, Order::Fetch { fence, from, upto: source }, revision);
    if draft.rows().roles().get(name).is_some_and(|was| **was == role) {
        return Ok(Reply::Unchanged { revision: role.changed });
    }
    save(draft, name, role);
    draft.note("role.fetch", &at(name, to), "", &outcome);
    Ok(Reply::Done { revision })
}

/// Gives a role change up before its grant. Once the holder has stopped, the way back is a grant to
/// it: it reported that it stopped and waits.
pub(super) fn close(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    fence: Revision,
    reason: &str,
) -> Result<Reply, Rejection> {
    check_text("reason", reason, MAX_TEXT_BYTES)?;
    let (service, mut role) = load(draft, name)?;
    if role.fence.is_none() && plan::is_this(draft, name, &role, fence) {
        return plan::give_up(draft, name, role, reason);
    }
    let open = this_fence(&role, fence)?;
    if let Some(proof) = holder_proof(&role) {
        let why = format!("the primary has {proof}: grant it again, or another");
        return Err(rule(RoleRule::TooLate, why));
    }
    if role.lapse_counts(service.spec.policy.mode) && role.lapsed.is_some() {
        let why = "the primary's lease has lapsed: grant it again, or another".to_owned();
        return Err(rule(RoleRule::TooLate, why));
    }
    let key = (name.clone(), open.operation);
    let row = operation_in(draft, &key, Phase::GivenUp)?;
    role.fence = None;
    lead(&mut role, draft.revision);
    save(draft, name, role);
    draft.set_operation(&key, Some(row));
    draft.note("role.closed", name.as_str(), reason, &format!("fence {fence} is given up"));
    Ok(Reply::Done { revision: draft.revision })
}

/// The holder leads, the others follow it.
pub(super) fn lead(role: &mut ServiceRole, revision: Revision) {
    let Some(holder) = role.holder.clone() else { return };
    let set = role.names(revision);
    role.order(&holder, Order::Lead { set }, revision);
    for standby in role.others(&holder) {
        role.order(&standby, Order::Follow { upstream: holder.clone() }, revision);
    }
}
