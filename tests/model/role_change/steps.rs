//! Every step that somebody may take next, and the invariants.

use super::Bounds;
use super::agent::is_enough;
use super::rules::{Rule, Rules};
use super::state::{
    Config, Directive, Disk, EPOCHS, INSTANCES, Id, Instance, Log, Members, Order, Receipt, Run,
    State, SyncSet, Used, Write, instances, others,
};
use super::wal::{Wal, WriteId};

/// The primary at first.
pub const FIRST: Id = 0;
/// The boot every disk is in at first.
pub const FIRST_BOOT: u8 = 2;

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A client begins a write on a primary.
    Write(Id),
    /// A standby gets one record from its upstream.
    Stream(Id, Id),
    /// A primary tells a client that its write is committed.
    Acknowledge(WriteId),
    /// A directive arrives.
    Obey(Directive),
    /// All of a primary has read the names of a reload.
    Reloaded(Id),
    /// An orderly shutdown ends.
    Resign(Id),
    /// A renewal is committed and acknowledged (C8, E4).
    Renew(Id),
    /// A promotion, or a restart in place.
    Lead(Id, u8),
    /// Power goes.
    Crash(Id),
    /// Power comes.
    Boot(Id),
    /// The boot counter is judged (B).
    Judge(Id),
    /// A disk goes back to an image of before anything happened.
    DiskBack(Id),
    /// A receipt is committed.
    Deliver(Receipt),
    /// A role change begins.
    OpenFence {
        /// As a switchover.
        planned: bool,
    },
    /// The standbys of a switchover are detached.
    Cut,
    /// A failover takes over a switchover.
    TakeOver,
    /// A recruit is to fetch from another.
    Fetch {
        /// Who.
        to: Id,
        /// From whom.
        from: Id,
    },
    /// The next epoch.
    Grant {
        /// Whose.
        to: Id,
        /// By an approval that names the loss.
        approved: bool,
    },
    /// A role change is given up.
    CloseFence,
    /// The sync set changes.
    ChangeSet(Members),
    /// `Covered`, by this write.
    Cover(WriteId),
}

/// The disk as it was before anything happened.
fn first_disk(id: Id, names: SyncSet, boot: u8) -> Disk {
    let config = if id == FIRST { Config::Lead(1) } else { Config::Follow(FIRST) };
    Disk {
        wal: Wal::default(),
        config,
        names,
        seen: 1,
        pledge: 0,
        promoted: u8::from(id == FIRST),
        boot,
    }
}

impl State {
    /// Everybody is where they belong, and nothing is written yet.
    pub fn first(bounds: &Bounds) -> Self {
        let set = bounds.set();
        let mut log = Log {
            index: 1,
            epoch: 1,
            holder: FIRST,
            confirmed: true,
            set,
            a: vec![set],
            c: vec![set],
            op: None,
            receipts: [None; INSTANCES],
            boots: [FIRST_BOOT; INSTANCES],
            pledged: [0; INSTANCES],
            quarantined: Members(0),
            directives: Vec::new(),
        };
        for id in instances() {
            let order = if id == FIRST { Order::Lead(set) } else { Order::Follow(FIRST) };
            log.directives.push(Directive { revision: 1, to: id, order });
        }
        let instance = |id| Instance {
            disk: first_disk(id, set, FIRST_BOOT),
            run: if id == FIRST { Run::Primary } else { Run::Standby },
            upstream: (id != FIRST).then_some(FIRST),
            seen: 1,
            names: set,
            reloading: None,
            renewed: id == FIRST,
        };
        Self {
            log,
            instances: [instance(0), instance(1), instance(2)],
            sent: Vec::new(),
            writes: Vec::new(),
            base: [None; EPOCHS],
            unproven: 0,
            covered: 0,
            used: Used::default(),
        }
    }

