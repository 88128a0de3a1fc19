//! The roles table: PROTOCOL.md D as `apply` judges it, from the log alone.
//!
//! A handler checks everything before it writes anything, and writes the role row once, at its end.
//! `tests/model/role_change/log.rs` is the checked model of these rules; what differs is said where it
//! does.
//!
//! # Map
//!
//! - [`row`] the rows; [`judge`] OUT, COMPLETE and FREE, `loss` the bound; `invariants` what must be
//!   true of the rows.
//! - `start` an agent comes up (B); `first` the first grant (G); [`plan`] a switchover before its
//!   fence; `fence` opening, cutting, taking over, fetching, closing; `receipt` what instances prove;
//!   `grant` the next epoch; `set` sync sets and `Covered`; `operation` promotion, phases, approvals,
//!   pause.
//! - [`holder`] what the holder's last renewal said, and the policies it has not taken up.
//! - `life` what the rest of the state does to roles: sessions end, services change, a new life of
//!   the cluster begins.

mod fence;
mod first;
mod grant;
pub mod holder;
pub(super) mod invariants;
pub mod judge;
pub(super) mod life;
mod loss;
mod operation;
pub mod plan;
mod receipt;
pub mod row;
mod set;
mod start;

use std::sync::Arc;

use self::row::{Fence, Operation, ServiceRole};
use super::journal::Draft;
use super::service::{self, Service};
use crate::authz::{Principal, Role};
use crate::command::Command;
use crate::id::{Epoch, InstanceName, Revision, ServiceName};
use crate::limits::MAX_PHASES;
use crate::reply::{Rejection, Reply, RoleRule};
use crate::role::{Phase, Proof};
use crate::spec::TopologyKind;
use crate::state::OperationKey;

/// Runs a command of a role.
pub(super) fn run(draft: &mut Draft<'_>, command: Command) -> Result<Reply, Rejection> {
    match command {
        Command::AcceptStart { service, instance, start } => {
            start::accept(draft, &service, &instance, &start)
        }
        Command::GrantFirst { service, candidate } => first::grant(draft, &service, candidate),
        Command::PlanSwitchover { service, to, seen, reason } => {
            plan::open(draft, &service, to, seen, reason)
        }
        Command::CloseRoutes { service, operation } => plan::drain(draft, &service, operation),
        Command::OpenFence { service, kind, seen, reason } => {
            fence::open(draft, &service, kind, seen, reason)
        }
        Command::CutStandbys { service, fence } => fence::cut(draft, &service, fence),
        Command::TakeOverFence { service, fence, verdict, reason } => {
            fence::take_over(draft, &service, fence, verdict, &reason)
        }
        Command::RecordReceipt { service, receipt } => receipt::record(draft, &service, *receipt),
        Command::RecordStop { service, receipt, stopped } => {
            let is_end = receipt.proof >= Proof::Stopped;
            let reply = receipt::record(draft, &service, *receipt)?;
            if is_end {
                holder::stopped(draft, &service, stopped);
            }
            Ok(reply)
        }
        Command::OrderFetch { service, fence, to, from } => {
            fence::fetch(draft, &service, fence, &to, from)
        }
        Command::GrantRole { service, fence, candidate, loss, approval } => {
            grant::grant(draft, &service, fence, grant::Bid { candidate, loss, approval })
        }
        Command::CloseFence { service, fence, reason } => {
            fence::close(draft, &service, fence, &reason)
        }
        Command::ChangeSet { service, seen, members, k } => {
            set::change(draft, &service, seen, members, k)
        }
        Command::ConfirmCovered { service, epoch, set } => {
            set::covered(draft, &service, epoch, set)
        }
        Command::RecordPromotion { service, epoch, timeline, switch } => {
            operation::promoted(draft, &service, epoch, timeline, switch)
        }
        Command::AdvanceOperation { service, operation, phase } => {
            operation::advance(draft, &service, operation, phase)
        }
        Command::OpenApproval { service, fence, candidate, loss, without_out, question } => {
            let ask = operation::Ask { candidate, loss, without_out, question };
            operation::ask(draft, &service, fence, ask)
        }
        Command::AnswerApproval { service, approval, granted, reason } => {
            operation::answer(draft, &service, approval, granted, reason)
        }
        Command::SetPause { service, paused, reason } => {
            operation::pause(draft, &service, paused, reason)
        }
        other => unreachable!("{} is no command of a role", super::describe::attempt(&other)),
    }
}

/// The service, if it can have a role and stands not still.
fn active(draft: &Draft<'_>, name: &ServiceName) -> Result<Arc<Service>, Rejection> {
    let service = service::open(draft, name)?;
    if service.spec.topology == TopologyKind::ActivePassive {
        return Ok(service);
    }
    Err(Rejection::Invalid {
        field: "service".to_owned(),
        problem: format!("{name} is active-active"),
        fix: "only active-passive services have one primary".to_owned(),
    })
}

