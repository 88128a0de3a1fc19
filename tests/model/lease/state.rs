//! The hosts, their clocks, the log, and every step that may be next.

use super::Lease;
use super::rules::Rule;

/// What a holder needs to stop, in units of its own clock.
const FENCE_BUDGET: u8 = 1;

/// A clock: how fast it runs, and for how long it may still stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Clock {
    rate: u8,
    pauses: u8,
}

/// A renewal that was sent at least once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sent {
    /// Age of the first transmission, on the holder's clock.
    age: u8,
    /// Age of the last one.
    again: u8,
    /// The ttl it names.
    ttl: u8,
}

/// One holder; it has one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    clock: Clock,
    sent: Vec<Sent>,
    /// Until the end of what it may do, on its clock.
    left: u8,
    /// Whether what it does could be seen.
    pub acting: bool,
    /// It gave the lease up.
    over: bool,
}

/// An entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// The next epoch begins; its renewal 0.
    Grant,
    /// A renewal of the present epoch.
    Renew {
        /// Its number, from 1.
        number: u8,
        /// The ttl it names.
        ttl: u8,
    },
    /// The right is taken.
    Expire,
    /// The right is given back.
    Resign,
}

/// What the entries up to some index say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Row {
    epoch: u8,
    /// Newest renewal.
    number: u8,
    /// The ttl to wait for.
    ttl: u8,
    free: bool,
}

/// An expiry on its way to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Proposal {
    epoch: u8,
    number: u8,
}

/// A node that leads, or thinks so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proposer {
    clock: Clock,
    applied: usize,
    row: Row,
    /// Until it may take the right.
    wait: u8,
    proposal: Option<Proposal>,
}

/// A node that names a holder.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Router {
    clock: Clock,
    applied: usize,
    row: Row,
    /// Age and answer of the latest ReadIndex.
    read: Option<(u8, usize)>,
    /// For how long it still names the holder of its row.
    pub left: u8,
}

/// Whose clock stands still in a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The first holder.
    Holder,
    /// The router.
    Router,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Real time passes; one clock may stand still.
    Tick(Option<Host>),
    /// A holder sends its next renewal; this ttl is named.
    Send(usize, u8),
    /// It sends its newest renewal again.
    SendAgain(usize),
    /// A renewal is committed.
    Commit(usize, u8),
    /// A holder gets the acknowledgement of this renewal.
    Acknowledge(usize, u8),
    /// A holder looks whether it may act, and acts.
    Act(usize),
    /// A holder gives the lease up.
    Resign(usize),
    /// The next epoch is granted.
    Grant,
    /// The proposer applies one entry.
    Apply,
    /// The proposer proposes an expiry.
    Propose,
    /// That is committed.
    Expire,
    /// The proposer restarts, or another node takes its place.
    Restart,
    /// The router sends a ReadIndex.
    ReadIndex,
    /// The router applies one entry.
    Route,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    log: Vec<Entry>,
    row: Row,
    /// Committed renewals of each epoch, one bit each.
    committed: [u8; 2],
    /// Epochs whose right was taken or given back.
    taken: u8,
    /// Epochs whose right was taken by a lapse.
    lapsed: u8,
    /// The holder of epoch 1 and that of epoch 2.
    pub holders: [Holder; 2],
    proposer: Proposer,
    /// Who names a holder.
    pub router: Router,
    restarts: u8,
}

impl Clock {
    /// An age is not counted further than what it could still make a difference to.
    fn pass(self, age: u8, old: u8) -> u8 {
        (age + self.rate).min(old)
    }
}

impl Row {
    fn apply(&mut self, model: &Lease, entry: Entry) {
        match entry {
            Entry::Grant => *self = Self { epoch: self.epoch + 1, ..Self::default() },
            Entry::Renew { number, ttl } => {
                self.number = number;
                let longest = model.rules.keep(Rule::LongestTtlOfEpoch);
                self.ttl = if longest { self.ttl.max(ttl) } else { ttl };
            }
            Entry::Expire | Entry::Resign => self.free = true,
        }
    }
}

impl State {
    /// Epoch 1 is granted, and everybody knows; nothing was renewed yet.
    pub fn first(model: &Lease, holder: u8, proposer: u8, router: u8) -> Self {
        let clock = |rate| Clock { rate, pauses: model.bounds.pause };
        let row = Row { epoch: 1, ..Row::default() };
        let candidate = |rate| Holder {
            clock: clock(rate),
            sent: Vec::new(),
            left: 0,
            acting: false,
            over: false,
        };
        Self {
            log: vec![Entry::Grant],
            row,
            committed: [0; 2],
            taken: 0,
            lapsed: 0,
            holders: [candidate(holder), candidate(1)],
            proposer: Proposer { clock: clock(proposer), applied: 1, row, wait: 0, proposal: None },
            router: Router { clock: clock(router), applied: 1, row, read: None, left: 0 },
            restarts: 0,
        }
    }

