//! An open fence: from receipts to the grant, or to the way back (PROTOCOL.md D).

use super::candidates::Candidate;
use super::verdict::{self, Verdict as Named};
use super::{Look, Verdict};
use crate::command::Command;
use crate::id::{InstanceName, Revision};
use crate::mutant::{Mutant, leaves_out};
use crate::role::{CompleteProof, Loss, OutProof, Proof};
use crate::spec::{Mode, OnViolation};
use crate::state::role::judge::Case;
use crate::state::role::row::{Approval, Fence};
use crate::time::Micros;

/// A primary that has not resigned after this long is left as it is: its checkpoint takes longer
/// than people wait for, or it does not obey.
const RESIGN_WITHIN: Micros = Micros::from_ms(20_000);
/// Stragglers are waited for this long when the candidate that was asked for, or a better one, may
/// be among them.
const STRAGGLERS: Micros = Micros::from_ms(150);
/// In a failover nobody takes writes while the candidate that people wish for is waited for.
const WISH: Micros = Micros::from_ms(3_000);
/// A fence under which nothing can be granted for this long goes back to the old primary, if that
/// has stopped and can come back: a service without a primary helps nobody (S13).
const BACK_AFTER: Micros = Micros::from_ms(5_000);

impl Look<'_> {
    pub(super) fn fence(&mut self) -> Verdict {
        let Some(fence) = self.role.fence.as_ref() else { return Verdict::Fine };
        if self.memory.fence.is_none_or(|(of, _)| of != fence.fence) {
            self.memory.fence = Some((fence.fence, self.view.now));
        }
        let since = self.memory.fence.map_or(Micros(0), |(_, at)| self.view.now.since(at));
        if fence.uncut {
            return self.planned(fence, since);
        }
        if self.memory.cut.is_none_or(|(of, _)| of != fence.fence) {
            self.memory.cut = Some((fence.fence, self.view.now));
        }
        self.note_fetch(fence);
        self.unplanned(fence, since)
    }

    /// A switchover before its Cut.
    fn planned(&self, fence: &Fence, since: Micros) -> Verdict {
        let service = self.name.clone();
        let holder = self.role.holder.as_ref();
        let proof =
            holder.and_then(|holder| fence.receipts.get(holder)).map(|receipt| receipt.proof);
        if proof == Some(Proof::Resigned) || leaves_out(Mutant::CutAfterResign) {
            let text = "the old primary has resigned: its standbys are detached".to_owned();
            return Verdict::Do(Command::CutStandbys { service, fence: fence.fence }, text);
        }
        if let Some((verdict, reason)) = self.cannot_resign(proof)
            && self.role.paused.is_none()
        {
            let text = format!("the switchover becomes a failover: {reason}");
            let verdict = verdict.as_str().to_owned();
            let command = Command::TakeOverFence { service, fence: fence.fence, verdict, reason };
            return Verdict::Do(command, text);
        }
        if since >= RESIGN_WITHIN {
            let reason = format!("the primary did not resign within {} ms", since.as_ms());
            let text = format!("given up: {reason}");
            return Verdict::Do(Command::CloseFence { service, fence: fence.fence, reason }, text);
        }
        Verdict::Wait("the primary is to checkpoint, stop and resign".to_owned())
    }

    /// Why a primary that was asked to resign never will. One that has ended, by a crash on its way
    /// or by its lease, cannot be given back what it had either (`CloseFence` is refused).
    fn cannot_resign(&self, proof: Option<Proof>) -> Option<(Named, String)> {
        let ended = proof.map(|proof| format!("it has {proof} and did not resign"));
        let lapsed = self.role.lapse_counts(self.spec.policy.mode) && self.role.lapsed.is_some();
        if let Some(why) = ended.or_else(|| lapsed.then(|| "its lease has lapsed".to_owned())) {
            return Some((Named::PrimaryProcessDead, why));
        }
        let holder = self.role.holder.as_ref().filter(|_| self.has_facts)?;
        let found = verdict::of(self.spec, self.name, holder, self.view.facts, self.view.now);
        let gone = found.verdict.is_silence() || found.verdict == Named::PrimaryStalled;
        gone.then_some((found.verdict, found.why))
    }

    fn unplanned(&self, fence: &Fence, since: Micros) -> Verdict {
        let asked = fence.kind.wanted();
        let candidates = self.candidates(asked);
        let mut why_not = Vec::new();
        for (at, candidate) in candidates.iter().enumerate() {
            if self.waits_for_better(fence, asked, candidate) {
                return Verdict::Wait("waiting a moment for the other recruits".to_owned());
            }
            // The others are behind the first, or would do without it.
            if let Some(fetch) = self.fetch(fence, candidate).filter(|_| at == 0) {
                return fetch;
            }
            match self.try_grant(fence, candidate) {
                Ok(verdict) => return verdict,
                Err(why) => why_not.push(format!("{}: {why}", candidate.spec.name)),
            }
        }
        // People are asked only when nobody can be granted without them.
        if let Some(subject) = self.subject(fence, &candidates) {
            match self.ask(fence, &candidates[subject].spec.name) {
                Ok(verdict) => return verdict,
                Err(Some(why)) => {
                    why_not[subject] = format!("{}: {why}", candidates[subject].spec.name);
                }
                Err(None) => {}
            }
        }
        if let Some(back) = self.way_back(fence, since, candidates.is_empty()) {
            return back;
        }
        if candidates.is_empty() {
            why_not.push(self.missing(fence));
        }
        Verdict::Wait(format!("nothing can be granted yet: {}", why_not.join("; ")))
    }

    /// Whether a recruit that is on its way may be preferred to this one, or is to be in its set:
    /// without it the first commit of the next primary could wait for the old one to come back.
    fn waits_for_better(
        &self,
        fence: &Fence,
        asked: Option<&InstanceName>,
        candidate: &Candidate<'_>,
    ) -> bool {
        let since = self.memory.cut.map_or(Micros(0), |(_, at)| self.view.now.since(at));
        let is_asked = asked.is_none_or(|asked| *asked == candidate.spec.name);
        let all_here = self.spec.instances.iter().all(|one| {
            Some(&one.name) == self.role.holder.as_ref()
                || fence.receipts.get(&one.name).is_some_and(|it| it.proof >= Proof::Recruited)
                || !self.is_fresh(&one.name)
        });
        let patience = match (is_asked, fence.kind.is_planned()) {
            (true, _) => STRAGGLERS,
            (false, true) => RESIGN_WITHIN,
            (false, false) => WISH,
        };
        !all_here && since < patience
    }

    fn is_fresh(&self, name: &InstanceName) -> bool {
        let fact = self.view.facts.of(self.name, name);
        fact.is_some_and(|fact| verdict::is_fresh(fact, self.view.now))
    }

    /// A grant to `candidate`, or why it cannot be.
    fn try_grant(&self, fence: &Fence, candidate: &Candidate<'_>) -> Result<Verdict, String> {
        let name = &candidate.spec.name;
        let case = self.case(None).ok_or("the service is gone")?;
        case.free(name)?;
        let loss = case.loss(name);
        let proofs = proofs(&case, name, loss);
        proofs.map(|(out, complete)| {
            let text = format!(
                "{name} is granted: the old primary is out ({out}), the new one complete ({complete})"
            );
            self.grant(fence, name, loss, None, text)
        })
    }

    /// About whom people are asked: one candidate at a time, or each question would strike the one
    /// before. The best, unless another has been asked about and still is a candidate.
    fn subject(&self, fence: &Fence, candidates: &[Candidate<'_>]) -> Option<usize> {
        let approval = self.approval(fence);
        let asked = approval.and_then(|approval| {
            candidates.iter().position(|candidate| candidate.spec.name == approval.candidate)
        });
        asked.or((!candidates.is_empty()).then_some(0))
    }

    fn approval(&self, fence: &Fence) -> Option<&Approval> {
        let operation = self.view.state.operations().get(&(self.name.clone(), fence.operation));
        operation.and_then(|operation| operation.approval.as_ref())
    }

    fn grant(
        &self,
        fence: &Fence,
        candidate: &InstanceName,
        loss: Loss,
        approval: Option<Revision>,
        text: String,
    ) -> Verdict {
        let command = Command::GrantRole {
            service: self.name.clone(),
            fence: fence.fence,
            candidate: candidate.clone(),
            loss,
            approval,
        };
        Verdict::Do(command, text)
    }

    /// What the proofs lack, people may allow, where the policy lets them be asked.
    ///
    /// # Errors
    /// What keeps it from being granted, where that is more than the proofs lack.
    fn ask(&self, fence: &Fence, candidate: &InstanceName) -> Result<Verdict, Option<String>> {
        let case = self.case(None).ok_or(None)?;
        case.free(candidate).map_err(|_| None)?;
        let loss = case.loss(candidate);
        let Err(why) = proofs(&case, candidate, loss) else { return Err(None) };
        let policy = self.view.state.policy_in_force(self.name).ok_or(None)?;
        if policy.loss_bound.on_violation != OnViolation::Ask {
            return Err(None);
        }
        let without_out = case.out().is_err();
        let mut why = why;
        if let Some(approval) = self.approval(fence).filter(|it| it.candidate == *candidate) {
            match &approval.answer {
                None => return Err(Some(format!("approval {} is asked for: {why}", approval.id))),
                Some(answer) if !answer.granted => {
                    let (id, by) = (approval.id, &answer.by);
                    return Err(Some(format!("approval {id} was denied by {by}: {why}")));
                }
                Some(answer) if self.allows(approval, loss) => {
                    let text = format!("{candidate} is granted as {} approved: {why}", answer.by);
                    return Ok(self.grant(fence, candidate, loss, Some(approval.id), text));
                }
                // H: void, and reopened.
                Some(_) => why = format!("{why}; approval {} allowed less", approval.id),
            }
        }
        // Asked too early, people would be asked about what a moment later needs no answer.
        let since = self.memory.fence.map_or(Micros(0), |(_, at)| self.view.now.since(at));
        if since < self.ask_after() {
            return Err(Some(why));
        }
        let question = format!("promote {candidate}, though {why}?");
        let command = Command::OpenApproval {
            service: self.name.clone(),
            fence: fence.fence,
            candidate: candidate.clone(),
            loss,
            without_out,
            question: question.clone(),
        };
        Ok(Verdict::Do(command, format!("people are asked: {question}")))
    }

    /// Whether `apply` would take a grant by this approval.
    fn allows(&self, approval: &Approval, loss: Loss) -> bool {
        let name = &approval.candidate;
        self.case(Some(approval.id)).is_some_and(|case| {
            let out = case.out();
            out.is_ok()
                && case.complete(name, loss).is_ok()
                && (out != Ok(OutProof::Approved) || case.is_loss_approved(name, loss))
        })
    }

    /// Proofs that time brings are waited for first: a lapse, a receipt.
    fn ask_after(&self) -> Micros {
        let lapse = match self.spec.policy.mode {
            Mode::Lease => Micros::from_ms(self.spec.policy.ttl_ms.saturating_mul(2)),
            Mode::Quorum => Micros(0),
        };
        lapse.saturating_add(Micros::from_ms(2_000))
    }

    /// Back to the old primary: it has stopped, and holds everything. `alone`: people can be asked about
    /// nobody else.
    fn way_back(&self, fence: &Fence, since: Micros, alone: bool) -> Option<Verdict> {
        let holder = self.role.holder.as_ref()?;
        if since < BACK_AFTER || !self.is_fresh(holder) {
            return None;
        }
        let fresh_receipt = fence.receipts.get(holder)?;
        if fresh_receipt.proof < Proof::Stopped {
            return None;
        }
        let case = self.case(None)?;
        case.free(holder).ok()?;
        let loss = Loss { ms: Some(0), bytes: Some(0) };
        case.complete(holder, loss).ok()?;
        if case.out().is_err() {
            return alone.then(|| self.ask(fence, holder).ok()).flatten();
        }
        let text = format!("{holder} has stopped and holds everything: it is primary again");
        Some(self.grant(fence, holder, loss, None, text))
    }

    fn case(&self, approval: Option<Revision>) -> Option<Case<'_>> {
        Case::of(self.view.state, self.name, approval)
    }

    fn missing(&self, fence: &Fence) -> String {
        let missing: Vec<_> = self
            .spec
            .instances
            .iter()
            .filter(|one| !fence.receipts.contains_key(&one.name))
            .map(|one| one.name.as_str())
            .collect();
        format!("no receipt yet from {}", missing.join(", "))
    }
}

/// Both proofs, or what they lack.
fn proofs(
    case: &Case<'_>,
    candidate: &InstanceName,
    loss: Loss,
) -> Result<(OutProof, CompleteProof), String> {
    let complete = case.complete(candidate, loss).map_err(|missing| missing.why);
    match (case.out(), complete) {
        (Ok(out), Ok(complete)) => Ok((out, complete)),
        (out, complete) => {
            let lacks: Vec<String> = [out.err(), complete.err()].into_iter().flatten().collect();
            Err(lacks.join("; "))
        }
    }
}
