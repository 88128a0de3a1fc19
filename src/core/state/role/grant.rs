//! The next epoch (PROTOCOL.md D): refused unless OUT, COMPLETE and FREE are in the log.

use std::collections::BTreeSet;

use super::judge::{Case, Missing};
use super::row::{Operation, RoleLease, ServiceRole};
use super::{fence, holder, load, operation_in, rule, save, start, this_fence};
use crate::authz::{Principal, Role};
use crate::id::{InstanceName, Revision, ServiceName};
use crate::limits::MAX_FAILOVERS_KEPT;
use crate::mutant::{Mutant, leaves_out};
use crate::reply::{Rejection, Reply, RoleRule};
use crate::role::{CompleteProof, FenceKind, HolderInstant, Loss, OutProof, Phase, SyncSet};
use crate::spec::{Mode, ServiceSpec};
use crate::state::journal::Draft;
use crate::state::session;

/// Who is to be primary, and what may be lost by it.
pub(super) struct Bid {
    pub candidate: InstanceName,
    pub loss: Loss,
    pub approval: Option<Revision>,
}

pub(super) fn grant(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    fence: Revision,
    bid: Bid,
) -> Result<Reply, Rejection> {
    let (service, mut role) = load(draft, name)?;
    let open = this_fence(&role, fence)?;
    let key = (name.clone(), open.operation);
    let failover = matches!(open.kind, FenceKind::Failover { .. });
    let mut row = operation_in(draft, &key, Phase::Promote)?;
    let (out, complete, out_by) = judge(draft, &service.spec, &role, &row, &bid)?;
    let Bid { candidate, loss, .. } = bid;
    let epoch = draft.epoch();
    (row.to, row.epoch) = (Some(candidate.clone()), Some(epoch));
    (row.out, row.complete, row.loss) = (Some(out), Some(complete), loss);
    if failover && row.is_automatic() {
        role.failovers.push(draft.at);
        let many = role.failovers.len().saturating_sub(MAX_FAILOVERS_KEPT);
        role.failovers.drain(..many);
    }
    let outcome = format!("{candidate} under epoch {epoch}: {out}; {complete}");
    let recruits = recruits(&service.spec, &role, &candidate);
    renew_sets(draft, &service.spec, &mut role, &candidate, recruits, complete);
    holder::followed(draft, name, role.epoch, out_by);
    take_role(draft, name, role, candidate);
    draft.set_operation(&key, Some(row));
    draft.note("role.granted", name.as_str(), &format!("fence {fence}"), &outcome);
    Ok(Reply::Granted { epoch, revision: draft.revision })
}

fn judge(
    draft: &Draft<'_>,
    spec: &ServiceSpec,
    role: &ServiceRole,
    row: &Operation,
    bid: &Bid,
) -> Result<(OutProof, CompleteProof, Option<HolderInstant>), Rejection> {
    let asked = row.approval.as_ref();
    let approval =
        asked.filter(|asked| Some(asked.id) == bid.approval && asked.candidate == bid.candidate);
    let case = Case::in_rows(draft.rows(), &spec.name, spec, role, approval);
    case.free(&bid.candidate).map_err(|why| rule(RoleRule::NotFree, why))?;
    let out = case.out().map_err(|why| rule(RoleRule::NotOut, why))?;
    // S7: the figure is the log's, whatever its proposer heard or left out.
    case.is_not_below(&bid.candidate, bid.loss).map_err(|why| rule(RoleRule::LossBound, why))?;
    let complete = case.complete(&bid.candidate, bid.loss);
    let complete = complete.map_err(|Missing { rule: name, why }| rule(name, why))?;
    if out == OutProof::Approved && !case.is_loss_approved(&bid.candidate, bid.loss) {
        let why = "the loss is above what the approval allows: ask again".to_owned();
        return Err(rule(RoleRule::LossBound, why));
    }
    Ok((out, complete, case.out_by(out)))
}

