//! What an agent keeps on its own disk, fsynced before it acts on it (PROTOCOL.md B, D).

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, Nonce, Revision};
use crate::mutant::{Mutant, leaves_out};
use crate::role::{Directive, DirectiveNumber, Position, Proof};

/// The agent's memory over restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notebook {
    /// Starts of the agent on this disk, heard of or not: orders them before the fencer.
    pub starts: u64,
    /// Counter of the last start that the log accepted.
    pub boot: u64,
    /// The disk it lies on: made once, with the notebook.
    pub disk: u64,
    /// The start whose acceptance was asked for last; written before it is asked.
    pub attempt: Nonce,
    /// The attempt that `boot` was the answer to.
    #[serde(default)]
    pub confirmed: Nonce,
    /// The directive in force here: the highest ever taken.
    pub directive: Option<Directive>,
    /// What was promised under it.
    pub pledge: Option<Pledge>,
    /// The highest epoch this instance has been primary under, or was about to be.
    pub led: Epoch,
    /// It knows of a fence or a refusal since then: no certificate re-arms it (F).
    pub latched: bool,
    /// Commits may wait for nobody, or may have under a set that the present one does not cover yet
    /// (D, degraded): a certificate proves nothing then, and a lapse does (OUT (b)).
    #[serde(default)]
    pub unprotected: bool,
}

/// A promise, kept over restarts until a higher directive ends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pledge {
    /// To which fence.
    pub fence: Revision,
    /// What is proved.
    pub proof: Proof,
    /// With which flushed end.
    pub position: Option<Position>,
    /// Whether the end of every process was seen.
    pub is_proven: bool,
}

/// What becomes of a directive that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is new: to be persisted before anything else is done.
    New,
    /// It is the one in force, again.
    Same,
    /// It is below the highest ever taken (S4).
    Stale {
        /// What is in force.
        have: DirectiveNumber,
    },
}

impl Notebook {
    /// A start of the agent: the nonce to present, which is `fresh` unless the attempt before was
    /// never answered. The log may have accepted that one, and one behind under another nonce would
    /// be an old disk (docs/adr/0010). To be written before it is presented.
    pub fn begin(&mut self, fresh: Nonce) -> Nonce {
        self.starts += 1;
        if self.attempt == self.confirmed || self.attempt == Nonce::default() {
            self.attempt = fresh;
        }
        self.attempt
    }

    /// The log has accepted the start of this nonce.
    pub fn accepted(&mut self, nonce: Nonce, boot: u64) {
        (self.boot, self.confirmed) = (boot, nonce);
    }

    /// The number of the directive in force.
    pub fn seen(&self) -> DirectiveNumber {
        self.directive.as_ref().map(Directive::number).unwrap_or_default()
    }

    /// The highest epoch that the WAL of this instance may carry, whatever this start of the agent
    /// has seen of it: none is written that was not granted, and what was granted comes with a
    /// directive before anything of it can be streamed here.
    pub fn may_carry(&self) -> Epoch {
        self.led.max(self.seen().epoch)
    }

    /// Whether a lease that was given at `mark` is of the directive to lead that is in force (C8). One of
    /// an earlier grant gives no right under this one, however long its session is still believed in.
    pub fn is_of_grant(&self, mark: Revision) -> bool {
        let leads = |it: &&Directive| matches!(it.order, crate::role::Order::Lead { .. });
        let lead = self.directive.as_ref().filter(leads);
        lead.is_some_and(|it| mark >= it.epoch.revision || leaves_out(Mutant::LeaseOfGrant))
    }

    /// Judges a directive; a new one is in force from here on, and the notebook has to be written
    /// before anything is done about it. A higher directive frees a pledge to another fence.
    pub fn take(&mut self, directive: &Directive) -> Taken {
        let (have, got) = (self.seen(), directive.number());
        if got < have {
            return Taken::Stale { have };
        }
        if self.directive.as_ref() == Some(directive) {
            return Taken::Same;
        }
        let fence = directive.order.fence();
        if self.pledge.as_ref().is_some_and(|pledge| Some(pledge.fence) != fence) {
            self.pledge = None;
        }
        // A fence of the holder ends what certificates may do, until the next grant to it.
        match &directive.order {
            crate::role::Order::Lead { set } => {
                self.latched = false;
                // The sets of a new epoch begin with this one.
                let anew = directive.epoch > have.epoch;
                self.unprotected = set.is_degraded() || self.unprotected && !anew;
            }
            _ => self.latched = true,
        }
        self.directive = Some(directive.clone());
        Taken::New
    }

    /// The log knows that `set` is covered: what was acknowledged under those before it does not
    /// matter any more.
    pub fn covered(&mut self, set: Revision) {
        if let Some(crate::role::Order::Lead { set: present }) =
            self.directive.as_ref().map(|directive| &directive.order)
            && present.revision == set
            && !present.is_degraded()
        {
            self.unprotected = false;
        }
    }

    /// A renewal was refused, or something else said that another may be primary: certificates are
    /// renewed no more (F). To be on disk before anything else is done.
    pub fn refused(&mut self) {
        self.latched = true;
    }

    /// A renewal that names the present grant is in the log: no fence was open there, so what was
    /// refused before is over. The latch of a fence stays until a directive to lead.
    pub fn renewed(&mut self) {
        let leads = self
            .directive
            .as_ref()
            .is_some_and(|it| matches!(it.order, crate::role::Order::Lead { .. }));
        self.latched &= !leads;
    }

    /// Whether certificates may hold the right up (F).
    pub fn may_hold(&self) -> bool {
        !self.latched && !self.unprotected
    }

    /// Promises `proof`, or raises the promise; whether that changed anything.
    pub fn pledge(&mut self, pledge: Pledge) -> bool {
        let rises = self.pledge.as_ref().is_none_or(|old| {
            old.fence != pledge.fence || (pledge.proof, pledge.position) > (old.proof, old.position)
        });
        if rises {
            self.pledge = Some(pledge);
        }
        rises
    }
}
