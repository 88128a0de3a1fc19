//! A holder without a fence: whether to open one, and whether its operation is over.

use super::verdict::{self, Finding, Verdict as Named};
use super::{Look, Verdict};
use crate::command::Command;
use crate::role::observe::Run;
use crate::role::{FenceKind, Phase};
use crate::spec::Mode;
use crate::time::Micros;

/// A candidate that was granted and has not promoted after this long is replaced: a promotion takes
/// tens of milliseconds, a long replay must be asked for by people.
const PROMOTE_WITHIN: Micros = Micros::from_ms(15_000);
/// An operation whose standbys do not come back is over after this long; `explain` says who misses.
const REPAIR_WITHIN: Micros = Micros::from_ms(120_000);

impl Look<'_> {
    pub(super) fn watch(&mut self) -> Verdict {
        let Some(holder) = &self.role.holder else { return Verdict::Fine };
        if !self.has_facts {
            return Verdict::Wait("collecting facts".to_owned());
        }
        let now = self.view.now;
        let found = verdict::of(self.spec, self.name, holder, self.view.facts, now);
        let mut finding = self.surroundings(found);
        if self.role.promoted.is_none() {
            finding = self.unpromoted(finding);
            if finding.verdict == Named::Healthy {
                finding = self.lapsed(finding);
            }
        } else if finding.verdict == Named::PrimaryStopped {
            finding = self.stopped(finding);
        } else if finding.verdict == Named::Healthy {
            finding = self.between(self.lapsed(finding));
            finding = self.isolated(finding);
        }
        self.memory.found = Some(finding.verdict);
        if finding.verdict.calls_for_failover() {
            return self.failover(finding);
        }
        if matches!(finding.verdict, Named::PrimaryUnreachableButReplicating | Named::AgentDead) {
            self.memory.stuck = None;
        }
        if finding.verdict != Named::Healthy {
            return Verdict::Wait(format!("{}: {}", finding.verdict, finding.why));
        }
        self.memory.stuck = None;
        match self.plan() {
            // It serves on meanwhile, so its set goes on following who streams: a member that is gone
            // would end its writes until the checkpoint is over, and that until it writes again.
            Some(Verdict::Wait(text)) => match self.sets() {
                Verdict::Fine => Verdict::Wait(text),
                verdict => verdict,
            },
            Some(verdict) => verdict,
            None => self.operation(),
        }
    }

    /// Between the grant and the promotion nothing serves; only silence and time count.
    fn unpromoted(&self, finding: Finding) -> Finding {
        if finding.verdict.is_silence() {
            return finding;
        }
        if self.lasted() >= PROMOTE_WITHIN && self.role.operation.is_some() {
            let why = format!("granted, and not promoted ({})", finding.why);
            return Finding { verdict: Named::PrimaryStalled, why };
        }
        Finding { verdict: Named::Healthy, why: finding.why }
    }

    /// Where a lapse proves something it is final (E2): an agent that came back under another session
    /// reports, and may serve nothing until somebody is granted anew.
    fn lapsed(&self, finding: Finding) -> Finding {
        if !self.has_lapsed() {
            return finding;
        }
        let why = "its agent reports, but its lease has lapsed".to_owned();
        Finding { verdict: Named::PrimaryStalled, why }
    }

    /// It comes up, or goes down, and serves nobody meanwhile (E4): that is bounded as a stop is.
    fn between(&self, finding: Finding) -> Finding {
        let (Some(since), Named::Healthy) = (self.memory.between, finding.verdict) else {
            return finding;
        };
        let holder = self.role.holder.as_ref();
        let fact = holder.and_then(|holder| self.view.facts.of(self.name, holder));
        let run = fact.map_or("away", |fact| fact.observation.run.as_str());
        let (waited, grace) =
            (self.view.now.since(since).as_ms(), self.spec.policy.restart_grace_ms);
        let why = format!("it is {run} for {waited} ms; a restart may take {grace} ms");
        let verdict = if waited < grace { Named::PrimaryRestarting } else { Named::PrimaryStalled };
        Finding { verdict, why }
    }

    /// S2 is promised for commits that wait for the set: whoever lowers that is told so, loudly, for as
    /// long as it is so (PROTOCOL.md D, `report`).
    pub(super) fn tampered(&mut self) -> Verdict {
        let holder = self.role.holder.as_ref();
        let fact = holder.and_then(|holder| self.view.facts.of(self.name, holder));
        let found = fact.filter(|fact| verdict::is_fresh(fact, self.view.now));
        let found = found.map_or("", |fact| fact.observation.tampered.as_str());
        if found.is_empty() || self.spec.policy.mode != Mode::Quorum {
            return Verdict::Fine;
        }
        let what = Named::SyncSetTampered;
        self.memory.found = Some(what);
        Verdict::Wait(format!("{what}: {found}; what is acknowledged so may be lost in a failover"))
    }

    /// Somebody stopped it in order: time to bring it back, then a failover (E5).
    fn stopped(&self, finding: Finding) -> Finding {
        let Some(holder) = &self.role.holder else { return finding };
        let Some(fact) = self.view.facts.of(self.name, holder) else { return finding };
        let grace = Micros::from_ms(self.spec.policy.restart_grace_ms);
        let since = self.memory.stopped.unwrap_or(fact.heard);
        if self.view.now.since(since) < grace {
            return finding;
        }
        let why = format!("{} more than {} ms ago", finding.why, grace.as_ms());
        Finding { verdict: Named::PrimaryProcessDead, why }
    }

    fn failover(&mut self, finding: Finding) -> Verdict {
        let what = format!("{}: {}", finding.verdict, finding.why);
        if self.role.paused.is_some() {
            return Verdict::Wait(format!("{what}; no failover: the service is paused"));
        }
        // A primary that never promoted is no service that flaps: the failover before goes on.
        if let Some(why) = self.flaps().filter(|_| self.role.promoted.is_some()) {
            return Verdict::Wait(format!("{what}; {why}"));
        }
        let since = *self.memory.stuck.get_or_insert(self.view.now);
        if let Err(why) = self.could_succeed(self.view.now.since(since)) {
            return Verdict::Wait(format!("{what}; no failover: {why}"));
        }
        let verdict = finding.verdict.as_str().to_owned();
        let command = Command::OpenFence {
            service: self.name.clone(),
            kind: FenceKind::Failover { verdict, to: None },
            seen: self.role.epoch,
            reason: finding.why,
        };
        Verdict::Do(command, what)
    }

    /// The newest operation: verified and repaired?
    fn operation(&self) -> Verdict {
        let Some(id) = self.role.operation else { return Verdict::Fine };
        let key = (self.name.clone(), id);
        let Some(operation) = self.view.state.operations().get(&key) else { return Verdict::Fine };
        if operation.phase != Phase::Repair {
            return Verdict::Fine;
        }
        let away: Vec<_> = self
            .spec
            .instances
            .iter()
            .filter(|one| Some(&one.name) != self.role.holder.as_ref() && !self.is_back(&one.name))
            .map(|one| one.name.as_str())
            .collect();
        let since = self.role.promoted.map_or(self.role.changed, |promoted| promoted.revision);
        let waited = self.memory.repair.filter(|(of, _)| *of == since);
        let over = waited.is_some_and(|(_, at)| self.view.now.since(at) >= REPAIR_WITHIN);
        if !away.is_empty() && !over {
            return Verdict::Fine;
        }
        // Said at the end of the look: what is to be done for the set and the standbys goes first.
        if self.routers_to_come().is_some() {
            return Verdict::Fine;
        }
        let text = if away.is_empty() {
            "all standbys stream again".to_owned()
        } else {
            format!("repair ends without {}", away.join(", "))
        };
        let (service, phase) = (self.name.clone(), Phase::Done);
        Verdict::Do(Command::AdvanceOperation { service, operation: id, phase }, text)
    }

    fn is_back(&self, name: &crate::id::InstanceName) -> bool {
        let fact = self.view.facts.of(self.name, name);
        fact.is_some_and(|fact| {
            let seen = &fact.observation;
            let from = seen.receiver.as_ref().filter(|receiver| receiver.streams);
            verdict::is_fresh(fact, self.view.now)
                && seen.run == Run::Standby
                && from.is_some_and(|receiver| receiver.from == self.role.holder)
        })
    }
}