/// Who has a receipt of this change, the candidate excepted.
fn recruits(
    spec: &ServiceSpec,
    role: &ServiceRole,
    candidate: &InstanceName,
) -> BTreeSet<InstanceName> {
    let receipts = role.fence.iter().flat_map(|fence| fence.receipts.keys());
    let usable = |name: &&InstanceName| {
        let row = role.instances.get(*name);
        *name != candidate
            && row.is_some_and(|row| row.quarantined.is_none())
            && spec.instances.iter().any(|declared| declared.name == **name)
    };
    receipts.filter(usable).cloned().collect()
}

/// The members and the k of a new holder's set: those that are fit, or, if these are too few for
/// `k_min`, all others: commits then wait until enough of them are back. The law takes all others
/// only if *nobody* is fit, and else lets k be more than the members; a number that nothing meets
/// would be met by no receipt at all, so the members grow instead.
pub(super) fn first_names(
    spec: &ServiceSpec,
    holder: &InstanceName,
    fit: BTreeSet<InstanceName>,
) -> (BTreeSet<InstanceName>, u32) {
    let least = spec.policy.min_sync_standbys.max(1);
    let count = |members: &BTreeSet<_>| u32::try_from(members.len()).unwrap_or(u32::MAX);
    let others = spec.instances.iter().map(|declared| &declared.name);
    let members = if count(&fit) >= least {
        fit
    } else {
        others.filter(|name| *name != holder).cloned().collect()
    };
    let k = spec.policy.sync_standbys.min(count(&members)).max(least);
    (members, k)
}

/// A = {N}, C = C_old + {N}; what an approval or the loss bound excuses is struck from C_old.
fn renew_sets(
    draft: &Draft<'_>,
    spec: &ServiceSpec,
    role: &mut ServiceRole,
    candidate: &InstanceName,
    fit: BTreeSet<InstanceName>,
    complete: CompleteProof,
) {
    match complete {
        CompleteProof::Approved => role.c.clear(),
        CompleteProof::WithinBound => role.c.retain(|set| !set.is_degraded()),
        _ if leaves_out(Mutant::UncoveredKept) => role.c.clear(),
        _ => {}
    }
    role.a.clear();
    role.set = None;
    if spec.policy.mode == Mode::Quorum {
        let (members, k) = first_names(spec, candidate, fit);
        let set = SyncSet { epoch: draft.epoch(), revision: draft.revision, members, k };
        role.a.push(set.clone());
        role.c.push(set.clone());
        role.set = Some(set);
    }
}

/// Makes an instance the holder under this entry's epoch. Its session, if it is open, is the lease;
/// else its next start binds one (C8: it acts only when a renewal that names the grant was answered).
pub(super) fn take_role(
    draft: &mut Draft<'_>,
    name: &ServiceName,
    mut role: ServiceRole,
    candidate: InstanceName,
) {
    let revision = draft.revision;
    let former = role.lease.take().map(|lease| lease.session);
    role.epoch = draft.epoch();
    role.timeline = role.newest_timeline().saturating_add(1);
    role.lease = lease_of(draft, name, &role, &candidate);
    role.holder = Some(candidate);
    role.lapsed = None;
    role.confirmed = false;
    role.promoted = None;
    role.routes_open = false;
    role.fence = None;
    fence::lead(&mut role, revision);
    let session = role.lease.as_ref().map(|lease| lease.session);
    save(draft, name, role);
    if let Some(session) = session {
        start::raise_grant(draft, session, revision);
    }
    // The old holder's session is no lease any more, so nothing refuses its renewals; an answer that
    // extends it could be taken for one that extends the old lease.
    if let Some(former) = former.filter(|former| Some(*former) != session) {
        session::end(draft, &BTreeSet::from([former]), session::End::Replaced);
    }
}

fn lease_of(
    draft: &Draft<'_>,
    name: &ServiceName,
    role: &ServiceRole,
    candidate: &InstanceName,
) -> Option<RoleLease> {
    let row = role.instances.get(candidate)?;
    let session = draft.rows().sessions().get(&row.session)?;
    let own = Principal::new(Role::Agent, format!("{name}/{candidate}"));
    let lease =
        RoleLease { session: row.session, mark: draft.revision, fencer: row.fencer, run: row.run };
    (session.owner == own).then_some(lease)
}
