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
        let binds = self.view.state.policy_in_force(self.name);
        let policy = &binds.unwrap_or(self.spec.policy);
        if policy.mode != Mode::Quorum || !self.has_facts {
            return Verdict::Fine;
        }
        let facts = self.view.facts.of(self.name, holder);
        let Some(fact) = facts.filter(|fact| is_fresh(fact, self.view.now)) else {
            return Verdict::Fine;
        };
        let mut wanted = self.wanted(holder, &fact.observation);
        let count = |names: &BTreeSet<_>| u32::try_from(names.len()).unwrap_or(u32::MAX);
        // One change at a time: the sets of before are covered first. Unless that cannot be, because
        // members that it needs are away: what waits for them would wait for ever.
        // (The degraded set covers nothing: what follows it does.)
        let in_force = fact.observation.set_in_force == Some(set.revision);
        let settled = in_force && (self.role.is_covered() || set.is_degraded());
        let staying = wanted.iter().filter(|name| set.members.contains(*name)).count();
        if !settled && staying >= set.k as usize {
            return Verdict::Fine;
        }
        let mut k = policy.sync_standbys.min(count(&wanted)).max(policy.min_sync_standbys).max(1);
        if count(&wanted) < policy.min_sync_standbys.max(1) {
            match policy.on_too_few_sync {
                TooFewSync::Degrade => (wanted, k) = (BTreeSet::new(), 0),
                TooFewSync::Block if !set.is_degraded() => return Verdict::Fine,
                // The policy was changed meanwhile: whoever comes back first is waited for.
                TooFewSync::Block => wanted = self.sound(holder),
            }
        }
        if k as usize > wanted.len() {
            return Verdict::Fine;
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
        for name in self.sound(holder) {
            let member = self.role.set.as_ref().is_some_and(|set| set.members.contains(&name));
            if streaming.contains(&name) {
                self.memory.absent.remove(&name);
                wanted.insert(name);
                continue;
            }
            let since = *self.memory.absent.entry(name.clone()).or_insert(now);
            if member && now.since(since) < SYNC_MEMBER_TIMEOUT {
                wanted.insert(name);
            }
        }
        wanted
    }

    /// Who can acknowledge for the holder at all.
    fn sound(&self, holder: &InstanceName) -> BTreeSet<InstanceName> {
        let sound = |name: &&InstanceName| {
            let row = self.role.instances.get(*name);
            *name != holder && row.is_some_and(|row| row.quarantined.is_none())
        };
        self.spec.instances.iter().map(|one| &one.name).filter(sound).cloned().collect()
    }

    fn streaming<'o>(&self, seen: &'o Observation) -> impl Iterator<Item = &'o InstanceName> {
        seen.senders.iter().filter(|sender| sender.streams).map(|sender| &sender.to)
    }
}
