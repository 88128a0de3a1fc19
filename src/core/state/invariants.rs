//! What must be true of the rows, checked after every entry for the rows it touched.
//!
//! A handler that is wrong must not spread: the entry is rolled back and, where it concerns one
//! service, that service is quarantined (PROTOCOL.md G). The texts here end up in replicated rows,
//! so they hold nothing that two builds could print differently.
//!
//! `check_touched` costs what was touched; `check_all` looks at everything, for tests, the
//! simulator and a deep check of a node.

use std::collections::BTreeSet;

use super::journal::{Journal, SessionWas};
use super::tables::Tables;
use crate::id::{ElectionName, Epoch, InstanceName, Revision, ServiceName, SessionId};
use crate::limits::{MAX_CANDIDATES, MAX_VALUE_BYTES};
use crate::spec::TopologyKind;

use super::PartitionKey;
use super::election::Election;
use super::role;

/// A broken invariant: which, and of which row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule} ({row})")]
pub struct Broken {
    /// The rule, as a sentence that is not true.
    pub rule: &'static str,
    /// The row.
    pub row: String,
}

pub(super) fn must(
    holds: bool,
    rule: &'static str,
    row: impl FnOnce() -> String,
) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken { rule, row: row() }) }
}

/// Checks the rows that an entry touched, against what they were.
pub(super) fn check_touched(
    tables: &Tables,
    journal: &Journal,
    revision: Revision,
) -> Result<(), Broken> {
    let now = Epoch { incarnation: tables.cluster().incarnation.counter, revision };
    cluster(tables, journal)?;
    for (name, old) in &journal.elections {
        let new = tables.elections().get(name).map(|row| &**row);
        election_change(name, old.as_deref(), new, now)?;
        if let Some(new) = new {
            let same = old.as_deref().is_some_and(|old| old.same_places(new));
            election(tables, name, new, !same)?;
        }
    }
    for was in &journal.sessions {
        session_change(tables, was)?;
        session(tables, was.id())?;
    }
    if journal.voided.is_some() {
        must(tables.sessions().is_empty(), "a session outlived its incarnation", String::new)?;
        let placed = tables.placed_sessions().next();
        must(placed.is_none(), "a place outlived its session", || format!("{placed:?}"))?;
        let leased = tables.roles().iter().find(|(_, row)| row.lease.is_some());
        must(leased.is_none(), "a lease outlived its incarnation", String::new)?;
    }
    for name in journal.services.keys() {
        service(tables, name)?;
    }
    for (key, old) in &journal.partitions {
        let (old, new) = (old.as_deref(), tables.partitions().get(key));
        if let (Some(old), Some(new)) = (old, new) {
            let (name, part) = key;
            let row = || format!("partition {name}/{part}");
            must(new.epoch >= old.epoch, "S3: a partition's epoch went back", row)?;
            let taken = new.owner.is_some() && new.owner != old.owner;
            must(!taken || new.epoch > old.epoch, "S3: an owner without a new epoch", row)?;
        }
        if let Some(new) = new {
            let moved = old.map_or(Epoch::NONE, |old| old.epoch) != new.epoch;
            must(!moved || new.epoch == now, "an epoch that is not this entry's", || {
                format!("partition {}/{}", key.0, key.1)
            })?;
        }
        partition(tables, key)?;
    }
    roles(tables, journal, now)
}

/// The roles whose own row was touched, or one that they rest on: their service, an operation, or the
/// session that is their lease.
fn roles(tables: &Tables, journal: &Journal, now: Epoch) -> Result<(), Broken> {
    let mut touched: BTreeSet<&ServiceName> = journal.roles.keys().collect();
    touched.extend(journal.services.keys());
    touched.extend(journal.operations.keys().map(|(name, _)| name));
    for was in &journal.sessions {
        // What renewals change of a session can only rise, and no role rests on it.
        if let SessionWas::Row(id, _) = was {
            touched.extend(tables.lease_of(*id));
        }
    }
    for (name, old) in &journal.roles {
        role::invariants::change(tables, name, old.as_deref(), now)?;
    }
    touched.into_iter().try_for_each(|name| role::invariants::role(tables, name))
}

/// Checks every row and the indexes; for tests and for a deep check of a node.
pub(super) fn check_all(tables: &Tables) -> Result<(), Broken> {
    for (name, row) in tables.elections() {
        election(tables, name, row, true)?;
    }
    for id in tables.sessions().keys() {
        session(tables, *id)?;
    }
    for name in tables.services().keys() {
        service(tables, name)?;
    }
    for key in tables.partitions().keys() {
        partition(tables, key)?;
    }
    for name in tables.roles().keys() {
        role::invariants::role(tables, name)?;
    }
    let strays = tables.operations().keys().any(|(name, _)| !tables.roles().contains_key(name));
    must(!strays, "an operation outlived its service's role", String::new)?;
    let mut fresh = tables.clone();
    fresh.rebuild();
    must(fresh == *tables, "an index differs from the rows", String::new)
}

