//! Until when an instance may serve writes: by its lease (C1), or in quorum mode by a certificate
//! (F), the return of an own synchronous commit; and for how long it may be named the primary (S8).
//!
//! It must never let a certificate be renewed after the knowledge of a fence or a refusal: the notebook's
//! latch says so, and what was certified before ends in its time.

use crate::id::Revision;
use crate::lease::Rules;
use crate::mutant::{Mutant, leaves_out};
use crate::spec::{CoordinatorLoss, Mode, Policy};
use crate::time::{Micros, Reading};

/// How long before the end of its right an instance begins to shut its clients out: its fencer ends
/// everything at that end.
pub const CLOSE_LEAD: Micros = Micros::from_ms(400);

/// The rights of an instance that leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Right {
    /// Until when the confirmed lease lasts, as the holder's clock says.
    pub lease: Option<Reading>,
    /// The newest certificate: when its first byte was sent, and the set it returned under.
    pub certificate: Option<(Reading, Revision)>,
}

/// Whether a primary that is shut to clients may run without a deadline (F): only where a session
/// that slipped through while it was shut is never answered, because its commits wait for standbys.
/// In lease mode, or after a set that waits for nobody, such a session would be acknowledged after
/// the next epoch began (S1): there the fencer's deadline stands.
pub fn may_stay_shut(policy: &Policy, may_hold: bool) -> bool {
    let waits = policy.mode == Mode::Quorum && may_hold;
    policy.on_coordinator_loss == CoordinatorLoss::Hold && waits
        || leaves_out(Mutant::ShutKeepsDeadline)
}

/// For how long an agent may name its instance the primary, asked again whenever somebody asks it (S8):
/// what was true when its loop last turned may be over while that waits for a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// It serves nothing.
    #[default]
    Never,
    /// Until its right ends.
    Until(Reading),
    /// A pause of its service lets it serve without a right.
    Paused,
}

impl Naming {
    /// What one that leads may do at `now`, whose right lasts until `until`; `is_free`: its fencer goes by
    /// a pause (E5). Too late to shut clients out in time is too late to serve.
    pub fn decide(until: Option<Reading>, is_free: bool, now: Reading) -> Self {
        match until {
            Some(until) if now.plus(CLOSE_LEAD).is_before(until) => Self::Until(until),
            _ if is_free => Self::Paused,
            _ => Self::Never,
        }
    }

    /// Whether writes may be served as of the turn that decided this.
    pub fn may_serve(self) -> bool {
        self != Self::Never
    }

    /// Whether it may be named now.
    pub fn holds(self, now: Reading) -> bool {
        match self {
            Self::Never => false,
            Self::Until(until) => now.is_before(until) || leaves_out(Mutant::NamingEnds),
            Self::Paused => true,
        }
    }
}

impl Right {
    /// A synchronous commit, begun at `sent`, returned under the set. Older ones change nothing, and
    /// none does once the agent knows of a fence or a refusal (F).
    pub fn certified(&mut self, sent: Reading, set: Revision, latched: bool) {
        if latched {
            return;
        }
        let rises = self
            .certificate
            .is_none_or(|(at, _)| sent.boottime_us >= at.boottime_us && sent.raw_us >= at.raw_us);
        if rises {
            self.certificate = Some((sent, set));
        }
    }

    /// Until when writes may be served; `None`: not at all. `unprotected`: commits may wait for
    /// nobody, so that a certificate proves nothing.
    pub fn until(
        &self,
        policy: &Policy,
        set: Option<Revision>,
        unprotected: bool,
        fence_budget_ms: u64,
        now: Reading,
    ) -> Option<Reading> {
        let holds = policy.mode == Mode::Quorum
            && policy.on_coordinator_loss == CoordinatorLoss::Hold
            && !unprotected;
        let certificate =
            self.certificate.filter(|(_, of)| holds && Some(*of) == set).map(|(sent, _)| {
                let lasts = Rules::LAW.short(policy.ttl_ms);
                sent.plus(lasts.saturating_sub(Micros::from_ms(fence_budget_ms)))
            });
        let alive = |until: Reading| now.is_before(until).then_some(until);
        match (self.lease.and_then(alive), certificate.and_then(alive)) {
            (Some(lease), Some(certificate)) => Some(lease.later(certificate)),
            (lease, certificate) => lease.or(certificate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_decided_in_time_to_shut_clients_out_is_named_until_the_right_ends_and_no_longer() {
        let until = Reading::at_us(1_000_000);
        let decide = |at, is_free| Naming::decide(Some(until), is_free, Reading::at_us(at));
        assert_eq!(decide(599_999, false), Naming::Until(until));
        assert_eq!(decide(600_000, false), Naming::Never, "too late to shut clients out in time");
        assert_eq!(decide(600_000, true), Naming::Paused);
        assert_eq!(Naming::decide(None, false, Reading::at_us(1)), Naming::Never);
        let named = decide(0, false);
        assert!(named.holds(Reading::at_us(999_999)));
        // One clock that has reached the end is enough.
        for (boottime_us, raw_us) in [(1_000_000, 5), (5, 1_000_000)] {
            assert!(!named.holds(Reading { boottime_us, raw_us }));
        }
        assert!(Naming::Paused.holds(until) && !Naming::Never.holds(Reading::at_us(0)));
    }
}
