//! Who could be the next primary, and whether a failover could succeed at all.

use super::Look;
use super::verdict::is_fresh;
use crate::id::InstanceName;
use crate::role::{Position, Proof, Receipt};
use crate::spec::{InstanceSpec, Mode, OnViolation, Scope};
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
        let holder = self.role.holder.as_ref();
        let from = self.spec.instances.iter().find(|one| Some(&one.name) == holder);
        let Some(from) = from.map(|one| &one.locality) else { return true };
        let to = &candidate.locality;
        match self.spec.policy.max_failover_scope {
            Scope::Any => true,
            Scope::Region => from.region == to.region,
            Scope::Zone => from.region == to.region && from.zone == to.zone,
        }
    }

    /// Recruits of the open fence that may be primary, the best first: whom people asked for (at
    /// whatever distance), who holds most, then the holder's zone, then priority, then the name.
    pub(super) fn candidates(&self, asked: Option<&InstanceName>) -> Vec<Candidate<'l>> {
        let Some(fence) = &self.role.fence else { return Vec::new() };
        let holder = self.role.holder.as_ref();
        let home = self.spec.instances.iter().find(|one| Some(&one.name) == holder);
        let mut found: Vec<Candidate<'l>> = self
            .spec
            .instances
            .iter()
            .filter(|one| one.electable() && Some(&one.name) != holder)
            .filter(|one| asked == Some(&one.name) || self.in_scope(one))
            .filter_map(|one| {
                let position = recruited(fence.receipts.get(&one.name)?)?;
                Some(Candidate { spec: one, position })
            })
            .collect();
        let near = |one: &InstanceSpec| {
            home.is_some_and(|home| {
                (&home.locality.region, &home.locality.zone)
                    == (&one.locality.region, &one.locality.zone)
            })
        };
        found.sort_by(|a, b| {
            let asked_for = |it: &Candidate<'_>| asked == Some(&it.spec.name);
            let key =
                |it: &Candidate<'_>| (asked_for(it), it.position, near(it.spec), it.spec.priority);
            key(b).cmp(&key(a)).then_with(|| a.spec.name.cmp(&b.spec.name))
        });
        found
    }
}

/// The position that a recruit's receipt names.
fn recruited(receipt: &Receipt) -> Option<Position> {
    receipt.position.filter(|_| receipt.proof >= Proof::Recruited)
}
