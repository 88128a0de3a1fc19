//! The services table: what was declared, and whether it is quarantined.
//!
//! A quarantined service stands still: nothing but `ReleaseQuarantine` changes it or its
//! partitions, so that what broke can be looked at (PROTOCOL.md G).

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::describe::{check_expect, check_text};
use super::journal::Draft;
use super::partition::Partition;
use super::role;
use crate::command::Expect;
use crate::id::{Epoch, InstanceName, PartitionName, Revision, ServiceName};
use crate::limits::{MAX_SERVICES, MAX_TEXT_BYTES};
use crate::reply::{Rejection, Reply};
use crate::spec::{Problem, ServiceSpec};

/// One declared service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// As declared.
    pub spec: ServiceSpec,
    /// Where it is in its life (PROTOCOL.md G).
    pub life: Life,
    /// Revision of its first declaration.
    pub created: Revision,
    /// Revision of its last change; for compare-and-set.
    pub changed: Revision,
    /// Set when an entry broke an invariant of it or could not be read; nothing but
    /// `ReleaseQuarantine` changes it then.
    pub quarantine: Option<Quarantine>,
}

/// A service's life (PROTOCOL.md G).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Life {
    /// Nobody has reported for it yet.
    Declared,
    /// Its leases and sets are unknown (after a restore).
    Unadopted,
    /// It has been granted a primary in this life of the cluster.
    Established,
}

/// Why a service stands still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Since which entry.
    pub since: Revision,
    /// What happened.
    pub why: String,
}

/// The service, if it exists and is not quarantined.
pub(super) fn open(draft: &Draft<'_>, name: &ServiceName) -> Result<Arc<Service>, Rejection> {
    let row = draft.rows().services().get(name).cloned().ok_or_else(|| not_found(name))?;
    match &row.quarantine {
        None => Ok(row),
        Some(Quarantine { since, why }) => Err(Rejection::Quarantined {
            service: name.to_string(),
            since: *since,
            why: why.clone(),
        }),
    }
}

/// Declares or changes a service. Declaring the same again changes nothing, not even the revision,
/// so that `services apply` can be run from a timer.
pub(super) fn put(
    draft: &mut Draft<'_>,
    spec: ServiceSpec,
    expect: Expect,
) -> Result<Reply, Rejection> {
    draft.bootstrapped()?;
    let name = spec.name.clone();
    let old = match open(draft, &name) {
        Ok(row) => Some(row),
        Err(Rejection::NotFound { .. }) => None,
        Err(refused) => return Err(refused),
    };
    check_expect("service", name.as_str(), old.as_ref().map(|row| row.changed), expect)?;
    if let Some(old) = old.as_ref().filter(|old| old.spec == spec) {
        return Ok(Reply::Unchanged { revision: old.changed });
    }
    if old.is_none() && draft.rows().services().len() >= MAX_SERVICES {
        let what = "services".to_owned();
        return Err(Rejection::Quota { what, limit: MAX_SERVICES as u64 });
    }
    check_spec(&spec, draft)?;
    check_owners(draft, &spec)?;
    role::life::may_change(draft, &spec)?;

    align_partitions(draft, &name, spec.partitions.iter().collect());
    role::life::change(draft, &spec);
    if let Some(old) = old.as_ref().filter(|old| old.spec.policy != spec.policy) {
        role::holder::replaced(draft, &name, old.spec.policy);
    }
    let (instances, partitions) = (spec.instances.len(), spec.partitions.len());
    let what = if old.is_some() { "service.changed" } else { "service.declared" };
    let row = Service {
        spec,
        life: old.as_ref().map_or(Life::Declared, |row| row.life),
        created: old.as_ref().map_or(draft.revision, |row| row.created),
        changed: draft.revision,
        quarantine: None,
    };
    draft.set_service(&name, Some(row));
    let outcome = format!("{instances} instances, {partitions} partitions");
    draft.note(what, name.as_str(), "", &outcome);
    Ok(Reply::Done { revision: draft.revision })
}

pub(super) fn delete(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    expect: Expect,
) -> Result<Reply, Rejection> {
    let row = open(draft, name)?;
    check_expect("service", name.as_str(), Some(row.changed), expect)?;
    if let Some((partition, owner)) = owned_partitions(draft, name).next() {
        let by = format!("instance {owner} owns partition {partition}");
        return Err(Rejection::InUse { what: "service".to_owned(), name: name.to_string(), by });
    }
    role::life::may_delete(draft, name)?;
    align_partitions(draft, name, BTreeSet::new());
    role::life::forget(draft, name);
    draft.set_service(name, None);
    draft.note("service.deleted", name.as_str(), "", "deleted");
    Ok(Reply::Done { revision: draft.revision })
}

