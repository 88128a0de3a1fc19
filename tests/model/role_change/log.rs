//! The coordinators' side of PROTOCOL.md D: what `apply` lets be committed, judged from the log
//! alone.
//!
//! It must never look at an instance: what it knows of one is a receipt.

use super::rules::{Rule, Rules};
use super::state::{
    Directive, Id, Log, Members, Operation, Order, Proof, Receipt, SyncSet, instances, others,
};
use super::wal::Position;

impl Log {
    fn entry(&mut self) {
        self.index += 1;
    }

    fn order(&mut self, to: Id, order: Order) {
        self.directives.push(Directive { revision: self.index, to, order });
    }

    /// The receipt of the open operation from an instance.
    pub fn receipt(&self, of: Id) -> Option<Receipt> {
        self.receipts[usize::from(of)]
    }

    /// `OpenFence`.
    pub fn open_fence(&mut self, planned: bool) {
        self.entry();
        let fence = self.index;
        self.op = Some(Operation { fence, taken_over: None, uncut: planned });
        self.receipts = Default::default();
        if planned {
            self.order(self.holder, Order::Resign(fence));
        } else {
            self.fence_all(fence);
        }
    }

    fn fence_all(&mut self, fence: u8) {
        self.order(self.holder, Order::Stop(fence));
        for standby in others(self.holder) {
            self.order(standby, Order::Detach(fence));
        }
    }

    /// `Cut`, once the Resign is committed.
    pub fn cut(&mut self) {
        let Some(op) = &mut self.op else { return };
        op.uncut = false;
        let fence = op.fence;
        self.entry();
        for standby in others(self.holder) {
            self.order(standby, Order::Detach(fence));
        }
    }

    /// A failover takes over a switchover: the Resign stays valid, other receipts are void.
    pub fn take_over(&mut self) {
        let Some(planned) = self.op else { return };
        self.entry();
        let fence = self.index;
        self.op = Some(Operation { fence, taken_over: Some(planned.fence), uncut: false });
        for receipt in &mut self.receipts {
            *receipt = receipt.filter(|receipt| receipt.proof == Proof::Resigned);
        }
        self.fence_all(fence);
    }

    /// `Fetch`, a step of the same fence.
    pub fn fetch(&mut self, to: Id, from: Id) {
        let Some(op) = self.op else { return };
        self.entry();
        self.order(to, Order::Fetch(from, op.fence));
    }

    /// From whom an instance may fetch: a recruit that is ahead.
    pub fn may_fetch(&self, to: Id, from: Id, rules: Rules) -> bool {
        let recruit = |id| self.receipt(id).filter(|receipt| receipt.proof == Proof::Recruited);
        match (recruit(to), recruit(from)) {
            (Some(own), Some(source)) => own.position < source.position,
            (Some(_), None) => from == self.holder && !rules.keep(Rule::FetchFromRecruit),
            _ => false,
        }
    }

    /// Whether a receipt counts.
    pub fn takes(&self, receipt: &Receipt, rules: Rules) -> bool {
        let Some(op) = self.op else { return false };
        let of_this = receipt.fence == op.fence
            || receipt.proof == Proof::Resigned && Some(receipt.fence) == op.taken_over;
        let of_boot = receipt.boot == self.boots[usize::from(receipt.from)];
        (of_boot || !rules.keep(Rule::ReceiptOfThisBoot))
            && (of_this || !rules.keep(Rule::ReceiptOfThisFence))
            && !self.quarantined.has(receipt.from)
    }

    /// Whether the holder has proved that it stopped.
    fn holder_stopped(&self) -> bool {
        self.receipt(self.holder)
            .is_some_and(|receipt| matches!(receipt.proof, Proof::Stopped | Proof::Resigned))
    }

    fn with_receipt(&self) -> Members {
        let mut members = Members(0);
        for id in instances().filter(|id| self.receipt(*id).is_some()) {
            members = members.with(id);
        }
        members
    }

    /// OUT: the old holder cannot acknowledge any more.
    pub fn out(&self, rules: Rules) -> bool {
        if self.holder_stopped() || !self.confirmed || !rules.keep(Rule::LapseIsNoProof) {
            return true;
        }
        let quorum = |set: &SyncSet| {
            let short = u8::from(!rules.keep(Rule::OutQuorum));
            self.with_receipt().and(set.members).count() + short >= set.quorum()
        };
        if rules.keep(Rule::OutOverAllOfA) {
            self.a.iter().all(quorum)
        } else {
            self.a.last().is_some_and(quorum)
        }
    }

