//! The instances' side of PROTOCOL.md B, D and E: an agent, its disk and its PostgreSQL.
//!
//! An agent persists a directive before it obeys, and a receipt before it sends. Where the order of
//! two steps matters to no rule they are one step here.

use super::rules::{Rule, Rules};
use super::state::{
    Config, Directive, Disk, Id, Instance, Members, Order, Proof, Receipt, Run, State, Write,
};
use super::wal::{Record, WriteId};

impl Instance {
    /// Whether its agent takes directives.
    pub fn listens(&self) -> bool {
        !matches!(self.run, Run::Down | Run::Unjudged | Run::Stopping)
    }

    /// Which epoch it may lead, as its disk says.
    pub fn leads(&self) -> Option<u8> {
        match self.disk.config {
            Config::Lead(epoch) => Some(epoch),
            _ => None,
        }
    }

    /// Whether an agent obeys a directive: not one below the highest it knows; an equal one only
    /// changes something after a restart.
    pub fn obeys(&self, directive: &Directive, rules: Rules) -> bool {
        directive.revision >= self.seen || !rules.keep(Rule::DirectivesInOrder)
    }

    fn follow(&mut self, upstream: Id) {
        self.disk.config = Config::Follow(upstream);
        self.run = Run::Standby;
        self.upstream = Some(upstream);
    }
}

impl State {
    /// An agent gets a directive, and obeys.
    pub fn obey(&mut self, directive: Directive, rules: Rules) {
        let id = directive.to;
        let instance = self.instance_mut(id);
        let was_primary = instance.run == Run::Primary;
        instance.seen = directive.revision;
        let is_pledge = matches!(directive.order, Order::Detach(_));
        if !is_pledge || rules.keep(Rule::PledgePersisted) {
            instance.disk.seen = directive.revision;
        }
        match directive.order {
            Order::Lead(set) => {
                if instance.leads() != Some(set.epoch) {
                    instance.disk.config = Config::Lead(set.epoch);
                    instance.upstream = None;
                    instance.renewed = false;
                    instance.reloading = None;
                    instance.disk.names = set;
                    if was_primary {
                        instance.run = Run::Idle;
                    }
                } else if was_primary && instance.names != set {
                    instance.reloading = Some(set);
                    if rules.keep(Rule::NamesOnDisk) {
                        instance.disk.names = set;
                    }
                } else {
                    instance.disk.names = set;
                }
            }
            Order::Follow(upstream) => instance.follow(upstream),
            Order::Detach(fence) => {
                if rules.keep(Rule::DetachErasesConfig) || was_primary {
                    instance.disk.config = Config::Detached;
                }
                if rules.keep(Rule::DetachEndsReceiver) {
                    instance.upstream = None;
                }
                instance.run = Run::Standby;
                instance.disk.pledge = fence;
                self.send(id, fence, Proof::Recruited);
            }
            Order::Fetch(from, fence) => {
                if instance.disk.config == Config::Detached && instance.disk.pledge == fence {
                    instance.upstream = Some(from);
                }
            }
            Order::Stop(fence) => {
                instance.disk.config = Config::Closed;
                instance.run = Run::Idle;
                instance.upstream = None;
                self.send(id, fence, Proof::Stopped);
            }
            Order::Resign(fence) => {
                instance.disk.config = Config::Closed;
                if was_primary {
                    instance.run = Run::Stopping;
                    instance.disk.wal.push(Record::Shutdown);
                } else {
                    instance.run = Run::Idle;
                    instance.upstream = None;
                    self.send(id, fence, Proof::Stopped);
                }
            }
        }
        if was_primary && self.instance(id).run != Run::Primary {
            self.end_sessions(id);
        }
    }

    /// Receipts stay in the network for good.
    fn send(&mut self, from: Id, fence: u8, proof: Proof) {
        let disk = &self.instance(from).disk;
        let (position, boot) = (disk.wal.position(), disk.boot);
        let receipt = Receipt { from, fence, proof, position, boot };
        if !self.sent.contains(&receipt) {
            self.sent.push(receipt);
        }
    }

    /// What waits for standbys is never answered: its session is gone.
    fn end_sessions(&mut self, id: Id) {
        for write in self.writes.iter_mut().filter(|write| write.by == id && !write.acked) {
            write.aborted = true;
        }
    }

    /// The orderly shutdown ends, and its receipt names E.
    pub fn resign(&mut self, id: Id) {
        self.instance_mut(id).run = Run::Idle;
        let resigns = self.log.directives.iter().filter(|directive| directive.to == id);
        let fence = resigns.rev().find_map(|directive| match directive.order {
            Order::Resign(fence) => Some(fence),
            _ => None,
        });
        if let Some(fence) = fence {
            self.send(id, fence, Proof::Resigned);
        }
    }

    /// Power goes, and with it whatever was not on disk.
    pub fn crash(&mut self, id: Id, rules: Rules) {
        let instance = self.instance_mut(id);
        instance.run = Run::Down;
        instance.upstream = None;
        instance.reloading = None;
        instance.names = instance.disk.names;
        instance.seen = instance.disk.seen;
        instance.renewed &= !rules.keep(Rule::RestartNeedsNewRenewal);
        self.end_sessions(id);
    }