/// The service and a copy of its role, to be written when all checks are done.
fn load(draft: &Draft<'_>, name: &ServiceName) -> Result<(Arc<Service>, ServiceRole), Rejection> {
    let service = active(draft, name)?;
    let Some(role) = draft.rows().roles().get(name) else {
        return Err(not_found("role of service", name.to_string()));
    };
    Ok((service, ServiceRole::clone(role)))
}

/// A role that has a primary, who may be replaced: it is as the caller saw it, and nothing is open.
fn load_held(
    draft: &Draft<'_>,
    name: &ServiceName,
    seen: Epoch,
) -> Result<(Arc<Service>, ServiceRole, InstanceName), Rejection> {
    let (service, role) = load(draft, name)?;
    let Some(holder) = role.holder.clone() else {
        let why = format!("{name} has no primary to change: it needs its first grant");
        return Err(rule(RoleRule::NotAdopted, why));
    };
    same_epoch(&role, seen)?;
    no_fence(&role)?;
    Ok((service, role, holder))
}

fn save(draft: &mut Draft<'_>, name: &ServiceName, mut role: ServiceRole) {
    role.changed = draft.revision;
    draft.set_role(name, Some(role));
}

/// The open role change, if it is this one.
fn this_fence(role: &ServiceRole, fence: Revision) -> Result<&Fence, Rejection> {
    match &role.fence {
        Some(open) if open.fence == fence => Ok(open),
        Some(open) => Err(rule(
            RoleRule::FenceNotOpen,
            format!("fence {} is open, not fence {fence}", open.fence),
        )),
        None => Err(rule(RoleRule::FenceNotOpen, "no role change is open".to_owned())),
    }
}

fn no_fence(role: &ServiceRole) -> Result<(), Rejection> {
    match &role.fence {
        None => Ok(()),
        Some(fence) => {
            let (kind, since) = (fence.kind.name(), fence.fence);
            Err(rule(RoleRule::FenceOpen, format!("a {kind} is under way since revision {since}")))
        }
    }
}

fn same_epoch(role: &ServiceRole, got: Epoch) -> Result<(), Rejection> {
    if role.epoch == got {
        return Ok(());
    }
    Err(Rejection::EpochStale { have: role.epoch, got })
}

/// Refuses who speaks for an instance and is not its agent.
fn speaks_for(
    by: &Principal,
    service: &ServiceName,
    instance: &InstanceName,
) -> Result<(), Rejection> {
    let own = by.instance().is_some_and(|(s, i)| s == *service && i == *instance);
    if own {
        return Ok(());
    }
    Err(Rejection::Invalid {
        field: "instance".to_owned(),
        problem: format!("{by} does not speak for {service}/{instance}"),
        fix: "use the certificate of that instance's agent".to_owned(),
    })
}

/// Refuses all but the holder's agent and the cluster itself.
fn holder_or_cluster(
    draft: &Draft<'_>,
    service: &ServiceName,
    role: &ServiceRole,
) -> Result<(), Rejection> {
    match &role.holder {
        Some(holder) if draft.by.role != Role::Node => speaks_for(draft.by, service, holder),
        Some(_) => Ok(()),
        None => Err(rule(RoleRule::NotAdopted, "nobody has been granted the role".to_owned())),
    }
}

/// The row of an operation that exists, with a phase more in its history.
fn operation_in(
    draft: &Draft<'_>,
    key: &OperationKey,
    phase: Phase,
) -> Result<Operation, Rejection> {
    let Some(row) = draft.rows().operations().get(key) else {
        return Err(not_found("operation", format!("{}/{}", key.0, key.1)));
    };
    let mut row = Operation::clone(row);
    if row.history.len() >= MAX_PHASES && matches!(phase, Phase::Fence | Phase::Approval) {
        let what = "phases of an operation".to_owned();
        return Err(Rejection::Quota { what, limit: MAX_PHASES as u64 });
    }
    enter(draft, &mut row, phase);
    Ok(row)
}

fn enter(draft: &Draft<'_>, row: &mut Operation, phase: Phase) {
    row.phase = phase;
    row.history.push((phase, draft.revision, draft.at));
}

fn rule(rule: RoleRule, why: String) -> Rejection {
    Rejection::RoleRule { rule, why }
}

fn not_found(what: &str, name: String) -> Rejection {
    Rejection::NotFound { what: what.to_owned(), name }
}

fn at(service: &ServiceName, instance: &InstanceName) -> String {
    format!("{service}/{instance}")
}
