//! Forgets what cannot make a difference any more, so that states that differ only by it are one.
//!
//! It must never forget what a rule reads: a message is dropped when nobody would take it, a field
//! when it will be written before it is read. Where a rule is off that reads more, more is kept.

use super::Bounds;
use super::rules::{Rule, Rules};
use super::state::{Config, Instance, Members, Run, State, SyncSet, Write};

impl State {
    /// The same state, as far as anybody can tell.
    pub fn forget(&mut self, bounds: &Bounds, rules: Rules) {
        let Self { log, sent, instances, writes, used, .. } = self;
        if rules.keep(Rule::ReceiptOfThisFence) {
            sent.retain(|receipt| log.takes(receipt, rules));
        }
        // The network keeps no order.
        sent.sort_unstable();
        if rules.keep(Rule::DirectivesInOrder) {
            log.directives.retain(|directive| {
                let agent = &instances[usize::from(directive.to)];
                directive.revision >= agent.seen.min(agent.disk.seen)
            });
        }
        for (instance, pledged) in instances.iter().zip(&mut log.pledged) {
            // No disk goes back any more, so nobody forgets what it knows.
            if used.disks == bounds.disks && instance.disk.seen >= *pledged {
                *pledged = 0;
            }
        }
        for instance in instances {
            instance.forget(bounds.set(), rules);
        }
        for write in writes {
            write.forget(log.epoch);
        }
    }
}

impl Instance {
    fn forget(&mut self, any: SyncSet, rules: Rules) {
        if !rules.keep(Rule::RestartNeedsNewRenewal) || !rules.keep(Rule::DirectivesInOrder) {
            return;
        }
        if self.run != Run::Primary {
            self.names = any;
            self.reloading = None;
        }
        if self.disk.config != Config::Detached {
            self.disk.pledge = 0;
        }
        match self.disk.config {
            // The directive that lets it lead again brings its own names.
            Config::Closed => self.disk.names = any,
            // And its own epoch.
            Config::Follow(_) | Config::Detached => {
                self.disk.names = any;
                self.disk.promoted = 0;
            }
            Config::Lead(_) => return,
        }
        self.renewed = false;
    }
}

impl Write {
    /// Who flushed a write matters while it may still be acknowledged, or cover something.
    fn forget(&mut self, epoch: u8) {
        if self.aborted || self.acked && self.epoch < epoch {
            self.flushed = Members(0);
            self.under = None;
        }
        if self.aborted {
            self.late = false;
        }
    }
}
