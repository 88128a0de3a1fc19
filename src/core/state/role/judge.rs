//! OUT, COMPLETE and FREE (PROTOCOL.md D), judged from the log alone: by the grant that needs them,
//! and by the decider and `explain` that want to know what is missing.
//!
//! It must never look at a hot fact, and it never changes anything. Each judgement is a proof or a
//! sentence that says what is missing.

use std::collections::{BTreeMap, BTreeSet};

use super::holder::{HolderRow, LastRenewal};
use super::row::{Approval, Fence, ServiceRole};
use crate::id::{InstanceName, Revision, ServiceName, SessionId};
use crate::mutant::{Mutant, leaves_out};
use crate::reply::RoleRule;
use crate::role::{Armed, CompleteProof, Loss, OutProof, Position, Proof, Receipt, SyncSet};
use crate::spec::{LossBound, OnViolation, Policy, ServiceSpec};
use crate::state::State;
use crate::state::session::Session;
use crate::state::tables::Tables;
use crate::state::version::REPORTS_LEVEL;

/// Of a holder that has not renewed since the cluster keeps what renewals say.
static NOTHING_SAID: HolderRow = HolderRow { renewal: None, former: Vec::new() };

/// What is needed to judge one role change.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// The service as declared.
    pub spec: &'a ServiceSpec,
    /// The policy that binds: the declared one, made safer by those of before that the holder may
    /// still act by (C7).
    pub policy: Policy,
    /// Its role.
    pub role: &'a ServiceRole,
    /// Open sessions.
    pub sessions: &'a BTreeMap<SessionId, Session>,
    /// What the holder said last; `None` below the level at which renewals say anything, where the
    /// start of its agent has to do.
    pub said: Option<&'a HolderRow>,
    /// The approval that the grant names, as the operation holds it; it counts only if it was
    /// granted.
    pub approval: Option<&'a Approval>,
}

/// Why a candidate is not complete: above the bound, or not known to hold what it must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// `NotComplete` or `LossBound`.
    pub rule: RoleRule,
    /// What is missing.
    pub why: String,
}

impl<'a> Case<'a> {
    /// The case of a service in a state; `approval` is the one a grant would name. `None` if the
    /// service has no role.
    pub fn of(state: &'a State, service: &ServiceName, approval: Option<Revision>) -> Option<Self> {
        let spec = &state.services().get(service)?.spec;
        let role = state.roles().get(service)?.as_ref();
        let operation = role.fence.as_ref().map(|fence| (service.clone(), fence.operation));
        let operation = operation.and_then(|key| state.operations().get(&key));
        let asked = operation.and_then(|row| row.approval.as_ref());
        let approval = asked.filter(|asked| Some(asked.id) == approval);
        Some(Self::in_rows(&state.tables, service, spec, role, approval))
    }

    /// The case of a role that is not in the rows yet.
    pub(in crate::state) fn in_rows(
        rows: &'a Tables,
        service: &ServiceName,
        spec: &'a ServiceSpec,
        role: &'a ServiceRole,
        approval: Option<&'a Approval>,
    ) -> Self {
        let kept = rows.cluster().feature_level >= REPORTS_LEVEL;
        let said = || rows.holders().get(service).map_or(&NOTHING_SAID, |row| &**row);
        let said = kept.then(said);
        let policy = said.map_or(spec.policy, |said| said.policy_in_force(&spec.policy));
        Self { spec, policy, role, sessions: rows.sessions(), said, approval }
    }

