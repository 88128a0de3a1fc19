//! Roles, operations and facts for people: out of the core's rows. Nothing of this is read back.

use regent_core::decide::facts::Fact;
use regent_core::id::{InstanceName, Revision, ServiceName, SessionId};
use regent_core::role::{Armed, FenceKind, Loss};
use regent_core::spec::InstanceSpec;
use regent_core::state::role::holder::HolderRow;
use regent_core::state::role::row::{Approval, Fence, InstanceRow, Operation, ServiceRole};
use regent_core::time::Reading;

use super::common::{epoch_out, locality_out};
use super::election::report_out;
use super::observe::observation_out;
use super::role::{data_out, directive_out, receipt_out, set_out};
use crate::pb::v1;

fn name(name: Option<&InstanceName>) -> String {
    name.map(ToString::to_string).unwrap_or_default()
}

/// A service's role; `live` says which sessions the answering node believes live (C3), `phase` is
/// its newest operation's.
pub fn role_out(
    service: &ServiceName,
    row: &ServiceRole,
    phase: Option<&Operation>,
    live: impl Fn(SessionId) -> bool,
) -> v1::Role {
    let unprotected = row.set.iter().chain(&row.a).any(|set| set.is_degraded());
    v1::Role {
        service: service.to_string(),
        epoch: Some(epoch_out(row.epoch)),
        holder: name(row.holder.as_ref()),
        holder_live: row.lease.as_ref().is_some_and(|lease| live(lease.session)),
        routes_open: row.routes_open,
        set: row.set.as_ref().map(set_out),
        unprotected,
        covered: row.is_covered(),
        paused: row.paused.as_ref().map(|pause| v1::RolePause {
            since: pause.since.0,
            by: pause.by.clone(),
            reason: pause.reason.clone(),
        }),
        fence: row.fence.as_ref().map(fence_out),
        operation: row.operation.map_or(0, |operation| operation.0),
        phase: phase.map(|operation| operation.phase.to_string()).unwrap_or_default(),
        instances: row.instances.iter().map(|(name, row)| instance_out(name, row, &live)).collect(),
        promotion: row.promoted.map(|promotion| v1::RolePromotion {
            timeline: promotion.timeline,
            switch: promotion.switch.0,
            revision: promotion.revision.0,
        }),
        changed: row.changed.0,
        lapsed: row.lapsed.map(|armed| armed.as_str().to_owned()).unwrap_or_default(),
    }
}

/// What a holder said last; `None`: nothing that counts.
pub fn said_out(row: &HolderRow) -> Option<v1::LastRenewal> {
    let last = row.renewal.as_ref()?;
    Some(v1::LastRenewal {
        instance: last.instance.to_string(),
        epoch: Some(epoch_out(last.epoch)),
        number: last.number.0,
        report: Some(report_out(&last.report)),
        former_policies: row.former.len() as u64,
    })
}

fn fence_out(fence: &Fence) -> v1::RoleFence {
    let receipts = fence.receipts.iter();
    v1::RoleFence {
        fence: fence.fence.0,
        operation: fence.operation.0,
        kind: fence.kind.name().to_owned(),
        uncut: fence.uncut,
        receipts: receipts
            .map(|(instance, receipt)| v1::RoleReceipt {
                instance: instance.to_string(),
                receipt: Some(receipt_out(receipt)),
            })
            .collect(),
    }
}

fn instance_out(
    name: &InstanceName,
    row: &InstanceRow,
    live: impl Fn(SessionId) -> bool,
) -> v1::RoleInstance {
    v1::RoleInstance {
        instance: name.to_string(),
        boot: row.boot,
        armed: row.fencer == Armed::Armed,
        data: row.data.as_ref().map(data_out),
        quarantined: row.quarantined.clone().unwrap_or_default(),
        directive: Some(directive_out(&row.directive)),
        live: live(row.session),
    }
}

/// A declared instance with what the log and the leader know of it.
pub fn instance_view(
    declared: &InstanceSpec,
    row: Option<&InstanceRow>,
    fact: Option<&Fact>,
    now: Reading,
    live: impl Fn(SessionId) -> bool,
) -> v1::InstanceView {
    v1::InstanceView {
        instance: declared.name.to_string(),
        locality: Some(locality_out(&declared.locality)),
        address: declared.address.clone(),
        priority: declared.priority,
        row: row.map(|row| instance_out(&declared.name, row, live)),
        fact: fact.map(|fact| v1::Fact {
            age_ms: fact.age(now).as_ms(),
            lost_ms: fact.lost.map(|since| now.since(since).as_ms()),
            observation: Some(observation_out(&fact.observation)),
        }),
    }
}

/// One operation.
pub fn operation_out(service: &ServiceName, id: Revision, row: &Operation) -> v1::Operation {
    let verdict = match &row.kind {
        FenceKind::Failover { verdict, .. } => verdict.clone(),
        FenceKind::Switchover { .. } => String::new(),
    };
    let history = row.history.iter();
    v1::Operation {
        service: service.to_string(),
        id: id.0,
        kind: row.kind.name().to_owned(),
        verdict,
        wanted: name(row.kind.wanted()),
        by: row.by.clone(),
        reason: row.reason.clone(),
        from: name(row.from.as_ref()),
        to: name(row.to.as_ref()),
        epoch: row.epoch.map(epoch_out),
        out: row.out.map(|proof| proof.as_str().to_owned()).unwrap_or_default(),
        complete: row.complete.map(|proof| proof.as_str().to_owned()).unwrap_or_default(),
        loss: Some(loss_out(row.loss)),
        phase: row.phase.to_string(),
        over: row.phase.is_over(),
        history: history
            .map(|(phase, revision, at)| v1::PhaseBegan {
                phase: phase.to_string(),
                revision: revision.0,
                at_ms: at.0,
            })
            .collect(),
        approval: row.approval.as_ref().map(approval_out),
    }
}

const fn loss_out(loss: Loss) -> v1::Loss {
    v1::Loss { ms: loss.ms, bytes: loss.bytes }
}

fn approval_out(approval: &Approval) -> v1::Approval {
    v1::Approval {
        id: approval.id.0,
        candidate: approval.candidate.to_string(),
        loss: Some(loss_out(approval.loss)),
        without_out: approval.without_out,
        question: approval.question.clone(),
        answer: approval.answer.as_ref().map(|answer| v1::ApprovalAnswer {
            granted: answer.granted,
            by: answer.by.clone(),
            reason: answer.reason.clone(),
        }),
    }
}
