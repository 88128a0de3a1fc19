//! One life of what the fencer runs: from its start, through stop, deadline or exit, to the receipt.
//! What may happen next is decided here, by time and by processes that ended.
//!
//! ```text
//!  (nothing) -start-> Running -stop-> Stopping -its time is over, or exit-> Killing -nobody left->
//!      ^                 '------------- deadline, or exit -------------------^   |
//!      '-- told <- receipt on disk <- Ended <------------------------------------'
//! ```

use nix::unistd::Pid;
use regent_core::time::Reading;

use super::{Init, InitError};
use crate::receipt::{self, ExitStatus, Proof, Reason, Receipt};
use crate::wire::{Event, Message, Protection};

/// Whoever is still there this long after the first kill cannot be killed from here (another user's
/// set-uid program): the init ends itself, and the kernel ends the namespace.
const GIVE_UP_US: u64 = 2_000_000;
/// Pause before a receipt that could not be written is tried again.
const WRITE_AGAIN_US: u64 = 500_000;

/// Everything that runs, from its start to the receipt.
pub(super) struct Life {
    /// The program; `None` when a deadline fired over nothing.
    pub(super) program: Option<Program>,
    pub(super) stage: LifeStage,
    pub(super) exit: Option<ExitStatus>,
}

#[derive(Clone, Copy)]
pub(super) struct Program {
    pub(super) pid: Pid,
    pub(super) since: Reading,
}

pub(super) enum LifeStage {
    Running,
    /// Asked to stop; everything is killed at `kill_at_us` of CLOCK_BOOTTIME.
    Stopping {
        reason: Reason,
        kill_at_us: u64,
    },
    Killing {
        reason: Reason,
        since: Reading,
    },
    /// Nobody is left; the receipt is to be written, again after `again_at_us`.
    Ended {
        receipt: Box<Receipt>,
        again_at_us: u64,
        error: Option<String>,
    },
}

impl Init<'_> {
    /// F1: the deadline, checked before anything else is done.
    pub(super) fn check_deadline(&mut self, now: Reading) {
        // A receipt that is about to be written says how this life ended; the deadline comes after.
        let ended = matches!(&self.life, Some(Life { stage: LifeStage::Ended { .. }, .. }));
        if ended || !self.lease.due(now) {
            return;
        }
        self.lease.fire();
        // The first blow before anything else, telling included.
        if self.life.is_some() {
            self.processes.kill_all();
        }
        let life =
            self.life.get_or_insert(Life { program: None, stage: LifeStage::Running, exit: None });
        let since = if let LifeStage::Killing { since, .. } = life.stage { since } else { now };
        life.stage = LifeStage::Killing { reason: Reason::Deadline, since };
        let view = self.lease.view();
        self.tell(&Event::Fired { epoch: view.epoch, number: view.number, at: now });
    }

    /// Everything that follows from time and from processes that ended.
    pub(super) fn advance(&mut self, now: Reading) -> Result<(), InitError> {
        self.check_deadline(now);
        self.reap(now);
        let Some(life) = &mut self.life else { return Ok(()) };
        match &mut life.stage {
            LifeStage::Running => {}
            LifeStage::Stopping { reason, kill_at_us } => {
                if now.boottime_us >= *kill_at_us {
                    life.stage = LifeStage::Killing { reason: *reason, since: now };
                }
            }
            LifeStage::Killing { reason, since } => {
                let (reason, since) = (*reason, *since);
                // F6: nobody there to kill, and then no child there to wait for.
                if self.processes.kill_all() && self.reap(now) {
                    let proof = match self.processes.protection() {
                        Protection::Namespace => Proof::Namespace,
                        Protection::Weak { .. } => Proof::Weak,
                    };
                    self.nobody_left(reason, since, proof, now);
                } else if now.since(since).0 > GIVE_UP_US {
                    return self.give_up(reason, since, now);
                }
            }
            LifeStage::Ended { again_at_us, .. } => {
                if now.boottime_us >= *again_at_us {
                    self.write_receipt(now);
                }
            }
        }
        Ok(())
    }

    /// Reaps; `true` if no child is left.
    fn reap(&mut self, now: Reading) -> bool {
        let reaped = self.processes.reap();
        for (pid, exit) in &reaped.exits {
            self.saw_exit(*pid, *exit, now);
        }
        reaped.none_left
    }

    fn saw_exit(&mut self, pid: Pid, exit: ExitStatus, now: Reading) {
        let Some(life) = &mut self.life else { return };
        if life.program.map(|p| p.pid) != Some(pid) || life.exit.is_some() {
            return;
        }
        life.exit = Some(exit);
        let reason = match &life.stage {
            LifeStage::Running => Some(Reason::PostmasterExit),
            LifeStage::Stopping { reason, .. } => Some(*reason),
            LifeStage::Killing { .. } | LifeStage::Ended { .. } => None,
        };
        if let Some(reason) = reason {
            life.stage = LifeStage::Killing { reason, since: now };
        }
        self.tell(&Event::Exited { pid: pid.as_raw(), exit, at: now });
    }

    fn make_receipt(&self, reason: Reason, since: Reading, proof: Proof, now: Reading) -> Receipt {
        let view = self.lease.view();
        let life = self.life.as_ref();
        Receipt {
            sequence: self.receipt.as_ref().map_or(0, |last| last.sequence) + 1,
            boot_id: self.boot_id.clone(),
            fencer: self.nonce,
            epoch: view.epoch,
            number: view.number,
            reason,
            exit: life.and_then(|life| life.exit),
            protection: self.processes.protection().clone(),
            proof,
            started_at: life.and_then(|life| life.program).map(|program| program.since),
            killed_at: since,
            ended_at: now,
        }
    }

    fn nobody_left(&mut self, reason: Reason, since: Reading, proof: Proof, now: Reading) {
        let receipt = Box::new(self.make_receipt(reason, since, proof, now));
        self.lease.ended();
        if let Some(life) = &mut self.life {
            life.stage = LifeStage::Ended { receipt, again_at_us: 0, error: None };
        }
    }

    /// F3: first the disk, then the word. A disk that is full is tried for ever; until it takes
    /// the receipt nothing is told and nothing starts.
    fn write_receipt(&mut self, now: Reading) {
        let Some(Life { stage: LifeStage::Ended { receipt, again_at_us, error }, .. }) =
            &mut self.life
        else {
            return;
        };
        if let Err(failed) = receipt::write(&self.options.state_dir, receipt) {
            *error = Some(failed.to_string());
            *again_at_us = now.boottime_us.saturating_add(WRITE_AGAIN_US);
            return;
        }
        let receipt = *receipt.clone();
        self.receipt = Some(receipt.clone());
        self.life = None;
        self.tell(&Event::Stopped { receipt });
    }

    /// Somebody cannot be killed from here. In a namespace the kernel can, by the end of this
    /// process; without one nothing better is known than to go on trying.
    fn give_up(&mut self, reason: Reason, since: Reading, now: Reading) -> Result<(), InitError> {
        if *self.processes.protection() != Protection::Namespace {
            return Ok(());
        }
        let receipt = self.make_receipt(reason, since, Proof::EndOfInit, now);
        let _ = receipt::write(&self.options.state_dir, &receipt);
        Err(InitError::Unkillable)
    }

    fn tell(&mut self, event: &Event) {
        let message = Message::Event(event.clone());
        for peer in self.peers.all.iter_mut().filter(|peer| peer.watch) {
            peer.send(&message);
        }
    }
}
