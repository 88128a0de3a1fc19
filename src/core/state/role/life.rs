//! What the rest of the state does to roles: sessions end, services change and go, the cluster
//! begins a new life.
//!
//! The end of a session is written even while its service stands still in quarantine: a lease that
//! names a session which is gone would be a lie.

use std::collections::BTreeSet;

use super::row::{Operation, ServiceRole};
use super::{enter, holder};
use crate::id::{InstanceName, ServiceName, SessionId};
use crate::reply::Rejection;
use crate::role::{Armed, Phase};
use crate::spec::{ServiceSpec, TopologyKind};
use crate::state::journal::Draft;
use crate::state::session::End;

/// A session ends; if it is the lease of a role, so does the lease.
///
/// Only an expiry waited for the ttl, and so says with the fencer's means that the holder has stopped.
/// A client that closes its session, or never took it up, says no such thing: it counts as weak.
pub(in crate::state) fn session_ended(draft: &mut Draft<'_>, id: SessionId, how: End) {
    let rows = draft.rows();
    let Some(name) = rows.lease_of(id).cloned() else { return };
    let Some(role) = rows.roles().get(&name) else { return };
    let known = rows.sessions().get(&id).map(|session| session.known_grant);
    let mut role = ServiceRole::clone(role);
    let Some(lease) = role.lease.take() else { return };
    role.confirmed |= known.is_some_and(|known| known >= lease.mark);
    let armed = how == End::Expired && said_armed(draft, &name, &role);
    let fencer = if armed { lease.fencer } else { Armed::Weak };
    role.lapsed = Some(fencer);
    role.changed = draft.revision;
    let holder = role.holder.as_ref().map_or("nobody", |holder| holder.as_str()).to_owned();
    let outcome =
        format!("the lease of {holder} under epoch {} ended, {}", role.epoch, fencer.as_str());
    draft.set_role(&name, Some(role));
    draft.note("role.lapsed", name.as_str(), &format!("session {id}: {how:?}"), &outcome);
}

/// Whether the last committed renewal of this epoch said that its fencer holds what it guards (C4).
/// Before a cluster keeps what renewals say, the start of the agent has said it.
fn said_armed(draft: &Draft<'_>, name: &ServiceName, role: &ServiceRole) -> bool {
    let row = draft.rows().holders().get(name);
    let last = row.and_then(|row| row.renewal.as_ref());
    let own = last.filter(|last| last.epoch == role.epoch);
    !holder::is_kept(draft) || own.is_some_and(|last| last.report.armed == Armed::Armed)
}

/// A new life of the cluster (G): what is running where is not known any more. Epochs stay, because
/// they may never go back, and so do pauses. Boot counters and pledges go: those of a backup say
/// nothing about disks that went on. The first grant of the new life compares what all hold.
pub(in crate::state) fn begin_anew(draft: &mut Draft<'_>) {
    let rows = draft.rows();
    let open: Vec<_> = rows
        .operations()
        .iter()
        .filter(|(_, row)| !row.phase.is_over())
        .map(|(key, row)| (key.clone(), Operation::clone(row)))
        .collect();
    let roles: Vec<_> =
        rows.roles().iter().map(|(name, row)| (name.clone(), ServiceRole::clone(row))).collect();
    for (key, mut row) in open {
        let end = if row.epoch.is_some() { Phase::Done } else { Phase::GivenUp };
        enter(draft, &mut row, end);
        draft.set_operation(&key, Some(row));
    }
    let said: Vec<_> = draft.rows().holders().keys().cloned().collect();
    for name in said {
        draft.set_holder(&name, None);
    }
    for (name, was) in roles {
        let row = ServiceRole {
            epoch: was.epoch,
            timeline: was.newest_timeline(),
            paused: was.paused,
            operation: was.operation,
            failovers: was.failovers,
            ..ServiceRole::new(draft.revision)
        };
        draft.set_role(&name, Some(row));
    }
}

fn in_use(what: &str, name: &str, by: String) -> Rejection {
    Rejection::InUse { what: what.to_owned(), name: name.to_owned(), by }
}

/// Whether the role allows a service to be declared so.
pub(in crate::state) fn may_change(draft: &Draft<'_>, spec: &ServiceSpec) -> Result<(), Rejection> {
    let rows = draft.rows();
    let Some(role) = rows.roles().get(&spec.name) else { return Ok(()) };
    let name = spec.name.as_str();
    if let Some(holder) = &role.holder {
        let was = rows.services().get(&spec.name).map(|row| row.spec.policy.mode);
        if was.is_some_and(|mode| mode != spec.policy.mode) {
            let by = format!("instance {holder} is its primary under the present mode");
            return Err(in_use("mode of service", name, by));
        }
        if spec.topology != TopologyKind::ActivePassive {
            return Err(in_use("service", name, format!("instance {holder} is its primary")));
        }
    }
    let declared: BTreeSet<_> = spec.instances.iter().map(|instance| &instance.name).collect();
    let missing = concerned(role).into_iter().find(|name| !declared.contains(*name));
    missing.map_or(Ok(()), |instance| {
        let by = if role.holder.as_ref() == Some(instance) {
            "it is the primary"
        } else if role.counts(instance) {
            "it is in a sync set that is not covered by another"
        } else {
            "a role change is under way"
        };
        Err(in_use("instance", instance.as_str(), by.to_owned()))
    })
}

/// Instances that may not vanish: the holder, who is counted in a set, and under a fence everybody.
fn concerned(role: &ServiceRole) -> BTreeSet<&InstanceName> {
    let members = role.a.iter().chain(&role.c).flat_map(|set| &set.members);
    let fenced = role.instances.keys().filter(|_| role.fence.is_some());
    role.holder.iter().chain(members).chain(fenced).collect()
}

/// Takes out the rows of instances that are not declared any more.
pub(in crate::state) fn change(draft: &mut Draft<'_>, spec: &ServiceSpec) {
    if spec.topology != TopologyKind::ActivePassive {
        forget(draft, &spec.name);
        return;
    }
    let Some(role) = draft.rows().roles().get(&spec.name) else { return };
    let mut role = ServiceRole::clone(role);
    let count = role.instances.len();
    role.instances.retain(|name, _| spec.instances.iter().any(|declared| declared.name == *name));
    if role.instances.len() != count {
        role.changed = draft.revision;
        draft.set_role(&spec.name, Some(role));
    }
}

/// Whether the role allows its service to be deleted.
pub(in crate::state) fn may_delete(draft: &Draft<'_>, name: &ServiceName) -> Result<(), Rejection> {
    let Some(role) = draft.rows().roles().get(name) else { return Ok(()) };
    if let Some(fence) = &role.fence {
        let by = format!("a {} is under way", fence.kind.name());
        return Err(in_use("service", name.as_str(), by));
    }
    match (&role.lease, &role.holder) {
        (Some(_), Some(holder)) => {
            let by = format!("instance {holder} holds its lease");
            Err(in_use("service", name.as_str(), by))
        }
        _ => Ok(()),
    }
}

/// The role and the operations of a service go with it.
pub(in crate::state) fn forget(draft: &mut Draft<'_>, name: &ServiceName) {
    if !draft.rows().roles().contains_key(name) {
        return;
    }
    let ids: Vec<_> = draft.rows().operations_of(name).map(|(id, _)| id).collect();
    for id in ids {
        draft.set_operation(&(name.clone(), id), None);
    }
    if draft.rows().holders().contains_key(name) {
        draft.set_holder(name, None);
    }
    draft.set_role(name, None);
}