    /// Whether an epoch's right was taken by a lapse.
    pub fn lapsed(&self, epoch: u8) -> bool {
        self.lapsed & 1 << epoch != 0
    }

    /// S5.
    pub fn acts_without_right(&self) -> bool {
        let taken = |at: usize| self.taken & 1 << (at + 1) != 0;
        (0..2).any(|at| self.holders[at].acting && taken(at))
    }

    /// S8.
    pub fn names_what_lapsed(&self) -> bool {
        self.router.left > 0 && self.lapsed(self.router.row.epoch)
    }

    /// What may happen next.
    pub fn actions(&self, model: &Lease, next: &mut Vec<Action>) {
        next.push(Action::Tick(None));
        if self.holders[0].clock.pauses > 0 && self.holders[0].left > 0 {
            next.push(Action::Tick(Some(Host::Holder)));
        }
        if model.bounds.router
            && self.router.clock.pauses > 0
            && (self.router.left > 0 || self.router.read.is_some())
        {
            next.push(Action::Tick(Some(Host::Router)));
        }
        for at in 0..2 {
            self.holder_actions(model, at, next);
        }
        if self.row.free && self.row.epoch == 1 {
            next.push(Action::Grant);
        }
        let proposer = &self.proposer;
        if proposer.applied < self.log.len() {
            next.push(Action::Apply);
        }
        let row = proposer.row;
        let seen = Some(Proposal { epoch: row.epoch, number: row.number });
        // C8: a grant that nothing confirmed ends without a clock.
        if !row.free && (proposer.wait == 0 || row.number == 0) && proposer.proposal != seen {
            next.push(Action::Propose);
        }
        if let Some(proposal) = proposer.proposal
            && proposal.epoch == self.row.epoch
            && !self.row.free
            && (proposal.number == self.row.number || !model.rules.keep(Rule::ExpiryNamesRenewal))
        {
            next.push(Action::Expire);
        }
        if self.restarts < model.bounds.restarts {
            next.push(Action::Restart);
        }
        if model.bounds.router {
            if self.router.applied < self.log.len() {
                next.push(Action::Route);
            }
            next.push(Action::ReadIndex);
        }
    }

    fn holder_actions(&self, model: &Lease, at: usize, next: &mut Vec<Action>) {
        let holder = &self.holders[at];
        let epoch = at as u8 + 1;
        if self.row.epoch < epoch {
            return;
        }
        if holder.sent.len() < model.bounds.renewals[at] && !holder.over {
            let [before, after] = model.bounds.ttls;
            next.push(Action::Send(at, before));
            if after != before {
                next.push(Action::Send(at, after));
            }
        }
        if !holder.sent.is_empty() && !model.rules.keep(Rule::FirstTransmission) {
            next.push(Action::SendAgain(at));
        }
        let committed = |number: u8| self.committed[at] & 1 << number != 0;
        for number in 1..=holder.sent.len() as u8 {
            if self.row.epoch == epoch && !self.row.free && number > self.row.number {
                next.push(Action::Commit(at, number));
            }
            let answered = committed(number) || !model.rules.keep(Rule::AnswerAfterCommit);
            if model.bounds.holder && answered && !holder.over {
                next.push(Action::Acknowledge(at, number));
            }
        }
        if !model.rules.keep(Rule::GrantHasNoLength) && holder.sent.is_empty() {
            next.push(Action::Acknowledge(at, 0));
        }
        if holder.left > 0 && !holder.acting {
            next.push(Action::Act(at));
        }
        if model.bounds.holder && self.row.epoch == epoch && !self.row.free && !holder.over {
            next.push(Action::Resign(at));
        }
    }

