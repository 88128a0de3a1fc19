//! Who could be the next primary, and whether a failover could succeed at all.

use std::cmp::Reverse;

use super::Look;
use super::verdict::is_fresh;
use crate::id::InstanceName;
use crate::role::{Position, Proof, Receipt};
use crate::spec::{InstanceSpec, Mode, OnViolation, Scope, ServiceSpec};
use crate::state::role::row::ServiceRole;
use crate::time::Micros;

/// A primary that is down, or answers nobody, while nobody could follow it, is left to itself for this
/// long: a restart in place (E4) is quicker than the way back under a fence.
const HELPS_ITSELF: Micros = Micros::from_ms(10_000);
/// Instances that could prove that nothing is lost are waited for this long before people are asked to
/// go on without them.
const PROOFS_WITHIN: Micros = Micros::from_ms(30_000);

/// What is said of one instance as a candidate.
pub struct Candidate<'a> {
    /// Who.
    pub spec: &'a InstanceSpec,
    /// How far it holds.
    pub position: Position,
}

impl<'l> Look<'l> {
    /// A fence stops the old primary: it is not opened when nobody could follow it (S13). `waited`: how
    /// long a failover has been called for and could not be begun.
    ///
    /// What nobody else can take over, the old primary itself can, once it has stopped: its own disk
    /// holds everything. And what no proof will ever come for is for people to decide, who are asked
    /// only under a fence: a service must not wait for an answer that nobody was asked for.
    pub(super) fn could_succeed(&self, waited: Micros) -> Result<(), String> {
        if self.could_come_back(waited) {
            return Ok(());
        }
        let reachable: Vec<&InstanceName> = self
            .spec
            .instances
            .iter()
            .filter(|one| {
                Some(&one.name) != self.role.holder.as_ref() && self.is_reachable(&one.name)
            })
            .map(|one| &one.name)
            .collect();
        let electable = self
            .spec
            .instances
            .iter()
            .any(|one| one.electable() && self.in_scope(one) && reachable.contains(&&one.name));
        if !electable {
            return Err("no instance that may be primary is reachable".to_owned());
        }
        if self.spec.policy.mode == Mode::Lease || self.is_for_people(waited) {
            return Ok(());
        }
        for set in &self.role.c {
            if !set.is_degraded() && !set.is_met_by(reachable.iter().copied()) {
                let need = set.quorum().unwrap_or(usize::MAX);
                let have: Vec<_> = reachable.iter().map(|name| name.as_str()).collect();
                return Err(format!(
                    "{need} members of the sync set ({set}) must be reached to prove that nothing is \
                     lost; reachable: [{}]",
                    have.join(", ")
                ));
            }
        }
        Ok(())
    }

    /// Whether the old primary is there, and leads nothing any more without being granted anew: its
    /// lease has lapsed where that is final (E2), or it had the time to help itself.
    fn could_come_back(&self, waited: Micros) -> bool {
        let Some(holder) = self.role.holder.as_ref().filter(|it| self.is_reachable(it)) else {
            return false;
        };
        let electable = |one: &InstanceSpec| one.name == *holder && one.electable();
        self.spec.instances.iter().any(electable) && (self.has_lapsed() || waited >= HELPS_ITSELF)
    }

    /// Whether proofs are not to be waited for any longer: the old primary has lost its disk, or
    /// enough of those who could prove something have been away for long.
    fn is_for_people(&self, waited: Micros) -> bool {
        let policy = self.view.state.policy_in_force(self.name);
        let asks = policy.is_some_and(|it| it.loss_bound.on_violation == OnViolation::Ask);
        let row = self.role.holder.as_ref().and_then(|holder| self.role.instances.get(holder));
        let is_lost = row.is_some_and(|row| row.quarantined.is_some());
        asks && (is_lost || waited >= PROOFS_WITHIN)
    }