    /// COMPLETE without an approval: the candidate holds everything that may have been
    /// acknowledged.
    pub fn complete(&self, candidate: Id, rules: Rules) -> bool {
        let Some(own) = self.receipt(candidate) else { return false };
        if let Some(resign) = self.receipt(self.holder)
            && resign.proof == Proof::Resigned
            && (own.position.epoch == resign.position.epoch
                && own.position.end >= resign.position.end
                || !rules.keep(Rule::ResignEndCompared))
        {
            return true;
        }
        let was_holder = candidate == self.holder && self.holder_stopped();
        if was_holder || !rules.keep(Rule::OnlyTheLastHolder) && candidate == 0 {
            return true;
        }
        let sets = if rules.keep(Rule::CompleteOverC) { &self.c } else { &self.a };
        sets.iter().all(|set| {
            let recruits = self.with_receipt().and(set.members);
            let short = u8::from(!rules.keep(Rule::CompleteQuorum));
            recruits.count() + short >= set.quorum()
                && (!rules.keep(Rule::CandidateHoldsMaximum)
                    || instances()
                        .filter(|id| recruits.has(*id))
                        .filter_map(|id| self.receipt(id))
                        .all(|recruit| reaches(own.position, recruit.position, rules)))
        })
    }

    /// `Grant`, once OUT, COMPLETE and FREE are proved.
    pub fn grant(&mut self, candidate: Id, approved: bool, rules: Rules) {
        let with_receipt = self.with_receipt();
        let mut members = Members(with_receipt.0 & !(1 << candidate));
        if members.count() == 0 {
            members = others(candidate).fold(members, Members::with);
        }
        self.entry();
        self.epoch += 1;
        self.holder = candidate;
        self.confirmed = false;
        let k = self.set.k.min(members.count());
        self.set = SyncSet { epoch: self.epoch, members, k };
        self.a = vec![self.set];
        if approved || !rules.keep(Rule::GrantKeepsC) {
            self.c.clear();
        }
        self.c.push(self.set);
        self.op = None;
        self.receipts = Default::default();
        self.lead();
    }

    /// `CloseFence`: the operation is given up.
    pub fn close_fence(&mut self) {
        self.entry();
        self.op = None;
        self.receipts = Default::default();
        self.lead();
    }

    /// Whether the operation may still be given up.
    pub fn may_close(&self) -> bool {
        self.op.is_some() && !self.holder_stopped()
    }

    fn lead(&mut self) {
        self.order(self.holder, Order::Lead(self.set));
        for standby in others(self.holder) {
            self.order(standby, Order::Follow(self.holder));
        }
    }

    /// The first half of a set change.
    pub fn change_set(&mut self, members: Members, rules: Rules) {
        self.entry();
        self.set = SyncSet { members, k: self.set.k.min(members.count()), ..self.set };
        if rules.keep(Rule::SetCommittedFirst) {
            self.a.push(self.set);
            self.c.push(self.set);
        }
        self.order(self.holder, Order::Lead(self.set));
    }

    /// Whether anything is left for `Covered` to end.
    pub fn uncovered(&self) -> bool {
        self.a != [self.set] || self.c != [self.set]
    }

    /// `Covered`: what went before is in what `k` members of the set hold.
    pub fn covered(&mut self) {
        self.a = vec![self.set];
        self.c = vec![self.set];
    }

    /// Judges a boot counter and the highest directive an agent knows of (B): the one to go on
    /// with, or none for a disk that went back.
    pub fn judge(&mut self, id: Id, boot: u8, seen: u8, rules: Rules) -> Option<u8> {
        let recorded = self.boots[usize::from(id)];
        let fresh = match rules.off {
            Some(Rule::BootCounterOfAccepted) => boot > recorded,
            Some(Rule::BootCounterAbove) => boot >= recorded,
            _ => boot == recorded,
        };
        let forgot = seen < self.pledged[usize::from(id)] && rules.remembers();
        if forgot || !fresh && rules.keep(Rule::BootCounterCompared) {
            self.quarantined = self.quarantined.with(id);
            self.receipts[usize::from(id)] = None;
            return None;
        }
        let next = if rules.counts_accepted() { recorded + 1 } else { boot.max(recorded) };
        self.boots[usize::from(id)] = next;
        Some(next)
    }
}

/// Whether one position holds at least what another does.
fn reaches(have: Position, want: Position, rules: Rules) -> bool {
    if rules.keep(Rule::EpochComparedFirst) { have >= want } else { have.end >= want.end }
}