    /// The host is up again.
    pub fn boot(&mut self, id: Id, rules: Rules) {
        let instance = self.instance_mut(id);
        instance.disk.boot += u8::from(!rules.counts_accepted());
        instance.run = Run::Unjudged;
        if !rules.keep(Rule::JudgedBeforeStart) {
            // Only the walreceiver matters: the agent still obeys nothing.
            if let Config::Follow(upstream) = instance.disk.config {
                instance.upstream = Some(upstream);
            }
        }
    }

    /// The log judges the boot counter; what is not quarantined starts as its disk says.
    pub fn judge(&mut self, id: Id, rules: Rules) {
        let Disk { boot, seen, .. } = self.instance(id).disk;
        let Some(accepted) = self.log.judge(id, boot, seen, rules) else { return };
        let instance = self.instance_mut(id);
        instance.disk.boot = accepted;
        instance.seen = instance.disk.seen;
        match instance.disk.config {
            Config::Follow(upstream) => instance.follow(upstream),
            Config::Detached => instance.run = Run::Standby,
            Config::Lead(epoch) if epoch != instance.disk.promoted && epoch > 1 => {
                instance.run = Run::Standby;
            }
            Config::Lead(_) | Config::Closed => instance.run = Run::Idle,
        }
    }

    /// Whether an instance may become primary now: by a promotion, or by a restart in place (E4).
    pub fn may_lead(&self, id: Id, rules: Rules) -> Option<u8> {
        let instance = self.instance(id);
        if !matches!(instance.run, Run::Idle | Run::Standby) {
            return None;
        }
        let epoch = instance.leads();
        if !rules.keep(Rule::RestartNeedsNewRenewal) && instance.run == Run::Idle {
            return instance.renewed.then_some(instance.disk.promoted);
        }
        let confirmed = instance.renewed || !rules.keep(Rule::ConfirmedBeforePromotion);
        epoch.filter(|_| confirmed)
    }

    /// It does: the names first, then the promotion, then the epoch in its WAL, then clients.
    pub fn lead(&mut self, id: Id, epoch: u8, rules: Rules) {
        let instance = self.instance_mut(id);
        instance.run = Run::Primary;
        instance.upstream = None;
        instance.names = instance.disk.names;
        let in_place = instance.disk.promoted == epoch;
        let late = if in_place { Rule::ProbeBeforeClients } else { Rule::NamesBeforePromotion };
        if !rules.keep(late) {
            instance.names.k = 0;
            instance.reloading = Some(instance.disk.names);
        }
        if in_place {
            return;
        }
        instance.disk.promoted = epoch;
        if rules.keep(Rule::EpochIsWritten) {
            instance.disk.wal.push(Record::Epoch(epoch));
        }
        let wal = instance.disk.wal;
        self.base[usize::from(epoch)] = Some(wal);
    }

    /// A client's write is in the primary's WAL, and waits.
    pub fn begin(&mut self, id: Id) {
        let write = self.writes.len() as WriteId;
        let granted = self.log.epoch;
        let instance = self.instance_mut(id);
        instance.disk.wal.push(Record::Write(write));
        let epoch = instance.disk.promoted;
        let under = instance.reloading.is_none().then_some(instance.names);
        self.writes.push(Write {
            by: id,
            epoch,
            late: granted > epoch,
            under,
            flushed: Members(0),
            acked: false,
            aborted: false,
            given_up: false,
        });
    }

    /// From whom an instance can stream now.
    pub fn source(&self, id: Id) -> Option<Id> {
        let upstream = self.instance(id).upstream.filter(|upstream| *upstream != id)?;
        let recruit = |id| self.instance(id).disk.config == Config::Detached;
        let sends = match self.instance(upstream).run {
            Run::Primary | Run::Stopping => true,
            Run::Standby => recruit(upstream) && recruit(id),
            Run::Down | Run::Unjudged | Run::Idle => false,
        };
        let differs = self.instance(upstream).disk.wal != self.instance(id).disk.wal;
        (sends && differs).then_some(upstream)
    }

    /// The next record arrives, is flushed, and the primary is told; a fork is rewound first.
    pub fn stream(&mut self, id: Id, from: Id) {
        self.receive(id, from);
        let disk = &self.instance(id).disk;
        if disk.config == Config::Detached {
            self.send(id, disk.pledge, Proof::Recruited);
        }
    }

    fn receive(&mut self, id: Id, from: Id) {
        let ahead = self.instance(from).disk.wal;
        let promoted = self.instance(from).disk.promoted;
        let wal = &mut self.instance_mut(id).disk.wal;
        let common = wal.common(ahead);
        if *wal != common {
            *wal = common;
            return;
        }
        let record = ahead.get(wal.len());
        wal.push(record);
        if let Record::Write(write) = record {
            let write = &mut self.writes[usize::from(write)];
            if write.by == from && write.epoch == promoted {
                write.flushed = write.flushed.with(id);
            }
        }
    }

    /// Whether a write's wait is over: enough of the names said that they flushed it. During a
    /// reload each backend may still use the old names, or already the new ones.
    pub fn released(&self, write: &Write) -> bool {
        let primary = self.instance(write.by);
        let enough = |set| is_enough(write.flushed, set);
        primary.run == Run::Primary
            && primary.disk.promoted == write.epoch
            && !write.acked
            && !write.aborted
            && (enough(primary.names) || primary.reloading.is_some_and(enough))
    }
}

/// Whether `k` of a set's members are among those.
pub fn is_enough(flushed: Members, set: super::state::SyncSet) -> bool {
    flushed.and(set.members).count() >= set.k
}