    /// Whether the holder's lease has lapsed where that proves something: then it is final (E2).
    pub(super) fn has_lapsed(&self) -> bool {
        self.role.lapse_counts(self.spec.policy.mode)
            && self.role.lease.is_none()
            && self.role.lapsed.is_some()
    }

    fn is_reachable(&self, name: &InstanceName) -> bool {
        let row = self.role.instances.get(name);
        let fact = self.view.facts.of(self.name, name);
        row.is_some_and(|row| row.quarantined.is_none())
            && fact.is_some_and(|fact| is_fresh(fact, self.view.now))
    }

    /// How far an automatic failover may go from where the holder is.
    pub(super) fn in_scope(&self, candidate: &InstanceSpec) -> bool {
        is_in_scope(self.spec, home(self.spec, self.role), candidate)
    }

    /// Recruits of the open fence that may be primary, the best first: whom people asked for (at
    /// whatever distance), who holds most, then the holder's zone, then priority, then the name.
    pub(super) fn candidates(&self, asked: Option<&InstanceName>) -> Vec<Candidate<'l>> {
        let Some(fence) = &self.role.fence else { return Vec::new() };
        let home = home(self.spec, self.role);
        let mut found: Vec<Candidate<'l>> = may_be_next(self.spec, self.role, asked)
            .filter_map(|one| {
                let position = recruited(fence.receipts.get(&one.name)?)?;
                Some(Candidate { spec: one, position })
            })
            .collect();
        found.sort_by_key(|it| {
            let asked_for = asked == Some(&it.spec.name);
            Reverse((asked_for, it.position, preference(home, it.spec)))
        });
        found
    }
}

/// Who is primary next if all hold the same: as `Look::candidates` has it, before any receipt is there.
/// A guess: what is prepared by it is done again where it is wrong, and nothing rests on it.
pub fn expected<'s>(spec: &'s ServiceSpec, role: &ServiceRole) -> Option<&'s InstanceName> {
    let asked = role.fence.as_ref()?.kind.wanted();
    let home = home(spec, role);
    let all = may_be_next(spec, role, asked);
    let best = all.max_by_key(|&one| (asked == Some(&one.name), preference(home, one)));
    best.map(|one| &one.name)
}

/// Whom policy and people allow.
fn may_be_next<'s>(
    spec: &'s ServiceSpec,
    role: &ServiceRole,
    asked: Option<&InstanceName>,
) -> impl Iterator<Item = &'s InstanceSpec> {
    let home = home(spec, role);
    spec.instances
        .iter()
        .filter(|one| one.electable() && Some(&one.name) != role.holder.as_ref())
        .filter(move |one| asked == Some(&one.name) || is_in_scope(spec, home, one))
}

/// Among equals: the holder's zone, then priority, then the first name.
fn preference<'s>(
    home: Option<&InstanceSpec>,
    one: &'s InstanceSpec,
) -> (bool, u32, Reverse<&'s InstanceName>) {
    let near = home.is_some_and(|home| {
        (&home.locality.region, &home.locality.zone) == (&one.locality.region, &one.locality.zone)
    });
    (near, one.priority, Reverse(&one.name))
}

/// The holder as declared: where the primary is, or was.
pub(super) fn home<'s>(spec: &'s ServiceSpec, role: &ServiceRole) -> Option<&'s InstanceSpec> {
    spec.instances.iter().find(|one| Some(&one.name) == role.holder.as_ref())
}

fn is_in_scope(spec: &ServiceSpec, home: Option<&InstanceSpec>, candidate: &InstanceSpec) -> bool {
    let Some(from) = home.map(|one| &one.locality) else { return true };
    let to = &candidate.locality;
    match spec.policy.max_failover_scope {
        Scope::Any => true,
        Scope::Region => from.region == to.region,
        Scope::Zone => from.region == to.region && from.zone == to.zone,
    }
}

/// The position that a recruit's receipt names.
fn recruited(receipt: &Receipt) -> Option<Position> {
    receipt.position.filter(|_| receipt.proof >= Proof::Recruited)
}
