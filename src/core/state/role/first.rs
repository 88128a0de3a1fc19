//! The first grant of a service in a life of the cluster (PROTOCOL.md G): adoption of what runs, or the
//! first primary.
//!
//! Nothing is known of leases and sets, so *all* declared instances must have reported, in this life
//! and on sessions that are open, and what they report must leave no doubt.

use std::collections::BTreeSet;

use super::judge::electable;
use super::row::{InstanceRow, ServiceRole};
use super::{grant, load, rule};
use crate::id::{InstanceName, ServiceName};
use crate::reply::{Rejection, Reply, RoleRule};
use crate::role::{CompleteProof, DataIdentity, OutProof, SyncSet};
use crate::spec::{Mode, ServiceSpec};
use crate::state::journal::Draft;
use crate::state::service::{Life, Service};

pub(super) fn grant(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    candidate: InstanceName,
) -> Result<Reply, Rejection> {
    let (service, mut role) = load(draft, name)?;
    if let Some(holder) = &role.holder {
        let (what, name) = ("primary".to_owned(), at_epoch(holder, &role));
        return Err(Rejection::AlreadyExists { what, name, revision: role.epoch.revision });
    }
    electable(&service.spec, &role, &candidate).map_err(|why| rule(RoleRule::NotFree, why))?;
    let own = judge(draft, &service.spec, &role, &candidate)
        .map_err(|why| rule(RoleRule::NotAdopted, why))?;
    let epoch = draft.epoch();
    role.a.clear();
    role.c.clear();
    role.set = None;
    if service.spec.policy.mode == Mode::Quorum {
        let fit = |(other, row): (&InstanceName, &InstanceRow)| {
            let fit = *other != candidate && row.data.is_some() && row.quarantined.is_none();
            fit.then(|| other.clone())
        };
        let fit: BTreeSet<_> = role.instances.iter().filter_map(fit).collect();
        let (members, k) = grant::first_names(&service.spec, &candidate, fit);
        let set = SyncSet { epoch, revision: draft.revision, members, k };
        role.a.push(set.clone());
        role.c.push(set.clone());
        role.set = Some(set);
    }
    let runs = if own.out_of_recovery { ", as it runs" } else { "" };
    let (out, complete) = (OutProof::NoHolder, CompleteProof::First);
    let outcome = format!("{candidate} under epoch {epoch}{runs}: {out}; {complete}");
    grant::take_role(draft, name, role, candidate);
    if own.out_of_recovery {
        acts_already(draft, name);
    }
    let (life, changed) = (Life::Established, draft.revision);
    draft.set_service(name, Some(Service { life, changed, ..Service::clone(&service) }));
    draft.note("role.granted", name.as_str(), "first grant", &outcome);
    Ok(Reply::Granted { epoch, revision: draft.revision })
}

fn at_epoch(holder: &InstanceName, role: &ServiceRole) -> String {
    format!("{holder} under epoch {}", role.epoch)
}

/// A primary that is adopted as it runs acts before it has heard of any grant: "it never confirmed"
/// (C8) would prove nothing about it.
fn acts_already(draft: &mut Draft<'_>, name: &ServiceName) {
    let Some(role) = draft.rows().roles().get(name) else { return };
    let role = ServiceRole { confirmed: true, ..ServiceRole::clone(role) };
    draft.set_role(name, Some(role));
}

/// What speaks against this candidate.
fn judge(
    draft: &Draft<'_>,
    spec: &ServiceSpec,
    role: &ServiceRole,
    candidate: &InstanceName,
) -> Result<DataIdentity, String> {
    missing(draft, spec, role)?;
    let data = |name: &InstanceName| role.instances.get(name).and_then(|row| row.data);
    let Some(own) = data(candidate) else {
        return Err(format!("{candidate} has no data directory"));
    };
    let others = role.instances.iter().filter(|(name, _)| *name != candidate);
    for (name, other) in others.filter_map(|(name, row)| Some((name, row.data?))) {
        if other.system != own.system {
            let (ours, theirs) = (own.system, other.system);
            return Err(format!(
                "{candidate} is of database system {ours}, {name} of {theirs}: they are no copies"
            ));
        }
        if other.out_of_recovery {
            return Err(format!("{name} is or was a primary: only it can be adopted"));
        }
        if highest(&other) > highest(&own) {
            return Err(format!("{name} has seen a higher epoch than {candidate}"));
        }
        // What runs as a primary is ahead of its copies, whatever it reported and when.
        if own.out_of_recovery {
            continue;
        }
        let unknown = |who: &InstanceName| format!("where the WAL of {who} ends is not known");
        let theirs = other.position.ok_or_else(|| unknown(name))?;
        if !own.position.ok_or_else(|| unknown(candidate))?.covers(&theirs) {
            return Err(format!("{name} is ahead of {candidate}"));
        }
    }
    if highest(&own) >= draft.epoch() {
        let why = "comes from a later life of the cluster than this one";
        return Err(format!("the epoch that {candidate} has seen {why}"));
    }
    if draft.rows().cluster().grants_held_ms > 0 && !own.out_of_recovery {
        return Err("a lease of the cluster's life before may still be believed in".to_owned());
    }
    Ok(own)
}

fn highest(data: &DataIdentity) -> crate::id::Epoch {
    data.position.map_or(data.epoch, |position| data.epoch.max(position.epoch))
}

/// Every declared instance must have an agent whose start was accepted and whose session is open.
fn missing(draft: &Draft<'_>, spec: &ServiceSpec, role: &ServiceRole) -> Result<(), String> {
    let sessions = draft.rows().sessions();
    let absent: Vec<_> = spec
        .instances
        .iter()
        .map(|declared| &declared.name)
        .filter(|name| {
            let row = role.instances.get(*name);
            row.is_none_or(|row| row.quarantined.is_some() || !sessions.contains_key(&row.session))
        })
        .map(InstanceName::as_str)
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    Err(format!("not all instances have reported: {} missing", absent.join(", ")))
}
