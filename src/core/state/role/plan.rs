//! A switchover before its fence: announced by people, prepared by the primary.
//!
//! A fence ends the renewals of the primary, so from there on its lease runs out, and its fencer ends
//! what has not stopped by then. A shutdown has to write out all that is dirty first, which can take
//! minutes. So that comes before: from this entry on the primary knows that it is to checkpoint, and
//! serves; when it says that it has, the leader opens the fence. Nothing rests on its word: whoever
//! lies, or is believed too early, makes a slow switchover, as all were before.
//!
//! What is announced is a row of the log, so the next leader finds it, and it can be given up at no
//! cost: no order was given. A failover that comes before its fence ends it.
//!
//! Where the policy says so the routes are closed before the fence, too, and routers get the time to
//! leave ([`Phase::Drain`]): a pool that holds its clients' queries meanwhile makes of a planned change
//! a delay. It costs time in which nobody new is let in, so it is not the default.

use super::row::{Operation, ServiceRole};
use super::{enter, fence, load, load_held, operation_in, rule, save};
use crate::authz::Role;
use crate::id::{Epoch, InstanceName, Revision, ServiceName};
use crate::limits::MAX_TEXT_BYTES;
use crate::reply::{Rejection, Reply, RoleRule};
use crate::role::{FenceKind, Phase};
use crate::state::describe::check_text;
use crate::state::journal::Draft;
use crate::state::{OperationKey, State};

/// The switchover of this service that is announced and has no fence yet.
pub fn of<'s>(
    state: &'s State,
    name: &ServiceName,
    role: &ServiceRole,
) -> Option<(Revision, &'s Operation)> {
    let id = role.operation?;
    let row = state.operations().get(&(name.clone(), id))?;
    is_prepared(row, role).then_some((id, row))
}

/// Whether `row`, the newest operation of `role`, is announced and has no fence yet.
pub fn is_prepared(row: &Operation, role: &ServiceRole) -> bool {
    role.fence.is_none() && row.phase.is_before_fence()
}

/// Whether the routes of `role` are closed until its fence, `row` being its newest operation.
pub fn is_drained(row: &Operation, role: &ServiceRole) -> bool {
    is_prepared(row, role) && row.phase == Phase::Drain
}

fn prepared(
    draft: &Draft<'_>,
    name: &ServiceName,
    role: &ServiceRole,
) -> Option<(OperationKey, Operation)> {
    let key = (name.clone(), role.operation?);
    let row = draft.rows().operations().get(&key)?;
    is_prepared(row, role).then(|| (key, Operation::clone(row)))
}

pub(super) fn open(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    to: Option<InstanceName>,
    seen: Epoch,
    reason: String,
) -> Result<Reply, Rejection> {
    check_text("reason", &reason, MAX_TEXT_BYTES)?;
    let (service, mut role, holder) = load_held(draft, name, seen)?;
    if let Some(((_, since), _)) = prepared(draft, name, &role) {
        return Err(under_way(since));
    }
    let kind = FenceKind::Switchover { to };
    fence::check_kind(&service.spec, &role, &kind)?;
    let key = (name.clone(), draft.revision);
    let end_of_last = fence::end_of_last(draft, name, &role);
    let mut row = fence::new_operation(draft, kind, &holder, reason.clone());
    enter(draft, &mut row, Phase::Prepare);
    role.operation = Some(draft.revision);
    save(draft, name, role);
    if let Some((key, row)) = end_of_last {
        draft.set_operation(&key, Some(row));
    }
    draft.set_operation(&key, Some(row));
    fence::forget_oldest(draft, name);
    let outcome = format!("a switchover from {holder} is announced; it serves and checkpoints");
    draft.note("role.planned", name.as_str(), &reason, &outcome);
    Ok(Reply::Done { revision: draft.revision })
}

/// Takes the primary out of the routes, while it serves those who are there. What routers do then is
/// waited for by the leader, and proves nothing.
pub(super) fn drain(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    operation: Revision,
) -> Result<Reply, Rejection> {
    let (_, mut role) = load(draft, name)?;
    if draft.by.role != Role::Node {
        let why = format!("{} does not run operations", draft.by);
        return Err(rule(RoleRule::WrongPhase, why));
    }
    let found = prepared(draft, name, &role).filter(|((_, id), _)| *id == operation);
    let Some((key, mut row)) = found else {
        let why = format!("no switchover {operation} is announced");
        return Err(rule(RoleRule::FenceNotOpen, why));
    };
    if row.phase == Phase::Drain {
        return Ok(Reply::Unchanged { revision: role.changed });
    }
    if !role.routes_open {
        let why = "the primary is in no route: its promotion is not verified".to_owned();
        return Err(rule(RoleRule::WrongPhase, why));
    }
    role.routes_open = false;
    enter(draft, &mut row, Phase::Drain);
    save(draft, name, role);
    draft.set_operation(&key, Some(row));
    let outcome = format!("operation {operation}: routers are to leave the primary, which serves");
    draft.note("role.drained", name.as_str(), "", &outcome);
    Ok(Reply::Done { revision: draft.revision })
}

fn under_way(since: Revision) -> Rejection {
    rule(RoleRule::FenceOpen, format!("a switchover is under way since revision {since}"))
}

/// The announced switchover that this fence is for. One of a failover is for none.
pub(super) fn to_go_on(
    draft: &Draft<'_>,
    name: &ServiceName,
    role: &ServiceRole,
    kind: &FenceKind,
) -> Result<Option<(OperationKey, Operation)>, Rejection> {
    let found = prepared(draft, name, role).filter(|_| kind.is_planned());
    match found {
        Some(((_, since), row)) if row.kind != *kind || row.from != role.holder => {
            Err(under_way(since))
        }
        found => Ok(found),
    }
}

/// Whether the operation that is announced has this number.
pub(super) fn is_this(
    draft: &Draft<'_>,
    name: &ServiceName,
    role: &ServiceRole,
    operation: Revision,
) -> bool {
    prepared(draft, name, role).is_some_and(|((_, id), _)| id == operation)
}

/// No instance was told anything that has to be taken back; routers are sent to the primary again.
pub(super) fn give_up(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    mut role: ServiceRole,
    reason: &str,
) -> Result<Reply, Rejection> {
    let Some(operation) = role.operation else {
        return Err(rule(RoleRule::FenceNotOpen, "no role change is open".to_owned()));
    };
    let key = (name.clone(), operation);
    let was = draft.rows().operations().get(&key).map(|row| row.phase);
    let row = operation_in(draft, &key, Phase::GivenUp)?;
    if was == Some(Phase::Drain) {
        role.routes_open = role.promoted.is_some();
    }
    save(draft, name, role);
    draft.set_operation(&key, Some(row));
    let outcome = format!("operation {operation} is given up before its fence");
    draft.note("role.closed", name.as_str(), reason, &outcome);
    Ok(Reply::Done { revision: draft.revision })
}