fn cluster(tables: &Tables, journal: &Journal) -> Result<(), Broken> {
    let Some(old) = &journal.cluster else { return Ok(()) };
    let new = tables.cluster();
    let row = || "cluster".to_owned();
    let risen = new.incarnation.counter > old.incarnation.counter;
    must(risen || new.incarnation == old.incarnation, "the incarnation went back", row)?;
    must(new.feature_level >= old.feature_level, "the feature level went back", row)?;
    must(new.highest_node >= old.highest_node, "a node id could be given twice", row)?;
    must(risen || new.boots.len() >= old.boots.len(), "a node's start was forgotten", row)?;
    for (node, start) in &old.boots {
        let back = new.boots.get(node).is_some_and(|now| now.boot < start.boot);
        must(risen || !back, "a boot counter went back", || format!("node {node}"))?;
    }
    Ok(())
}

fn election_change(
    name: &ElectionName,
    old: Option<&Election>,
    new: Option<&Election>,
    now: Epoch,
) -> Result<(), Broken> {
    let row = || format!("election {name}");
    let Some(new) = new else {
        let idle = old.is_none_or(|old| old.sessions().next().is_none());
        return must(idle, "an election was deleted under its holder", row);
    };
    let before = old.map_or(Epoch::NONE, |old| old.epoch);
    must(new.epoch >= before, "S3: an election's epoch went back", row)?;
    let granted =
        old.and_then(|old| old.holder.as_ref()).map(|holder| (holder.session, holder.epoch));
    if let Some(holder) = &new.holder
        && granted != Some((holder.session, holder.epoch))
    {
        must(holder.epoch > before, "S3: a grant without a higher epoch", row)?;
        must(holder.epoch == now, "an epoch that is not this entry's", row)?;
    }
    Ok(())
}

fn election(
    tables: &Tables,
    name: &ElectionName,
    row: &Election,
    places: bool,
) -> Result<(), Broken> {
    let at = || format!("election {name}");
    match &row.holder {
        None => {
            let held_back = tables.cluster().grants_held_ms > 0;
            must(row.queue.is_empty() || held_back, "candidates wait though nobody leads", at)?;
        }
        Some(holder) => {
            must(holder.epoch == row.epoch, "the holder's epoch is not the highest", at)?;
            must(holder.value.len() <= MAX_VALUE_BYTES, "a value is above its bound", at)?;
            let session = tables.sessions().get(&holder.session);
            let knows = session.is_some_and(|session| session.grant >= holder.epoch.revision);
            must(knows, "the holder's session is gone or was not told of its grant", at)?;
        }
    }
    if !places {
        return Ok(());
    }
    must(row.queue.len() <= MAX_CANDIDATES, "the queue is above its bound", at)?;
    let in_order = row.queue.windows(2).all(|pair| pair[0].since < pair[1].since);
    must(in_order, "the queue is not in order of arrival", at)?;
    let mut seen = BTreeSet::new();
    for session in row.sessions() {
        must(seen.insert(session), "a session has two places", at)?;
        must(tables.sessions().contains_key(&session), "a place without a session", at)?;
    }
    Ok(())
}

fn session_change(tables: &Tables, was: &SessionWas) -> Result<(), Broken> {
    let (id, old) = match was {
        SessionWas::Row(id, Some(row)) => (*id, row.marks()),
        SessionWas::Row(_, None) => return Ok(()),
        SessionWas::Marks(id, marks) => (*id, *marks),
    };
    let Some(new) = tables.sessions().get(&id) else { return Ok(()) };
    let rose = new.renewed >= old.renewed
        && new.acked >= old.acked
        && new.known_grant >= old.known_grant
        && new.grant >= old.grant;
    must(rose, "C4: a session's marks went back", || format!("session {id}"))
}

fn session(tables: &Tables, id: SessionId) -> Result<(), Broken> {
    let at = || format!("session {id}");
    let places = tables.places_of(id).len();
    let Some(row) = tables.sessions().get(&id) else {
        return must(places == 0, "a place outlived its session", at);
    };
    must(row.places as usize == places, "a session miscounts its places", at)?;
    must(row.known_grant <= row.grant, "a session knows of a grant it never got", at)?;
    must(row.acked <= row.renewed, "a session was answered before it asked", at)
}

fn service(tables: &Tables, name: &ServiceName) -> Result<(), Broken> {
    let at = || format!("service {name}");
    let rows: BTreeSet<_> = tables.partitions_of(name).map(|(partition, _)| partition).collect();
    let Some(service) = tables.services().get(name) else {
        return must(rows.is_empty(), "a partition outlived its service", at);
    };
    must(service.spec.name == *name, "a service is filed under another name", at)?;
    let declared: BTreeSet<_> = service.spec.partitions.iter().collect();
    must(rows == declared, "the partitions are not those declared", at)
}

fn partition(tables: &Tables, key: &PartitionKey) -> Result<(), Broken> {
    let (name, part) = key;
    let at = || format!("partition {name}/{part}");
    let Some(row) = tables.partitions().get(key) else { return Ok(()) };
    let Some(service) = tables.services().get(name) else {
        return must(false, "a partition outlived its service", at);
    };
    let active = service.spec.topology == TopologyKind::ActiveActive;
    must(active, "S1: a partition of a service with one primary", at)?;
    let declared = |owner: &InstanceName| {
        service.spec.instances.iter().any(|instance| instance.name == *owner)
    };
    must(row.owner.as_ref().is_none_or(declared), "an owner that is not declared", at)
}