    /// What may happen next.
    pub fn actions(&self, bounds: &Bounds, rules: Rules, next: &mut Vec<Action>) {
        for id in instances() {
            self.instance_actions(id, bounds, rules, next);
        }
        for (id, write) in self.writes.iter().enumerate() {
            let id = id as WriteId;
            if self.released(write) {
                next.push(Action::Acknowledge(id));
            }
            if self.log.op.is_none() && self.log.uncovered() && self.covers(write, rules) {
                next.push(Action::Cover(id));
            }
        }
        for directive in &self.log.directives {
            let agent = self.instance(directive.to);
            let news = directive.revision != agent.seen || self.used.crashes > 0;
            if agent.listens() && news && agent.obeys(directive, rules) {
                next.push(Action::Obey(*directive));
            }
        }
        for receipt in &self.sent {
            let known = self.log.receipt(receipt.from);
            let rises = known.is_none_or(|known| receipt.position > known.position);
            if rises && self.log.takes(receipt, rules) {
                next.push(Action::Deliver(*receipt));
            }
        }
        match self.log.op {
            None => self.free_actions(bounds, next),
            Some(_) => self.operation_actions(bounds, rules, next),
        }
    }

    fn instance_actions(&self, id: Id, bounds: &Bounds, rules: Rules, next: &mut Vec<Action>) {
        let instance = self.instance(id);
        if instance.run == Run::Primary && self.writes.len() < bounds.writes {
            next.push(Action::Write(id));
        }
        if let Some(from) = self.source(id) {
            next.push(Action::Stream(id, from));
        }
        if instance.reloading.is_some() {
            next.push(Action::Reloaded(id));
        }
        if instance.run == Run::Stopping {
            next.push(Action::Resign(id));
        }
        let holds = self.log.holder == id && instance.leads() == Some(self.log.epoch);
        if holds && self.log.op.is_none() && instance.listens() && !instance.renewed {
            next.push(Action::Renew(id));
        }
        if let Some(epoch) = self.may_lead(id, rules) {
            next.push(Action::Lead(id, epoch));
        }
        match instance.run {
            Run::Down => {
                next.push(Action::Boot(id));
                if self.used.disks < bounds.disks {
                    next.push(Action::DiskBack(id));
                }
            }
            Run::Unjudged if !self.log.quarantined.has(id) => next.push(Action::Judge(id)),
            _ => {}
        }
        let victim = Members(bounds.victims).has(id);
        if victim && instance.run != Run::Down && self.used.crashes < bounds.crashes {
            next.push(Action::Crash(id));
        }
    }

    fn free_actions(&self, bounds: &Bounds, next: &mut Vec<Action>) {
        if self.used.operations < bounds.operations {
            next.push(Action::OpenFence { planned: false });
            if self.used.planned < bounds.planned {
                next.push(Action::OpenFence { planned: true });
            }
        }
        if self.used.sets < bounds.sets && self.log.confirmed {
            let possible = others(self.log.holder).fold(Members(0), Members::with);
            for members in (1..8).map(Members) {
                let valid = members.and(possible) == members;
                if valid && members != self.log.set.members {
                    next.push(Action::ChangeSet(members));
                }
            }
        }
    }

    fn operation_actions(&self, bounds: &Bounds, rules: Rules, next: &mut Vec<Action>) {
        let Some(op) = self.log.op else { return };
        if op.uncut {
            if self.log.receipt(self.log.holder).is_some() {
                next.push(Action::Cut);
            }
            next.push(Action::TakeOver);
        }
        for to in instances().filter(|id| self.log.receipt(*id).is_some()) {
            if self.log.out(rules) {
                if self.log.complete(to, rules) {
                    next.push(Action::Grant { to, approved: false });
                } else if self.used.approvals < bounds.approvals {
                    next.push(Action::Grant { to, approved: true });
                }
            }
        }
        if self.used.fetches < bounds.fetches {
            for to in instances() {
                for from in others(to).filter(|from| self.log.may_fetch(to, *from, rules)) {
                    next.push(Action::Fetch { to, from });
                }
            }
        }
        if self.used.closed < bounds.closed && self.log.may_close() {
            next.push(Action::CloseFence);
        }
    }

