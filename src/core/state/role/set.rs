//! Sync sets under one holder (PROTOCOL.md D): a change is committed before it is sent, and A and C
//! gain the new set; only what the holder saw covered ends the old ones.

use std::collections::BTreeSet;

use super::judge::Case;
use super::row::ServiceRole;
use super::{holder_or_cluster, load, no_fence, rule, same_epoch, save};
use crate::id::{Epoch, InstanceName, Revision, ServiceName};
use crate::limits::MAX_UNCOVERED_SETS;
use crate::reply::{Rejection, Reply, RoleRule};
use crate::role::{Order, SyncSet};
use crate::spec::{Mode, Policy, ServiceSpec, TooFewSync};
use crate::state::journal::Draft;

pub(super) fn change(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    seen: Revision,
    members: BTreeSet<InstanceName>,
    k: u32,
) -> Result<Reply, Rejection> {
    let (service, mut role) = load(draft, name)?;
    no_fence(&role)?;
    let (Some(holder), Some(present)) = (role.holder.clone(), role.set.clone()) else {
        let why = format!("{name} has no primary with a sync set");
        return Err(rule(RoleRule::NotAdopted, why));
    };
    same_set(name, &present, seen)?;
    let case = Case::in_rows(draft.rows(), name, &service.spec, &role, None);
    check(&service.spec, &case.policy, &role, &holder, &members, k)?;
    if present.members == members && present.k == k {
        return Ok(Reply::Unchanged { revision: present.revision });
    }
    if !case.is_confirmed() {
        let why = format!("{holder} has not taken up its grant yet");
        return Err(rule(RoleRule::WrongPhase, why));
    }
    if role.c.len() >= MAX_UNCOVERED_SETS {
        let what = format!("sync sets of {name} that are not covered yet");
        return Err(Rejection::Quota { what, limit: MAX_UNCOVERED_SETS as u64 });
    }
    let set = SyncSet { epoch: role.epoch, revision: draft.revision, members, k };
    let outcome = format!("{set}; it was {present}");
    role.a.push(set.clone());
    role.c.push(set.clone());
    role.set = Some(set.clone());
    role.order(&holder, Order::Lead { set }, draft.revision);
    save(draft, name, role);
    draft.note("role.set", name.as_str(), "", &outcome);
    Ok(Reply::Done { revision: draft.revision })
}

fn same_set(name: &ServiceName, present: &SyncSet, seen: Revision) -> Result<(), Rejection> {
    if present.revision == seen {
        return Ok(());
    }
    let (what, name) = ("sync set of".to_owned(), name.to_string());
    Err(Rejection::Conflict { what, name, expected: seen, found: present.revision })
}

fn check(
    spec: &ServiceSpec,
    policy: &Policy,
    role: &ServiceRole,
    holder: &InstanceName,
    members: &BTreeSet<InstanceName>,
    k: u32,
) -> Result<(), Rejection> {
    let invalid = |field: &str, problem: String, fix: &str| {
        let (field, fix) = (field.to_owned(), fix.to_owned());
        Err(Rejection::Invalid { field, problem, fix })
    };
    if policy.mode != Mode::Quorum {
        let problem = "in lease mode no commit waits".to_owned();
        return invalid("members", problem, "use mode = \"quorum\"");
    }
    if members.is_empty() && k == 0 {
        if policy.on_too_few_sync == TooFewSync::Degrade {
            return Ok(());
        }
        let problem = "no commit would wait, and the policy is to block".to_owned();
        return invalid("members", problem, "use on_too_few_sync = \"degrade\"");
    }
    for member in members {
        let declared = spec.instances.iter().any(|instance| instance.name == *member);
        let row = role.instances.get(member);
        if member == holder || !declared || row.is_none_or(|row| row.quarantined.is_some()) {
            let problem = format!("{member} cannot acknowledge for {holder}");
            return invalid("members", problem, "name standbys that report and are sound");
        }
    }
    let least = policy.min_sync_standbys.max(1);
    if k < least || k as usize > members.len() {
        let problem = format!("{k} of {} members", members.len());
        return invalid("k", problem, "use at least min_sync_standbys, at most all of them");
    }
    Ok(())
}

/// The holder saw a transaction, begun after the names of this set were in force, return under it.
pub(super) fn covered(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    epoch: Epoch,
    set: Revision,
) -> Result<Reply, Rejection> {
    let (_, mut role) = load(draft, name)?;
    holder_or_cluster(draft, name, &role)?;
    same_epoch(&role, epoch)?;
    no_fence(&role)?;
    let Some(present) = role.set.clone() else {
        let why = format!("{name} has no sync set");
        return Err(rule(RoleRule::WrongPhase, why));
    };
    same_set(name, &present, set)?;
    if role.is_covered() {
        return Ok(Reply::Unchanged { revision: role.changed });
    }
    let ended = role.c.iter().filter(|old| **old != present).count();
    let outcome = format!("{present} covers {ended} sets of before");
    role.a = vec![present.clone()];
    role.c = vec![present];
    // It returned under this epoch's names, so the holder acts.
    role.confirmed = true;
    save(draft, name, role);
    draft.note("role.covered", name.as_str(), "", &outcome);
    Ok(Reply::Done { revision: draft.revision })
}
