//! What an agent is told: its row, and what it needs to obey it. Pure.

use regent_core::decide::roles::expected;
use regent_core::id::{InstanceName, Revision, SessionId};
use regent_core::state::role::plan::is_prepared;
use regent_rpc::convert::agent::Instruction;

use super::board::Rows;

/// The instruction for `instance`, whose agent speaks over `session`; `None`: the log knows of no
/// start of it, or it is declared no more.
pub fn instruction(
    rows: &Rows,
    instance: &InstanceName,
    session: SessionId,
) -> Option<Instruction> {
    let (service, role) = (rows.service.as_ref()?, rows.role.as_ref()?);
    let declared = service.spec.instances.iter().any(|one| one.name == *instance);
    let row = role.instances.get(instance).filter(|_| declared)?;
    // Another session's mark would be named in vain, and one that is over must not be named.
    let lease = role.lease.as_ref().filter(|lease| lease.session == session);
    let holds = role.holder.as_ref() == Some(instance);
    let newest = rows.operation.as_ref().filter(|(_, row)| is_prepared(row, role));
    Some(Instruction {
        at: rows.at,
        directive: row.directive.clone(),
        epoch: role.epoch,
        holder: role.holder.clone(),
        set: role.set.clone(),
        covered: role.is_covered(),
        mark: lease.filter(|_| holds).map_or(Revision(0), |lease| lease.mark),
        paused: role.pause_to_obey(rows.feature_level),
        fence: role.fence.as_ref().map(|fence| fence.fence),
        prepare: newest.filter(|_| holds).map(|(id, _)| *id),
        expected: expected(&service.spec, role) == Some(instance),
        promoted: role.promoted.is_some(),
        routes_open: role.routes_open,
        timeline: role.timeline,
        spec: service.spec.clone(),
        policy: service.changed,
    })
}

/// Whether two instructions say the same, whatever revision they were read from.
pub fn same(one: &Instruction, other: &Instruction) -> bool {
    let at = one.at;
    *one == Instruction { at, ..other.clone() }
}