    /// Whether a write proves that what went before it is covered by the committed set.
    fn covers(&self, write: &Write, rules: Rules) -> bool {
        let set = self.log.set;
        let of_holder = write.by == self.log.holder && write.epoch == self.log.epoch;
        let fresh = write.under == Some(set) && is_enough(write.flushed, set);
        write.acked
            && (of_holder || !rules.keep(Rule::CoveredAfterPromotion))
            && (fresh
                || !rules.keep(Rule::CoveredByFreshTransaction)
                || !rules.keep(Rule::CoveredAfterPromotion))
    }

    /// Takes a step.
    pub fn step(&mut self, action: Action, bounds: &Bounds, rules: Rules) {
        match action {
            Action::Write(id) => self.begin(id),
            Action::Stream(id, from) => self.stream(id, from),
            Action::Acknowledge(write) => self.writes[usize::from(write)].acked = true,
            Action::Obey(directive) => self.obey(directive, rules),
            Action::Reloaded(id) => {
                let instance = self.instance_mut(id);
                instance.names = instance.reloading.take().unwrap_or(instance.names);
            }
            Action::Resign(id) => self.resign(id),
            Action::Renew(id) => {
                self.log.confirmed = true;
                self.instance_mut(id).renewed = true;
            }
            Action::Lead(id, epoch) => self.lead(id, epoch, rules),
            Action::Crash(id) => {
                self.used.crashes += 1;
                self.crash(id, rules);
            }
            Action::Boot(id) => self.boot(id, rules),
            Action::Judge(id) => self.judge(id, rules),
            Action::DiskBack(id) => {
                self.used.disks += 1;
                self.instance_mut(id).disk = first_disk(id, bounds.set(), bounds.image);
            }
            Action::Deliver(receipt) => {
                let from = usize::from(receipt.from);
                self.log.receipts[from] = Some(receipt);
                self.log.pledged[from] = self.log.pledged[from].max(receipt.fence);
            }
            Action::OpenFence { planned } => {
                self.used.operations += 1;
                self.used.planned += u8::from(planned);
                self.log.open_fence(planned);
            }
            Action::Cut => self.log.cut(),
            Action::TakeOver => self.log.take_over(),
            Action::Fetch { to, from } => {
                self.used.fetches += 1;
                self.log.fetch(to, from);
            }
            Action::Grant { to, approved } => self.grant(to, approved, rules),
            Action::CloseFence => {
                self.used.closed += 1;
                self.log.close_fence();
            }
            Action::ChangeSet(members) => {
                self.used.sets += 1;
                self.log.change_set(members, rules);
            }
            Action::Cover(_) => {
                self.covered |= 1 << self.log.epoch;
                self.log.covered();
            }
        }
    }

    fn grant(&mut self, to: Id, approved: bool, rules: Rules) {
        let law = Rules::default();
        let proven = self.log.out(law) && (approved || self.log.complete(to, law));
        if approved {
            self.used.approvals += 1;
            let wal = self.instance(to).disk.wal;
            for (id, write) in self.writes.iter_mut().enumerate() {
                let reached = write.acked || write.flushed != Members(0);
                write.given_up |= reached && !wal.holds(id as WriteId);
            }
        }
        self.log.grant(to, approved, rules);
        if !proven {
            self.unproven |= 1 << self.log.epoch;
        }
    }

    /// S2: what was acknowledged under an epoch was in the WAL of every later epoch's primary when
    /// it was promoted, unless an approval named the loss.
    pub fn keeps_what_was_acknowledged(&self) -> bool {
        self.writes.iter().enumerate().filter(|(_, w)| w.acked && !w.given_up).all(|(id, write)| {
            let later = self.base.iter().skip(usize::from(write.epoch) + 1).flatten();
            later.into_iter().all(|wal| wal.holds(id as WriteId))
        })
    }
}
