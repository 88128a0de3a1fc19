//! What a declared service survives the loss of: PROTOCOL.md D, last paragraph, as arithmetic over
//! the declared localities.
//!
//! It counts only what is declared, never what is up: a declaration that passes here can still be
//! degraded by what has failed already.

use std::collections::BTreeSet;

use super::validate::Problems;
use super::{Mode, Scope, ServiceSpec, Survive};

impl ServiceSpec {
    /// PROTOCOL.md D, last paragraph, and that somebody is left to be promoted at all.
    pub(super) fn check_survival(&self, problems: &mut Problems) {
        let Some(areas) = self.areas(problems) else { return };
        let scope_reaches = match self.policy.survive {
            Survive::Instance => true,
            Survive::Zone => self.policy.max_failover_scope != Scope::Zone,
            Survive::Region => self.policy.max_failover_scope == Scope::Any,
        };
        if !scope_reaches {
            problems.add(
                "policy.max_failover_scope",
                format!(
                    "a failover inside the {} does not survive the loss of a {}",
                    self.policy.max_failover_scope, self.policy.survive
                ),
                "widen it, or lower survive",
            );
        }
        if self.policy.survive != Survive::Instance {
            let outside_of = |lost: &str| {
                self.instances
                    .iter()
                    .zip(&areas)
                    .any(|(instance, area)| instance.electable() && area.as_str() != lost)
            };
            for lost in areas.iter().collect::<BTreeSet<_>>() {
                if !outside_of(lost) {
                    problems.add(
                        "policy.survive",
                        format!("without {lost} no instance is left that may become primary"),
                        "declare an instance with a priority above 0 elsewhere, or lower survive",
                    );
                }
            }
        }
        if self.policy.mode == Mode::Quorum {
            self.check_quorum_survival(&areas, problems);
        }
    }

    /// The area of each instance that one disaster of the survival goal takes whole. `None` when
    /// somebody's is not said.
    fn areas(&self, problems: &mut Problems) -> Option<Vec<String>> {
        let mut complete = true;
        let mut areas = Vec::with_capacity(self.instances.len());
        for (at, instance) in self.instances.iter().enumerate() {
            let locality = &instance.locality;
            let (part, missing, area) = match self.policy.survive {
                Survive::Instance => ("", false, format!("instance {}", instance.name)),
                Survive::Zone => (
                    "zone",
                    locality.zone.is_empty(),
                    format!("zone {}/{}", locality.region, locality.zone),
                ),
                Survive::Region => {
                    ("region", locality.region.is_empty(), format!("region {}", locality.region))
                }
            };
            if missing {
                complete = false;
                problems.add(
                    format!("instances[{at}].locality.{part}"),
                    format!("it is not said, but survive = \"{}\" needs it", self.policy.survive),
                    format!("name the {part}, or use survive = \"instance\""),
                );
            }
            areas.push(area);
        }
        complete.then_some(areas)
    }

    /// For each instance as primary and each area lost: enough members of its sync set must be left
    /// to fence and recruit (if the primary was lost too), or to go on acknowledging.
    fn check_quorum_survival(&self, areas: &[String], problems: &mut Problems) {
        let members = self.instances.len().saturating_sub(1);
        let k = self.policy.sync_standbys as usize;
        let k_min = self.policy.min_sync_standbys as usize;
        if k == 0 || k > members || k_min == 0 || k_min > k {
            return; // Said already, by the field that is wrong.
        }
        let mut said = BTreeSet::new();
        for (primary, area) in self.instances.iter().zip(areas) {
            if !primary.electable() {
                continue;
            }
            for lost in areas {
                let outside = self
                    .instances
                    .iter()
                    .zip(areas)
                    .filter(|(other, at)| other.name != primary.name && *at != lost)
                    .count();
                let with_primary = lost == area;
                let need = if with_primary { members - k + 1 } else { k_min };
                // Where no second instance remains nothing could acknowledge: a warning, because
                // a service of two is a fair choice.
                let alone = !with_primary && outside == 0;
                if outside >= need || alone || !said.insert((lost, need)) {
                    continue;
                }
                let what = if with_primary {
                    format!(
                        "without {lost}, the primary {} and its sync set leave {outside} members, \
                         but {need} must be reached to prove that nothing is lost",
                        primary.name
                    )
                } else {
                    format!(
                        "without {lost} the primary {} has {outside} standbys, but {need} must \
                         acknowledge each commit",
                        primary.name
                    )
                };
                problems.add(
                    "policy.survive",
                    what,
                    if with_primary {
                        "raise sync_standbys, spread the instances, or lower survive"
                    } else {
                        "lower min_sync_standbys, spread the instances, or lower survive"
                    },
                );
            }
        }
    }
}
