//! Standbys of a primary that serves: whether it is cut off from them, and what people are told of
//! those that do not keep up.

use super::verdict::{self, Finding, Verdict as Named};
use super::{Look, Verdict};
use crate::id::InstanceName;
use crate::role::observe::{Observation, Run};
use crate::spec::Mode;
use crate::time::Micros;

/// Commits that have waited for this long for standbys that miss their primary do not return by
/// themselves; a walreceiver that reconnects needs tens of milliseconds.
const ISOLATED_AFTER: Micros = Micros::from_ms(2_000);
/// A standby that does not stream for this long is told of: rewinds and clones are shorter, mostly,
/// and are not standbys.
const BROKEN_AFTER: Micros = Micros::from_ms(10_000);
/// A standby this far behind is told of: four segments.
const LAGGING_BYTES: u64 = 64 << 20;

impl Look<'_> {
    /// In quorum mode a primary that no standby reaches acknowledges nothing, though it answers.
    pub(super) fn isolated(&mut self, finding: Finding) -> Finding {
        let why = match (finding.verdict, self.spec.policy.mode) {
            (Named::Healthy, Mode::Quorum) => self.why_isolated(),
            _ => None,
        };
        let Some(why) = why else {
            self.memory.isolated = None;
            return finding;
        };
        let since = *self.memory.isolated.get_or_insert(self.view.now);
        if self.view.now.since(since) < ISOLATED_AFTER {
            return finding;
        }
        Finding::new(Named::PrimaryIsolated, why)
    }

    /// Two kinds of evidence: too few stream from it, and whoever of the others says anything tried to
    /// reach it and could not.
    fn why_isolated(&self) -> Option<String> {
        let holder = self.role.holder.as_ref()?;
        let set = self.role.set.as_ref().filter(|set| !set.is_degraded())?;
        let own = &self.view.facts.of(self.name, holder)?.observation;
        let streaming =
            own.senders.iter().filter(|one| one.streams && set.members.contains(&one.to));
        let (have, need) = (streaming.count(), set.k);
        let others = verdict::others(self.spec, self.name, holder, self.view.facts, self.view.now);
        let alone = have < need as usize && others.sees.is_empty() && !others.misses.is_empty();
        alone.then(|| {
            let missed = others.misses.join(", ");
            format!("its agent reports, and it is missed by [{missed}]: {have} of {need} confirm")
        })
    }

    /// What is the matter with standbys, for people.
    pub(super) fn standbys(&mut self) -> Verdict {
        let Some(holder) = self.role.holder.clone() else { return Verdict::Fine };
        let now = self.view.now;
        let Some(fact) = self.view.facts.of(self.name, &holder) else { return Verdict::Fine };
        let (own, fresh) = (&fact.observation, verdict::is_fresh(fact, now));
        if !fresh || own.run != Run::Primary {
            return Verdict::Fine;
        }
        let (mut broken, mut lagging) = (Vec::new(), Vec::new());
        for one in self.spec.instances.iter().filter(|one| one.name != holder) {
            let fact = self.view.facts.of(self.name, &one.name);
            let seen =
                fact.filter(|fact| verdict::is_fresh(fact, now)).map(|fact| &fact.observation);
            let seen = seen.filter(|seen| seen.run == Run::Standby);
            let cut_off = seen.is_some() && !streams_to(own, &one.name);
            if !cut_off {
                self.memory.broken.remove(&one.name);
            } else if now.since(*self.memory.broken.entry(one.name.clone()).or_insert(now))
                >= BROKEN_AFTER
            {
                broken.push(one.name.as_str());
            }
            if behind(own, seen).is_some_and(|bytes| bytes >= LAGGING_BYTES) {
                lagging.push(one.name.as_str());
            }
        }
        if !broken.is_empty() {
            let (what, who) = (Named::ReplicationBroken, broken.join(", "));
            self.memory.found = Some(what);
            return Verdict::Wait(format!("{what}: {who} runs and does not stream from {holder}"));
        }
        if !lagging.is_empty() {
            let (what, who) = (Named::StandbyLagging, lagging.join(", "));
            self.memory.found = Some(what);
            let most = LAGGING_BYTES >> 20;
            return Verdict::Wait(format!("{what}: {who} is more than {most} MiB behind {holder}"));
        }
        Verdict::Fine
    }
}

fn streams_to(primary: &Observation, standby: &InstanceName) -> bool {
    primary.senders.iter().any(|sender| sender.streams && sender.to == *standby)
}

fn behind(primary: &Observation, standby: Option<&Observation>) -> Option<u64> {
    let (ahead, at) = (primary.position?, standby?.position?);
    Some(ahead.end.0.saturating_sub(at.end.0))
}
