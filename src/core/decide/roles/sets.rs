//! The sync set follows who streams (PROTOCOL.md D, changing a set): a member that neither streams
//! nor has a live agent is removed, one that streams is added.

use std::collections::BTreeSet;

use super::verdict::is_fresh;
use super::{Look, Verdict};
use crate::command::Command;
use crate::id::InstanceName;
use crate::role::observe::Observation;
use crate::spec::{Mode, TooFewSync};
use crate::time::Micros;

/// How long a member may be away before the set is changed without it (PROTOCOL.md D).
const SYNC_MEMBER_TIMEOUT: Micros = Micros::from_ms(1_000);

impl Look<'_> {
    pub(super) fn sets(&mut self) -> Verdict {
        let (Some(set), Some(holder)) = (&self.role.set, &self.role.holder) else {
            return Verdict::Fine;
        };
        let policy = &self.spec.policy;
        if policy.mode != Mode::Quorum || !self.has_facts {
            return Verdict::Fine;
        }
        let facts = self.view.facts.of(self.name, holder);
        let Some(fact) = facts.filter(|fact| is_fresh(fact, self.view.now)) else {
            return Verdict::Fine;
        };
        // One change at a time: the sets of before are covered first.
        if fact.observation.set_in_force != Some(set.revision) || !self.role.is_covered() {
            return Verdict::Fine;
        }
        let wanted = self.wanted(holder, &fact.observation);
        let wanted = if wanted.is_empty() { set.members.clone() } else { wanted };
        let count = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
        let mut k = policy.sync_standbys.min(count).max(policy.min_sync_standbys);
        let mut wanted = wanted;
        let streaming = self.streaming(&fact.observation).count();
        if streaming < policy.min_sync_standbys as usize {
            match policy.on_too_few_sync {
                TooFewSync::Block if !set.is_degraded() => return Verdict::Fine,
                TooFewSync::Block => {}
                TooFewSync::Degrade => {
                    if self.lasted() < SYNC_MEMBER_TIMEOUT {
                        return Verdict::Fine;
                    }
                    (wanted, k) = (BTreeSet::new(), 0);
                }
            }
        }
        if (&wanted, k) == (&set.members, set.k) {
            return Verdict::Fine;
        }
        let names: Vec<_> = wanted.iter().map(InstanceName::as_str).collect();
        let text = format!("the sync set changes from {set} to {k} of [{}]", names.join(", "));
        let (service, seen) = (self.name.clone(), set.revision);
        Verdict::Do(Command::ChangeSet { service, seen, members: wanted, k }, text)
    }

    /// Members that are to be: who streams, and who was a member and is away for a moment only.
    fn wanted(&mut self, holder: &InstanceName, seen: &Observation) -> BTreeSet<InstanceName> {
        let now = self.view.now;
        let streaming: BTreeSet<&InstanceName> = self.streaming(seen).collect();
        let mut wanted = BTreeSet::new();
        for one in self.spec.instances.iter().filter(|one| one.name != *holder) {
            let row = self.role.instances.get(&one.name);
            if row.is_none_or(|row| row.quarantined.is_some()) {
                continue;
            }
            let member = self.role.set.as_ref().is_some_and(|set| set.members.contains(&one.name));
            if streaming.contains(&one.name) {
                self.memory.absent.remove(&one.name);
                wanted.insert(one.name.clone());
                continue;
            }
            let since = *self.memory.absent.entry(one.name.clone()).or_insert(now);
            if member && now.since(since) < SYNC_MEMBER_TIMEOUT {
                wanted.insert(one.name.clone());
            }
        }
        wanted
    }

    fn streaming<'o>(&self, seen: &'o Observation) -> impl Iterator<Item = &'o InstanceName> {
        seen.senders.iter().filter(|sender| sender.streams).map(|sender| &sender.to)
    }
}