    /// The last renewal of a holder that acted.
    pub(super) fn last(&self) -> Option<&'a LastRenewal> {
        self.said.and_then(|said| said.renewal.as_ref())
    }

    /// Whether the holder has ever named its grant, so that it may have acted (C8). Under a fence it
    /// cannot begin to: its renewals are refused.
    pub fn is_confirmed(&self) -> bool {
        let named = self.role.lease.as_ref().is_some_and(|lease| {
            let session = self.sessions.get(&lease.session);
            session.is_some_and(|session| session.known_grant >= lease.mark)
        });
        self.role.confirmed || named
    }

    /// OUT: the old holder cannot acknowledge any more.
    ///
    /// # Errors
    /// What is missing.
    pub fn out(&self) -> Result<OutProof, String> {
        let Some(fence) = &self.role.fence else { return Err("no role change is open".into()) };
        let Some(holder) = &self.role.holder else { return Ok(OutProof::NoHolder) };
        match fence.receipts.get(holder) {
            Some(receipt) if receipt.proof == Proof::Resigned => return Ok(OutProof::Resigned),
            Some(receipt)
                if receipt.proof == Proof::Stopped
                    && (receipt.is_proven || leaves_out(Mutant::WeakProvesNothing)) =>
            {
                return Ok(OutProof::Stopped);
            }
            _ => {}
        }
        if !self.is_confirmed() {
            return Ok(OutProof::NeverActed);
        }
        let revoked = |set: &SyncSet| {
            let any = fence.receipts.keys().any(|name| set.members.contains(name));
            set.is_met_by(fence.receipts.keys()) || leaves_out(Mutant::OutCounts) && any
        };
        if !self.role.a.is_empty() && self.role.a.iter().all(revoked) {
            return Ok(OutProof::QuorumRevoked);
        }
        if self.has_lapsed_armed() {
            return Ok(OutProof::Lapsed);
        }
        if self.consent().is_some_and(|approval| approval.without_out) {
            return Ok(OutProof::Approved);
        }
        Err(self.why_not_out(fence, holder))
    }

    /// (b): never in quorum mode; never while people keep Regent's hands off, nor while the holder's
    /// last word is that it goes by a pause, whose fencer may have no deadline (E5).
    pub(super) fn has_lapsed_armed(&self) -> bool {
        let own = self.last().filter(|last| last.epoch == self.role.epoch);
        let unpaused = own.is_some_and(|last| last.report.pause.is_none())
            || leaves_out(Mutant::LapseUnpaused);
        self.role.lapse_counts(self.policy.mode)
            && self.role.paused.is_none()
            && (self.role.lapsed == Some(Armed::Armed)
                || leaves_out(Mutant::WeakProvesNothing) && self.role.lapsed.is_some())
            && (self.said.is_none() || unpaused)
    }

    fn why_not_out(&self, fence: &Fence, holder: &InstanceName) -> String {
        let mut why = match fence.receipts.get(holder) {
            Some(_) => vec![format!("the end of {holder}'s processes was not seen for certain")],
            None => vec![format!("{holder} has not said that it stopped")],
        };
        for set in &self.role.a {
            match set.quorum() {
                None => why.push("its commits may wait for nobody".to_owned()),
                Some(_) if set.is_met_by(fence.receipts.keys()) => {}
                Some(need) => {
                    let have = fence.receipts.keys().filter(|name| set.members.contains(*name));
                    why.push(format!("{} of {need} receipts from the set {set}", have.count()));
                }
            }
        }
        if self.role.lapse_counts(self.policy.mode) {
            why.push(match (self.role.lapsed, self.role.paused.is_some()) {
                (None, _) => "its lease has not lapsed".to_owned(),
                (_, true) => "the service is paused, so that a lapse proves nothing".to_owned(),
                (Some(Armed::Weak), _) => "its lease lapsed, but its fencer was weak".to_owned(),
                _ => "its lease lapsed, but its last renewal still went by a pause".to_owned(),
            });
        }
        why.join("; ")
    }

    /// COMPLETE: the candidate holds everything that may have been acknowledged, or what it may lack
    /// is allowed.
    ///
    /// # Errors
    /// What is missing.
    pub fn complete(&self, candidate: &InstanceName, loss: Loss) -> Result<CompleteProof, Missing> {
        let missing = |why: String| Missing { rule: RoleRule::NotComplete, why };
        let Some(fence) = &self.role.fence else {
            return Err(missing("no role change is open".to_owned()));
        };
        let Some(own) = fence.receipts.get(candidate) else {
            return Err(missing(format!("{candidate} has no receipt of this fence")));
        };
        if self.holds_resign(fence, own) {
            return Ok(CompleteProof::HoldsResign);
        }
        if self.role.holder.as_ref() == Some(candidate)
            && matches!(own.proof, Proof::Stopped | Proof::Resigned)
            && self.has_data(candidate)
        {
            return Ok(CompleteProof::LastHolder);
        }
        let sets = &self.role.c;
        let unmet = sets.iter().find_map(|set| lacks(set, fence, candidate, own.position));
        let any = leaves_out(Mutant::CompleteOverSets) && own.position.is_some();
        if !sets.is_empty() && (unmet.is_none() || any) {
            return Ok(CompleteProof::Recruits);
        }
        if self.is_within_bound(fence, candidate, own, loss) {
            return Ok(CompleteProof::WithinBound);
        }
        if self.is_loss_approved(candidate, loss) {
            return Ok(CompleteProof::Approved);
        }
        match unmet.filter(|_| !self.bound_counts()) {
            Some(why) => Err(missing(why)),
            None => Err(Missing { rule: RoleRule::LossBound, why: self.why_above(loss) }),
        }
    }

    /// Whether the start that its receipt is of found a database.
    fn has_data(&self, instance: &InstanceName) -> bool {
        self.role.instances.get(instance).is_some_and(|row| row.data.is_some())
    }

    fn holds_resign(&self, fence: &Fence, own: &Receipt) -> bool {
        let resign = self.role.holder.as_ref().and_then(|holder| fence.receipts.get(holder));
        let end = resign.filter(|resign| resign.proof == Proof::Resigned);
        match (own.position, end.and_then(|resign| resign.position)) {
            (Some(own), Some(end)) => own.epoch == end.epoch && own.end >= end.end,
            _ => false,
        }
    }

    pub(super) fn bound_counts(&self) -> bool {
        self.role.lapse_counts(self.policy.mode)
    }

    /// The bound excuses what was acknowledged without waiting for anybody, and nothing else: sets
    /// that promised more must be met all the same.
    fn is_within_bound(
        &self,
        fence: &Fence,
        candidate: &InstanceName,
        own: &Receipt,
        loss: Loss,
    ) -> bool {
        let bound = &self.policy.loss_bound;
        let below = |value: Option<u64>, most| value.is_some_and(|value| value <= most);
        // No bound on what is only estimated is met by what nobody could estimate.
        let any = self.said.is_some() && bound.max_bytes == LossBound::ANY_BYTES;
        let within = leaves_out(Mutant::LossBound)
            || bound.on_violation == OnViolation::Accept
            || below(loss.ms, bound.max_ms) && (any || below(loss.bytes, bound.max_bytes));
        let mut others = self.role.c.iter().filter(|set| !set.is_degraded());
        self.bound_counts()
            && within
            && others.all(|set| lacks(set, fence, candidate, own.position).is_none())
    }

    /// The approval that the grant names, if people said yes.
    fn consent(&self) -> Option<&'a Approval> {
        let granted = |asked: &&Approval| asked.answer.as_ref().is_some_and(|said| said.granted);
        let asks = self.policy.loss_bound.on_violation != OnViolation::Refuse;
        self.approval.filter(|_| asks).filter(granted)
    }

    /// H: no value may be above what people saw. What was unknown to them may be anything.
    pub(crate) fn is_loss_approved(&self, candidate: &InstanceName, loss: Loss) -> bool {
        let below = |value: Option<u64>, ceiling: Option<u64>| {
            ceiling.is_none_or(|most| value.is_some_and(|value| value <= most))
        };
        self.consent().is_some_and(|approval| {
            approval.candidate == *candidate
                && below(loss.ms, approval.loss.ms)
                && below(loss.bytes, approval.loss.bytes)
        })
    }

    fn why_above(&self, loss: Loss) -> String {
        let show = |value: Option<u64>| value.map_or("unknown".to_owned(), |v| v.to_string());
        let bound = &self.policy.loss_bound;
        format!(
            "the loss could be {} ms and {} bytes; the policy allows {} ms and {} bytes",
            show(loss.ms),
            show(loss.bytes),
            bound.max_ms,
            bound.max_bytes
        )
    }

    /// FREE: the candidate may be primary now.
    ///
    /// # Errors
    /// What is in the way.
    pub fn free(&self, candidate: &InstanceName) -> Result<(), String> {
        electable(self.spec, self.role, candidate)?;
        if leaves_out(Mutant::FreeReceipt) {
            return Ok(());
        }
        let fence = self.role.fence.as_ref().ok_or("no role change is open")?;
        let Some(receipt) = fence.receipts.get(candidate) else {
            return Err(format!("{candidate} has no receipt of this fence"));
        };
        let was_holder = self.role.holder.as_ref() == Some(candidate);
        match receipt.proof {
            Proof::Recruited | Proof::Stopped if receipt.position.is_some() => Ok(()),
            Proof::Resigned if was_holder => Ok(()),
            // It holds its own writes wherever they end, as long as its disk is there.
            Proof::Stopped if was_holder && self.has_data(candidate) => Ok(()),
            proof => Err(format!("{candidate} is {proof}, and where its WAL ends is not known")),
        }
    }
}

