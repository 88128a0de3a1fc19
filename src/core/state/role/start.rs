//! An agent comes up (PROTOCOL.md B as docs/adr/0010 corrects it): its boot counter, its disk and what
//! it remembers are judged before anything of its instance starts, and its session is bound as the
//! lease if its instance is the holder.
//!
//! ```text
//! presents            recorded       then
//! boot n, new nonce   n              the next start: n + 1
//! boot n or n-1, same nonce  n       the same start (its answer was lost, or a new session)
//! boot 0, new disk, new data, in no uncovered set: a new life of the instance: 1
//! anything else, or a pledge it does not know of: quarantine
//! ```
//! A quarantine is written down, so its answer is [`Reply::StartQuarantined`] and no rejection; a
//! start of an instance that is quarantined already is a rejection.

use std::collections::BTreeSet;

use super::judge::Case;
use super::row::{InstanceRow, RoleLease, ServiceRole};
use super::{active, at, not_found, rule, save, speaks_for};
use crate::id::{InstanceName, Nonce, Revision, ServiceName, SessionId};
use crate::mutant::{Mutant, leaves_out};
use crate::reply::{Rejection, Reply, RoleRule};
use crate::role::{AgentStart, Directive, DirectiveNumber, Order};
use crate::spec::Mode;
use crate::state::journal::Draft;
use crate::state::service::Life;
use crate::state::session::{self, Marks};
use crate::state::version::STRANGER_LEVEL;

/// What a start is, as far as the log can tell.
enum Judged {
    /// Of an instance that the log knows nothing of, or that was cloned anew.
    New,
    /// The start accepted last, or a new session of it.
    Same,
    /// The next one.
    Next,
    /// Of a disk that went back in time.
    Old(String),
}

pub(super) fn accept(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    instance: &InstanceName,
    start: &AgentStart,
) -> Result<Reply, Rejection> {
    let service = active(draft, name)?;
    speaks_for(draft.by, name, instance)?;
    if !service.spec.instances.iter().any(|declared| declared.name == *instance) {
        return Err(not_found("instance", at(name, instance)));
    }
    session::owned(draft, start.session)?;
    let old = draft.rows().roles().get(name).cloned();
    let mut role = old.as_deref().cloned().unwrap_or_else(|| ServiceRole::new(draft.revision));
    let known = role.instances.get(instance).cloned();
    if let Some(row) = &known {
        in_turn(row, start)?;
    }
    is_claimed(draft, name, instance, known.as_ref(), start)?;
    is_of_this_cluster(service.life, &role, instance, start)?;
    let judged = judge(service.life, &role, instance, start);
    if let Some(why) = known.as_ref().and_then(|row| row.quarantined.clone())
        && !matches!(judged, Judged::New)
    {
        return Err(Rejection::InstanceQuarantined { instance: instance.to_string(), why });
    }
    let boot = match judged {
        Judged::Old(why) => return Ok(quarantine(draft, name, instance, start, role, why)),
        Judged::New | Judged::Next => start.boot.saturating_add(1),
        Judged::Same => known.as_ref().map_or(0, |row| row.boot),
    };
    let (same, anew) = (matches!(judged, Judged::Same), matches!(judged, Judged::New));
    let row = accepted(&role, instance, start, boot, anew, draft.revision);
    if anew && let Some(fence) = &mut role.fence {
        fence.receipts.remove(instance);
    }
    role.instances.insert(instance.clone(), row);
    let former_of = known.map(|row| row.session);
    let former = former_of.filter(|former| *former != start.session);
    let same = same && is_holder(draft, &role, former_of.as_ref());
    let lease = bind(draft, service.spec.policy.mode, &role, instance, start, same);
    let is_bound = lease.is_some();
    if let Some(lease) = lease {
        let case = Case::in_rows(draft.rows(), name, &service.spec, &role, None);
        role.confirmed = case.is_confirmed();
        role.lease = Some(lease);
        role.lapsed = None;
    }
    let mine = role.lease.as_ref().filter(|lease| lease.session == start.session);
    let mark = mine.map_or(Revision(0), |lease| lease.mark);
    // Under a fence the lease gives no right, so the agent is not told of it.
    let told = if role.fence.is_some() { Revision(0) } else { mark };
    let revision = draft.revision;
    if old.as_deref() == Some(&role) {
        return Ok(Reply::StartAccepted { boot, mark: told, revision });
    }
    let bound = if is_bound { ", bound as the lease" } else { "" };
    let outcome = format!("start {boot}, session {}{bound}", start.session);
    // A lease that is not this session stays: the old one must end first (E2), or proves by its end
    // that the holder is out.
    let keep = role.lease.as_ref().map(|lease| lease.session);
    save(draft, name, role);
    raise_grant(draft, start.session, mark);
    if let Some(former) = former.filter(|former| Some(*former) != keep)
        && draft.rows().sessions().contains_key(&former)
    {
        session::end(draft, &BTreeSet::from([former]), session::End::Replaced);
    }
    draft.note("agent.started", &at(name, instance), "", &outcome);
    Ok(Reply::StartAccepted { boot, mark: told, revision })
}