pub(super) fn release(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    reason: &str,
) -> Result<Reply, Rejection> {
    check_text("reason", reason, MAX_TEXT_BYTES)?;
    let row = draft.rows().services().get(name).cloned().ok_or_else(|| not_found(name))?;
    let Some(was) = &row.quarantine else {
        return Err(Rejection::Invalid {
            field: "service".to_owned(),
            problem: format!("{name} is not quarantined"),
            fix: "there is nothing to release".to_owned(),
        });
    };
    if reason.trim().is_empty() {
        return Err(Rejection::Invalid {
            field: "reason".to_owned(),
            problem: "it is empty".to_owned(),
            fix: "say what was looked at and why it is safe to go on".to_owned(),
        });
    }
    let outcome = format!("released; quarantined since revision {}: {}", was.since, was.why);
    let open = Service { quarantine: None, changed: draft.revision, ..Service::clone(&row) };
    draft.set_service(name, Some(open));
    draft.note("service.released", name.as_str(), reason, &outcome);
    Ok(Reply::Done { revision: draft.revision })
}

/// Puts a service into quarantine; says whether there was one to put.
pub(super) fn quarantine(draft: &mut Draft<'_>, name: &ServiceName, why: &str) -> bool {
    let Some(row) = draft.rows().services().get(name).cloned() else { return false };
    if row.quarantine.is_none() {
        let quarantine = Some(Quarantine { since: draft.revision, why: why.to_owned() });
        let row = Service { quarantine, changed: draft.revision, ..Service::clone(&row) };
        draft.set_service(name, Some(row));
    }
    draft.note("service.quarantined", name.as_str(), why, "the entry was rolled back");
    true
}

/// The first problem of a spec under the cluster's timing, as a rejection.
pub(super) fn first_problem(problems: Vec<Problem>, place: &str) -> Result<(), Rejection> {
    let more = problems.len().saturating_sub(1);
    let Some(Problem { field, problem, fix }) = problems.into_iter().next() else {
        return Ok(());
    };
    let fix = if more == 0 { fix } else { format!("{fix} ({more} more problems)") };
    Err(Rejection::Invalid { field: format!("{place}{field}"), problem, fix })
}

fn check_spec(spec: &ServiceSpec, draft: &Draft<'_>) -> Result<(), Rejection> {
    first_problem(spec.validate(&draft.rows().cluster().timing), "")
}

/// What is owned may not be dropped: the owner would go on under an epoch that nobody can see.
fn check_owners(draft: &Draft<'_>, spec: &ServiceSpec) -> Result<(), Rejection> {
    let instances: BTreeSet<_> = spec.instances.iter().map(|instance| &instance.name).collect();
    let partitions: BTreeSet<_> = spec.partitions.iter().collect();
    for (partition, owner) in owned_partitions(draft, &spec.name) {
        if !partitions.contains(partition) {
            let by = format!("instance {owner} owns it");
            let name = partition.to_string();
            return Err(Rejection::InUse { what: "partition".to_owned(), name, by });
        }
        if !instances.contains(owner) {
            let by = format!("it owns partition {partition}");
            let name = owner.to_string();
            return Err(Rejection::InUse { what: "instance".to_owned(), name, by });
        }
    }
    Ok(())
}

fn owned_partitions<'d>(
    draft: &'d Draft<'_>,
    service: &'d ServiceName,
) -> impl Iterator<Item = (&'d PartitionName, &'d InstanceName)> {
    let rows = draft.rows().partitions_of(service);
    rows.filter_map(|(name, row)| row.owner.as_ref().map(|owner| (name, owner)))
}

/// Makes the rows those of `wanted`. A partition that comes back starts at `Epoch::NONE` again; S3
/// holds all the same, because the epoch of a grant is made of its revision, not of the row.
fn align_partitions(
    draft: &mut Draft<'_>,
    service: &ServiceName,
    wanted: BTreeSet<&PartitionName>,
) {
    let have: BTreeSet<_> =
        draft.rows().partitions_of(service).map(|(name, _)| name.clone()).collect();
    for name in have.iter().filter(|name| !wanted.contains(name)) {
        draft.set_partition(&(service.clone(), name.clone()), None);
    }
    for name in wanted.into_iter().filter(|name| !have.contains(*name)) {
        let row = Partition { epoch: Epoch::NONE, owner: None, changed: draft.revision };
        draft.set_partition(&(service.clone(), name.clone()), Some(row));
    }
}

fn not_found(name: &ServiceName) -> Rejection {
    Rejection::NotFound { what: "service".to_owned(), name: name.to_string() }
}