/// Whether an instance may be primary at all.
pub fn electable(
    spec: &ServiceSpec,
    role: &ServiceRole,
    candidate: &InstanceName,
) -> Result<(), String> {
    let Some(declared) = spec.instances.iter().find(|instance| instance.name == *candidate) else {
        return Err(format!("{candidate} is not declared"));
    };
    if !declared.electable() {
        return Err(format!("{candidate} has priority 0: it is never promoted"));
    }
    match role.instances.get(candidate) {
        None => Err(format!("{candidate} has never reported")),
        Some(row) if row.quarantined.is_some() => Err(format!("{candidate} is quarantined")),
        Some(_) => Ok(()),
    }
}

/// What keeps recruits from proving that `own` holds what was acknowledged under a set. A receipt
/// without a position, as that of an instance that is down, says that it acknowledges nothing, and
/// not what it holds.
fn lacks(
    set: &SyncSet,
    fence: &Fence,
    candidate: &InstanceName,
    own: Option<Position>,
) -> Option<String> {
    let Some(need) = set.quorum() else {
        return Some("commits waited for nobody".to_owned());
    };
    let Some(own) = own else {
        return Some(format!("where the WAL of {candidate} ends is not known"));
    };
    let holds = |receipt: &Receipt| receipt.position.filter(|_| receipt.proof != Proof::Detached);
    let recruits: BTreeMap<_, _> = fence
        .receipts
        .iter()
        .filter(|(name, _)| set.members.contains(*name))
        .filter_map(|(name, receipt)| Some((name, holds(receipt)?)))
        .collect();
    if !set.is_met_by(recruits.keys().copied()) {
        return Some(format!("{} of {need} recruits from the set {set}", recruits.len()));
    }
    let ahead: BTreeSet<_> = recruits
        .iter()
        .filter(|(_, position)| !own.covers(position))
        .map(|(name, _)| name)
        .collect();
    let ahead = ahead.first()?;
    Some(format!("{ahead} is ahead of {candidate}: let it fetch first"))
}