/// Sessions are numbered by the log, so a start with an older session than the recorded one is one
/// that was delayed on its way, not an old disk.
fn in_turn(row: &InstanceRow, start: &AgentStart) -> Result<(), Rejection> {
    let late = start.session < row.session;
    let other = start.session == row.session && start.nonce != row.nonce;
    // A quarantined row holds the start before; its retries come with sessions of their own.
    if late || other && row.quarantined.is_none() {
        return Err(Rejection::NonceStale { session: start.session });
    }
    Ok(())
}

/// Two agents that speak for one instance: the one whose session is open is the instance, and the
/// other, which comes from another disk, changes nothing. A new disk waits until that session ends.
fn is_claimed(
    draft: &Draft<'_>,
    name: &ServiceName,
    instance: &InstanceName,
    known: Option<&InstanceRow>,
    start: &AgentStart,
) -> Result<(), Rejection> {
    let Some(row) = known.filter(|row| row.disk != start.disk) else { return Ok(()) };
    let held = row.session != start.session && row.quarantined.is_none();
    if !held || !draft.rows().sessions().contains_key(&row.session) {
        return Ok(());
    }
    let by = format!(
        "another agent speaks for it, with session {}; two agents have the same instance in their \
         configuration, or that one's host was lost a moment ago",
        row.session
    );
    Err(Rejection::InUse { what: "instance".to_owned(), name: at(name, instance), by })
}

/// The data of another cluster is no copy of this service's: it has no role here, and is left alone.
fn is_of_this_cluster(
    life: Life,
    role: &ServiceRole,
    instance: &InstanceName,
    start: &AgentStart,
) -> Result<(), Rejection> {
    let holder = role.holder.as_ref().filter(|_| life == Life::Established);
    let ours = holder.and_then(|holder| role.instances.get(holder)?.data);
    match (start.data, ours) {
        (Some(theirs), Some(ours)) if theirs.system != ours.system => Err(rule(
            RoleRule::OtherCluster,
            format!(
                "the data directory of {instance} is of database system {}, the service's is {}: \
                 nothing there is started or changed; move it away to have {instance} cloned",
                theirs.system, ours.system
            ),
        )),
        _ => Ok(()),
    }
}

fn judge(life: Life, role: &ServiceRole, instance: &InstanceName, start: &AgentStart) -> Judged {
    let Some(row) = role.instances.get(instance) else {
        // Before anybody was granted in this life of the cluster there is nothing that an old disk
        // could have forgotten: the first grant compares what all of them hold.
        if start.boot == 0 || life != Life::Established {
            return Judged::New;
        }
        return Judged::Old(format!("it presents start {}, and the log knows of none", start.boot));
    };
    if is_cloned_anew(role, instance, row, start) {
        return Judged::New;
    }
    if start.disk != row.disk && !leaves_out(Mutant::StartsJudged) {
        return Judged::Old("its counter lies on another disk than the recorded one".to_owned());
    }
    let same = start.nonce == row.nonce;
    let fits = start.boot == row.boot || same && start.boot.saturating_add(1) == row.boot;
    if leaves_out(Mutant::StartsJudged) {
        return if same { Judged::Same } else { Judged::Next };
    }
    if !fits {
        let (recorded, got) = (row.boot, start.boot);
        return Judged::Old(format!("it presents start {got}, and {recorded} is recorded"));
    }
    if start.seen < row.pledged {
        let (pledged, seen) = (row.pledged.revision, start.seen.revision);
        return Judged::Old(format!("it pledged by directive {pledged} and knows of {seen} only"));
    }
    if same { Judged::Same } else { Judged::Next }
}

/// A new life of an instance: nothing is left of the old disk. What it acknowledged then is gone, so
/// it may not be counted in any set that is not covered yet, and it cannot be the holder.
fn is_cloned_anew(
    role: &ServiceRole,
    instance: &InstanceName,
    row: &InstanceRow,
    start: &AgentStart,
) -> bool {
    let new_data = match (&start.data, &row.data) {
        (Some(new), Some(old)) => new.generation != old.generation,
        _ => true,
    };
    start.boot == 0
        && start.disk != row.disk
        && new_data
        && role.holder.as_ref() != Some(instance)
        && !role.counts(instance)
}