    /// Takes a step.
    pub fn step(&mut self, model: &Lease, action: Action) {
        match action {
            Action::Tick(still) => self.tick(model, still),
            Action::Send(at, ttl) => self.holders[at].sent.push(Sent { age: 0, again: 0, ttl }),
            Action::SendAgain(at) => {
                if let Some(sent) = self.holders[at].sent.last_mut() {
                    sent.again = 0;
                }
            }
            Action::Commit(at, number) => {
                self.committed[at] |= 1 << number;
                let ttl = self.holders[at].sent[usize::from(number) - 1].ttl;
                self.commit(model, Entry::Renew { number, ttl });
            }
            Action::Acknowledge(at, number) => self.acknowledged(model, at, number),
            Action::Act(at) => self.holders[at].acting = true,
            Action::Resign(at) => {
                let holder = &mut self.holders[at];
                holder.over = true;
                if model.rules.keep(Rule::ResignAfterStop) {
                    holder.acting = false;
                    holder.left = 0;
                }
                self.taken |= 1 << (at + 1);
                self.commit(model, Entry::Resign);
            }
            Action::Grant => self.commit(model, Entry::Grant),
            Action::Apply => self.apply(model),
            Action::Propose => {
                let row = self.proposer.row;
                self.proposer.proposal = Some(Proposal { epoch: row.epoch, number: row.number });
            }
            Action::Expire => {
                self.taken |= 1 << self.row.epoch;
                self.lapsed |= 1 << self.row.epoch;
                self.proposer.proposal = None;
                self.commit(model, Entry::Expire);
            }
            Action::Restart => {
                self.restarts += 1;
                let kept = model.rules.keep(Rule::TimersRestarted);
                let wait = model.long(self.proposer.row.ttl);
                self.proposer.wait = if kept { wait } else { 0 };
            }
            Action::ReadIndex => {
                let quorum = model.rules.keep(Rule::ReadIndexByQuorum);
                let answer = if quorum { self.log.len() } else { self.router.applied };
                self.router.read = Some((0, answer));
            }
            Action::Route => self.route(model),
        }
    }

    fn commit(&mut self, model: &Lease, entry: Entry) {
        self.row.apply(model, entry);
        self.log.push(entry);
    }

    fn tick(&mut self, model: &Lease, still: Option<Host>) {
        let [before, after] = model.bounds.ttls;
        let old = model.short(before.max(after));
        let endless = !model.rules.keep(Rule::FencerDeadline);
        for (at, holder) in self.holders.iter_mut().enumerate() {
            if at == 0 && still == Some(Host::Holder) {
                holder.clock.pauses -= 1;
                continue;
            }
            for sent in holder.sent.iter_mut().filter(|_| model.bounds.holder) {
                sent.age = holder.clock.pass(sent.age, old);
                sent.again = holder.clock.pass(sent.again, old);
            }
            holder.left = holder.left.saturating_sub(holder.clock.rate);
            holder.acting &= holder.left > 0 || endless;
        }
        self.proposer.wait = self.proposer.wait.saturating_sub(self.proposer.clock.rate);
        let router = &mut self.router;
        if !model.bounds.router {
            return;
        }
        if still == Some(Host::Router) {
            router.clock.pauses -= 1;
            return;
        }
        router.read = router.read.map(|(age, answer)| (router.clock.pass(age, old), answer));
        if model.rules.keep(Rule::BeliefEnds) {
            router.left = router.left.saturating_sub(router.clock.rate);
        }
    }

    /// C1, and what becomes of it without one of its rules.
    fn acknowledged(&mut self, model: &Lease, at: usize, number: u8) {
        let holder = &mut self.holders[at];
        let exact = usize::from(number).checked_sub(1).and_then(|index| holder.sent.get(index));
        let sent = match model.rules.off {
            Some(Rule::GrantHasNoLength) if number == 0 => {
                Some(Sent { age: 0, again: 0, ttl: model.bounds.ttls[0] })
            }
            Some(Rule::ExactNumber) => holder.sent.last().copied(),
            _ => exact.copied(),
        };
        let Some(sent) = sent else { return };
        let age = match model.rules.off {
            Some(Rule::CountFromTransmission) => 0,
            Some(Rule::FirstTransmission) => sent.again,
            _ => sent.age,
        };
        // The fencer begins to stop it when the budget is left, and has stopped it at the end.
        let budget = if model.rules.keep(Rule::FenceBudget) { 0 } else { FENCE_BUDGET };
        let left = model.short(sent.ttl).saturating_sub(age);
        if left > FENCE_BUDGET {
            holder.left = holder.left.max(left + budget);
        }
    }

    /// C2.
    fn apply(&mut self, model: &Lease) {
        let proposer = &mut self.proposer;
        let entry = self.log[proposer.applied];
        proposer.applied += 1;
        proposer.row.apply(model, entry);
        proposer.wait = model.long(proposer.row.ttl);
    }

    /// C3.
    fn route(&mut self, model: &Lease) {
        let router = &mut self.router;
        let entry = self.log[router.applied];
        router.applied += 1;
        router.row.apply(model, entry);
        let Entry::Renew { ttl, .. } = entry else {
            router.left = 0;
            return;
        };
        let below = |answer| answer < router.applied || !model.rules.keep(Rule::AnswerBelowRenewal);
        let age = match router.read {
            _ if !model.rules.keep(Rule::BelieveFromReadIndex) => 0,
            Some((age, answer)) if below(answer) => age,
            _ => return,
        };
        router.left = router.left.max(model.short(ttl).saturating_sub(age));
    }
}
