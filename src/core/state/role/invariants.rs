//! What must be true of a role and its operations (PROTOCOL.md D), whatever the handlers do.

use std::collections::BTreeSet;

use super::row::{Fence, InstanceRow, ServiceRole};
use crate::authz::{Principal, Role};
use crate::id::{Epoch, InstanceName, ServiceName};
use crate::limits::MAX_OPERATIONS_PER_SERVICE;
use crate::role::{Order, Phase, SyncSet};
use crate::spec::{ServiceSpec, TopologyKind};
use crate::state::invariants::{Broken, must};
use crate::state::tables::Tables;

/// What an entry may make of a role: S3 and S6.
pub(in crate::state) fn change(
    tables: &Tables,
    name: &ServiceName,
    old: Option<&ServiceRole>,
    now: Epoch,
) -> Result<(), Broken> {
    let at = || format!("role of {name}");
    let (Some(old), Some(new)) = (old, tables.roles().get(name)) else { return Ok(()) };
    must(new.epoch >= old.epoch, "S3: a role's epoch went back", at)?;
    let granted = new.epoch != old.epoch;
    must(!granted || new.epoch == now, "a role's epoch that is not this entry's", at)?;
    let moved = new.holder.is_some() && new.holder != old.holder;
    must(!moved || granted, "S3: a new primary without a new epoch", at)?;
    must(new.timeline >= old.timeline, "a timeline's number was freed", at)?;
    if granted {
        match &old.fence {
            Some(fence) => proven(tables, name, fence, new)?,
            None => must(old.holder.is_none(), "S6: a grant without a fence", at)?,
        }
        let unused = new.timeline > old.newest_timeline();
        must(unused, "a grant with a timeline that may have been begun", at)?;
    }
    let same_life = new.epoch.incarnation == old.epoch.incarnation;
    for (instance, was) in &old.instances {
        let Some(row) = new.instances.get(instance) else { continue };
        let at = || format!("instance {name}/{instance}");
        let kept = row.disk == was.disk;
        must(!kept || row.boot >= was.boot, "an instance's start counter went back", at)?;
        must(!kept || row.pledged >= was.pledged, "a pledge was forgotten", at)?;
        let number = (row.directive.number(), was.directive.number());
        must(!same_life || number.0 >= number.1, "S4: a directive's number went back", at)?;
    }
    Ok(())
}

/// S6: a grant leaves its proofs in its operation.
fn proven(
    tables: &Tables,
    name: &ServiceName,
    fence: &Fence,
    new: &ServiceRole,
) -> Result<(), Broken> {
    let at = || format!("operation {name}/{}", fence.operation);
    let row = tables.operations().get(&(name.clone(), fence.operation));
    let proven = row.is_some_and(|row| {
        row.phase == Phase::Promote
            && row.epoch == Some(new.epoch)
            && row.to == new.holder
            && row.out.is_some()
            && row.complete.is_some()
    });
    must(proven, "S6: a grant without its proofs", at)
}

/// What must be true of a role as it stands.
pub(in crate::state) fn role(tables: &Tables, name: &ServiceName) -> Result<(), Broken> {
    let at = || format!("role of {name}");
    let count = tables.operations_of(name).count();
    let Some(role) = tables.roles().get(name) else {
        return must(count == 0, "an operation outlived its service's role", at);
    };
    must(count <= MAX_OPERATIONS_PER_SERVICE, "a service keeps too many operations", at)?;
    let Some(service) = tables.services().get(name) else {
        return must(false, "a role outlived its service", at);
    };
    let spec = &service.spec;
    let active = spec.topology == TopologyKind::ActivePassive;
    must(active, "S1: a role of a service with many writers", at)?;
    let declared = |instance: &InstanceName| spec.instances.iter().any(|one| one.name == *instance);
    must(role.instances.keys().all(declared), "a row of an instance that is not declared", at)?;
    for (instance, row) in &role.instances {
        directive(name, role, instance, row)?;
    }
    let open = !role.routes_open || role.fence.is_none() && role.promoted.is_some();
    must(open, "the write route is open without a verified primary", at)?;
    sets(name, spec, role)?;
    lease(tables, name, role)?;
    match &role.fence {
        Some(fence) => fenced(tables, name, role, fence),
        None => Ok(()),
    }
}