fn accepted(
    role: &ServiceRole,
    instance: &InstanceName,
    start: &AgentStart,
    boot: u64,
    anew: bool,
    revision: Revision,
) -> InstanceRow {
    let known = role.instances.get(instance).filter(|_| !anew);
    let order = match &role.holder {
        Some(holder) if role.fence.is_none() => Order::Follow { upstream: holder.clone() },
        _ => Order::Wait,
    };
    let fresh = Directive { epoch: role.epoch, revision, order };
    InstanceRow {
        boot,
        nonce: start.nonce,
        disk: start.disk,
        session: start.session,
        fencer: start.fencer,
        run: start.run,
        data: start.data,
        pledged: known.map_or(DirectiveNumber::default(), |row| row.pledged),
        quarantined: None,
        directive: known.map_or(fresh, |row| row.directive.clone()),
    }
}

/// The lease that this start makes, if it makes one: its session is to be the holder's right.
fn bind(
    draft: &Draft<'_>,
    mode: Mode,
    role: &ServiceRole,
    instance: &InstanceName,
    start: &AgentStart,
    same: bool,
) -> Option<RoleLease> {
    if role.holder.as_ref() != Some(instance) || role.fence.is_some() {
        return None;
    }
    let new = RoleLease {
        session: start.session,
        mark: draft.revision,
        fencer: start.fencer,
        run: start.run,
    };
    match &role.lease {
        Some(lease) if lease.session == start.session => {
            let changed = lease.fencer != start.fencer;
            changed.then_some(RoleLease { mark: lease.mark, run: lease.run, ..new })
        }
        // Where a lapse proves something, a stranger takes over nothing that may still run (E2), and
        // what has lapsed is out until it is granted anew.
        Some(lease) if role.lapse_counts(mode) && !goes_on(draft, lease, start, same) => None,
        None if role.lapse_counts(mode) && role.lapsed.is_some() => None,
        _ => Some(new),
    }
}

/// Whether the lease is of the start whose session was `newest` so far. A stranger's start that comes
/// twice, because its answer was lost or for a new session, is the same start as before, and a stranger to
/// the lease as before.
fn is_holder(draft: &Draft<'_>, role: &ServiceRole, newest: Option<&SessionId>) -> bool {
    let known = draft.rows().cluster().feature_level >= STRANGER_LEVEL;
    let held = role.lease.as_ref().map(|lease| &lease.session);
    !known || held.is_none() || held == newest || leaves_out(Mutant::StrangerWaits)
}

/// E2: it is the start that holds the lease; or what runs under it is guarded by the very fencer that
/// takes orders of this start alone, so that nobody is left who could act on the old session. Either way
/// the deadline of the old one is in force until the new one raises it, so that the new one must not lapse
/// before that (docs/adr/0010, 3).
fn goes_on(draft: &Draft<'_>, lease: &RoleLease, start: &AgentStart, same: bool) -> bool {
    let ttl = |id| draft.rows().sessions().get(id).map(|session| session.ttl_ms);
    let lasts = ttl(&start.session) >= ttl(&lease.session);
    let runs_on = start.run != Nonce(0) && start.run == lease.run;
    // Below that level nobody asked how long the new session of a start lasts.
    let unasked = draft.rows().cluster().feature_level < STRANGER_LEVEL;
    same && (lasts || unasked) || runs_on && lasts
}

/// Tells a session of its grant, so that its renewals name it (C8).
pub(super) fn raise_grant(draft: &mut Draft<'_>, id: SessionId, mark: Revision) {
    let Some(row) = draft.rows().sessions().get(&id) else { return };
    let marks = row.marks();
    if marks.grant < mark {
        draft.mark_session(id, Marks { grant: mark, ..marks });
    }
}

/// Keeps what is recorded of the last good start, so that only a new life ends the quarantine.
fn quarantine(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    instance: &InstanceName,
    start: &AgentStart,
    mut role: ServiceRole,
    why: String,
) -> Reply {
    let revision = draft.revision;
    let mut row = role.instances.remove(instance).unwrap_or(InstanceRow {
        boot: 0,
        nonce: start.nonce,
        disk: start.disk,
        session: start.session,
        fencer: start.fencer,
        run: start.run,
        data: start.data,
        pledged: DirectiveNumber::default(),
        quarantined: None,
        directive: Directive { epoch: role.epoch, revision, order: Order::Quarantined },
    });
    row.directive = Directive { epoch: role.epoch, revision, order: Order::Quarantined };
    row.quarantined = Some(why.clone());
    if let Some(fence) = &mut role.fence {
        fence.receipts.remove(instance);
    }
    role.instances.insert(instance.clone(), row);
    save(draft, name, role);
    draft.note("agent.quarantined", &at(name, instance), &why, "no role until it is cloned anew");
    Reply::StartQuarantined { why, revision }
}
