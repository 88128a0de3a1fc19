//! What an agent must know of its session's holder clock (C1, C5, C8, C9), beyond elections: it
//! holds a service's role under a *mark*, the revision that bound its session to the epoch.
//!
//! All that decides is read from the holder clock at the instant of the question; no task has to be
//! alive for an answer to be right.

use std::sync::atomic::Ordering;

use regent_core::id::{Epoch, Nonce, RenewalNumber, Revision, SessionId};
use regent_core::lease::holder::{Standing, VoidReason};
use regent_core::role::HolderReport;
use regent_core::time::Reading;
use tokio::sync::watch;

use super::lease::Session;

/// A handle on what one session holds. Keeps the session open.
#[derive(Clone, Debug)]
pub struct SessionLease {
    session: Session,
}

/// Until when a session may act, and which acknowledged renewal says so: what goes to the fencer
/// (C1). Both clocks are absolute, of this boot of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// Acting must have ended by then; the fence budget is subtracted already.
    pub until: Reading,
    /// The renewal whose acknowledgement it counts from.
    pub number: RenewalNumber,
}

impl Session {
    /// What a holder of something other than an election needs.
    pub fn hold(&self) -> SessionLease {
        SessionLease { session: self.clone() }
    }
}

impl SessionLease {
    /// The session's id.
    pub fn id(&self) -> SessionId {
        self.session.id()
    }

    /// The nonce it was opened with, and is renewed under.
    pub fn nonce(&self) -> Nonce {
        self.session.kept().clock().session().nonce
    }

    /// The incarnation it belongs to.
    pub fn incarnation(&self) -> u64 {
        self.session.kept().clock().session().incarnation
    }

    /// Names this grant in renewals from now on, and renews soon: the right begins with the
    /// acknowledgement of a renewal that named it (C8).
    pub fn granted(&self, mark: Revision) {
        let kept = self.session.kept();
        {
            let mut clock = kept.clock();
            let incarnation = clock.session().incarnation;
            clock.granted(Epoch { incarnation, revision: mark });
        }
        self.session.hurry();
    }

    /// What may be said of `mark` now. The clocks are read here.
    pub fn standing(&self, mark: Revision) -> Standing {
        let mut clock = self.session.kept().clock();
        let epoch = Epoch { incarnation: clock.session().incarnation, revision: mark };
        // Read while the lock is held: nobody's later reading can have been judged before.
        clock.standing(self.session.now(), epoch)
    }

    /// Whether acting under `mark` is allowed now.
    pub fn is_held(&self, mark: Revision) -> bool {
        self.standing(mark) == Standing::Held
    }

    /// This mark is not held from here on, whatever is renewed. To be called before a resignation
    /// is sent.
    pub fn give_up(&self, mark: Revision) {
        let kept = self.session.kept();
        {
            let mut clock = kept.clock();
            let incarnation = clock.session().incarnation;
            clock.give_up(Epoch { incarnation, revision: mark });
        }
        kept.happen();
    }

    /// Until when the session may act if nothing more is heard; `None`: not at all. Whether a mark
    /// is confirmed is [`SessionLease::standing`]'s to say.
    pub fn deadline(&self) -> Option<Deadline> {
        let kept = self.session.kept();
        let clock = kept.clock();
        let until = clock.valid_until()?;
        // Written with the clock locked: it is of the same acknowledgement.
        let number = RenewalNumber(kept.extended.load(Ordering::Acquire));
        Some(Deadline { until, number })
    }

    /// Renewals say this from now on, beside their number (C4); when each is sent is filled in.
    pub fn carry(&self, report: Option<HolderReport>) {
        self.session.kept().reports().carry(report);
    }

    /// What the newest renewal said that is known to be in the log: nothing older comes after it.
    pub fn last_committed(&self) -> Option<HolderReport> {
        self.session.kept().reports().last_committed()
    }

    /// The highest grant that an acknowledgement has named; 0: none.
    pub fn grant(&self) -> Revision {
        self.session.kept().grant()
    }

    /// Why the session is over, if it is.
    pub fn over(&self) -> Option<VoidReason> {
        self.session.over()
    }

    /// Changes whenever something happened: an extension, a grant, a confirmation, an end. A hint to
    /// look again; a deadline that passes announces nothing.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.session.kept().subscribe()
    }
}