fn directive(
    name: &ServiceName,
    role: &ServiceRole,
    instance: &InstanceName,
    row: &InstanceRow,
) -> Result<(), Broken> {
    let at = || format!("instance {name}/{instance}");
    let order = &row.directive.order;
    let quarantined = row.quarantined.is_some();
    must(quarantined == (*order == Order::Quarantined), "a quarantine without its directive", at)?;
    must(row.directive.epoch <= role.epoch, "a directive of an epoch that is to come", at)?;
    let leads = role.holder.as_ref() == Some(instance) && role.fence.is_none() && !quarantined;
    let told = matches!(order, Order::Lead { .. });
    must(leads == told, "S1: who is told to lead is not the unfenced primary", at)?;
    let fence = role.fence.as_ref().map(|fence| fence.fence);
    let asked = order.fence();
    must(asked.is_none() || asked == fence, "a directive of a fence that is not open", at)
}

fn sets(name: &ServiceName, spec: &ServiceSpec, role: &ServiceRole) -> Result<(), Broken> {
    let at = || format!("role of {name}");
    let contained = role.a.iter().all(|set| role.c.contains(set));
    must(contained, "C does not hold A", at)?;
    let has_set = role.set.as_ref().is_none_or(|set| role.a.contains(set));
    must(has_set, "the present sync set is not in A", at)?;
    must(role.set.is_some() || role.a.is_empty(), "A without a present sync set", at)?;
    must(role.a.iter().all(|set| set.epoch == role.epoch), "a set of A of another epoch", at)?;
    must(role.c.iter().all(|set| set.epoch <= role.epoch), "a set of an epoch to come", at)?;
    let members: BTreeSet<_> = role.c.iter().flat_map(|set| &set.members).collect();
    let declared = |member: &&InstanceName| spec.instances.iter().any(|one| one.name == **member);
    must(members.iter().all(declared), "a member of a set that is not declared", at)?;
    let fits = |set: &SyncSet| {
        set.k as usize <= set.members.len() && (set.k > 0 || set.members.is_empty())
    };
    must(role.c.iter().all(fits), "a set that asks for more members than it has", at)?;
    let own = role
        .holder
        .as_ref()
        .is_some_and(|holder| role.a.iter().any(|set| set.members.contains(holder)));
    must(!own, "a primary that acknowledges to itself", at)
}

fn lease(tables: &Tables, name: &ServiceName, role: &ServiceRole) -> Result<(), Broken> {
    let at = || format!("role of {name}");
    let Some(holder) = &role.holder else {
        let empty = role.lease.is_none() && role.fence.is_none() && role.c.is_empty();
        return must(empty, "a lease, a fence or a set of nobody", at);
    };
    must(role.instances.contains_key(holder), "a primary that has never started", at)?;
    let Some(lease) = &role.lease else { return Ok(()) };
    must(role.lapsed.is_none(), "a lease that has lapsed and goes on", at)?;
    let own = Principal::new(Role::Agent, format!("{name}/{holder}"));
    let session = tables.sessions().get(&lease.session);
    let known = session.is_some_and(|row| row.grant >= lease.mark && row.owner == own);
    must(known, "a lease whose session is gone, another's, or was not told of its grant", at)?;
    let indexed = tables.lease_of(lease.session) == Some(name);
    must(indexed, "one session is the lease of two roles", at)
}

fn fenced(
    tables: &Tables,
    name: &ServiceName,
    role: &ServiceRole,
    fence: &Fence,
) -> Result<(), Broken> {
    let at = || format!("fence {} of {name}", fence.fence);
    let row = tables.operations().get(&(name.clone(), fence.operation));
    let open = row.is_some_and(|row| matches!(row.phase, Phase::Fence | Phase::Approval));
    must(open, "a fence without its operation", at)?;
    must(role.operation == Some(fence.operation), "a fence of another operation", at)?;
    let counts = fence.receipts.iter().all(|(instance, receipt)| {
        let row = role.instances.get(instance);
        row.is_some_and(|row| row.quarantined.is_none())
            && receipt.instance == *instance
            && (receipt.fence == fence.fence || Some(receipt.fence) == fence.taken_over)
    });
    must(counts, "a receipt that does not count", at)
}
