//! The rules of the deadline (PROTOCOL.md C1, E5; F2), pure: readings come in, decisions go out.
//!
//! Inside an epoch a deadline only rises, so that a delayed or repeated message can never shorten or
//! revive it. A higher epoch brings a deadline of its own, also a lower one: what an older epoch
//! was worth says nothing about the newer. Once fired, only a start does away with the latch,
//! and a lease is taken again only with a number above the one that fired.

use regent_core::id::{Epoch, RenewalNumber, Revision};
use regent_core::time::Reading;

use crate::receipt::{Reason, Receipt};
use crate::wire::{Arm, Bound, LeaseView, Refusal};

/// Epoch, number, deadline and latch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    view: LeaseView,
    /// Epoch and number that fired last: below or at them nothing is ever armed again.
    burnt: Option<(Epoch, RenewalNumber)>,
}

impl Lease {
    /// After a restart of the fencer itself: what the last receipt says stays known. One that
    /// fired stays fired; so does one whose namespace the agent killed because it did not answer.
    pub fn after(receipt: Option<&Receipt>) -> Self {
        let Some(receipt) = receipt else { return Self::default() };
        let fired = matches!(receipt.reason, Reason::Deadline | Reason::NamespaceKilled);
        let mut lease = Self::default();
        lease.view.epoch = receipt.epoch;
        lease.view.number = receipt.number;
        lease.view.fired = fired;
        lease.burnt = fired.then_some((receipt.epoch, receipt.number));
        lease
    }

    /// What an agent is told.
    pub fn view(&self) -> LeaseView {
        self.view
    }

    fn check_order(&self, arm: &Arm) -> Result<(), Refusal> {
        let asked = (arm.epoch, arm.number);
        let known = (self.view.epoch, self.view.number);
        let burnt = self.burnt.is_some_and(|burnt| asked <= burnt);
        if asked < known || burnt {
            return Err(Refusal::Stale { epoch: known.0, number: known.1 });
        }
        Ok(())
    }

    fn take(&mut self, arm: &Arm) {
        let until = match self.view.until {
            // A pair of clocks is taken whole or not at all: mixing two would name an instant that
            // nobody ever computed.
            Some(have) if self.view.epoch == arm.epoch => {
                let rises = arm.until.boottime_us >= have.boottime_us;
                if rises && arm.until.raw_us >= have.raw_us { arm.until } else { have }
            }
            _ => arm.until,
        };
        self.view.epoch = arm.epoch;
        self.view.number = arm.number;
        self.view.until = Some(until);
    }

    /// A later deadline. A lower one of the same epoch is no error and changes nothing; one that is
    /// already past is taken, and is then due.
    ///
    /// # Errors
    /// [`Refusal::Fired`] under the latch, [`Refusal::Stale`] for an older lease.
    pub fn arm(&mut self, arm: &Arm) -> Result<(), Refusal> {
        self.check_latch()?;
        self.check_order(arm)?;
        self.take(arm);
        Ok(())
    }

    /// No deadline until the next arm.
    ///
    /// # Errors
    /// [`Refusal::Fired`] under the latch, [`Refusal::PauseStale`] for an older pause.
    pub fn disarm(&mut self, pause: Revision) -> Result<(), Refusal> {
        self.check_latch()?;
        if pause < self.view.pause {
            return Err(Refusal::PauseStale { have: self.view.pause });
        }
        self.view.pause = pause;
        self.view.until = None;
        Ok(())
    }

    fn check_latch(&self) -> Result<(), Refusal> {
        if self.view.fired {
            let (epoch, number) = (self.view.epoch, self.view.number);
            return Err(Refusal::Fired { epoch, number });
        }
        Ok(())
    }

    /// What a start with `bound` makes of this lease. The caller has checked that the start names
    /// the last receipt. Nothing has changed until the caller keeps the result.
    ///
    /// # Errors
    /// [`Refusal::Stale`] for an older lease, or one not above what fired;
    /// [`Refusal::DeadlinePast`] if it would fire at once.
    pub fn started(&self, bound: &Bound, now: Reading) -> Result<Self, Refusal> {
        let mut next = *self;
        next.view.fired = false;
        match bound {
            Bound::Unbound => next.view.until = None,
            Bound::Until(arm) => {
                self.check_order(arm)?;
                next.take(arm);
                if next.due(now) {
                    return Err(Refusal::DeadlinePast);
                }
            }
        }
        Ok(next)
    }

    /// Whether the deadline is reached, on whichever clock.
    pub fn due(&self, now: Reading) -> bool {
        self.view.until.is_some_and(|u| now.boottime_us >= u.boottime_us || now.raw_us >= u.raw_us)
    }

    /// Microseconds until it is due; `None` without a deadline.
    pub fn left_us(&self, now: Reading) -> Option<u64> {
        let until = self.view.until?;
        let boot = until.boottime_us.saturating_sub(now.boottime_us);
        Some(boot.min(until.raw_us.saturating_sub(now.raw_us)))
    }

    /// It was reached: the latch closes.
    pub fn fire(&mut self) {
        self.view.until = None;
        self.view.fired = true;
        self.burnt = Some((self.view.epoch, self.view.number));
    }

    /// Nothing runs any more: there is nothing left to bound.
    pub fn ended(&mut self) {
        self.view.until = None;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn epoch(revision: u64) -> Epoch {
        Epoch { incarnation: 1, revision: Revision(revision) }
    }

    fn arm(e: u64, number: u64, us: u64) -> Arm {
        Arm { epoch: epoch(e), number: RenewalNumber(number), until: Reading::at_us(us) }
    }

    fn armed(e: u64, number: u64, us: u64) -> Lease {
        let mut lease = Lease::default();
        lease.arm(&arm(e, number, us)).unwrap();
        lease
    }

    #[test]
    fn a_deadline_only_rises_inside_an_epoch() {
        let mut lease = armed(5, 1, 100);
        lease.arm(&arm(5, 2, 90)).unwrap();
        assert_eq!(lease.view().until, Some(Reading::at_us(100)));
        assert_eq!(lease.view().number, RenewalNumber(2));
        lease.arm(&arm(5, 2, 110)).unwrap();
        assert_eq!(lease.view().until, Some(Reading::at_us(110)));
        assert!(matches!(lease.arm(&arm(5, 1, 900)), Err(Refusal::Stale { .. })));
        assert!(matches!(lease.arm(&arm(4, 9, 900)), Err(Refusal::Stale { .. })));
        assert_eq!(lease.view().until, Some(Reading::at_us(110)));
    }

    #[test]
    fn a_pair_that_rises_on_one_clock_only_is_not_taken() {
        let mut lease = armed(5, 1, 100);
        let until = Reading { boottime_us: 200, raw_us: 50 };
        lease.arm(&Arm { until, ..arm(5, 2, 0) }).unwrap();
        assert_eq!(lease.view().until, Some(Reading::at_us(100)));
    }

    #[test]
    fn a_higher_epoch_brings_its_own_deadline() {
        let mut lease = armed(5, 7, 100);
        lease.arm(&arm(6, 1, 60)).unwrap();
        assert_eq!(lease.view().until, Some(Reading::at_us(60)));
    }

    #[test]
    fn it_is_due_on_whichever_clock_comes_first() {
        let lease = armed(5, 1, 100);
        assert!(!lease.due(Reading::at_us(99)));
        assert!(lease.due(Reading { boottime_us: 100, raw_us: 1 }));
        assert!(lease.due(Reading { boottime_us: 1, raw_us: 100 }));
        assert_eq!(lease.left_us(Reading { boottime_us: 40, raw_us: 70 }), Some(30));
    }

    #[test]
    fn what_fired_is_never_revived() {
        let mut lease = armed(5, 3, 100);
        lease.fire();
        assert!(matches!(lease.arm(&arm(6, 1, 900)), Err(Refusal::Fired { .. })));
        assert!(matches!(lease.disarm(Revision(1)), Err(Refusal::Fired { .. })));
        let now = Reading::at_us(150);
        let same = Bound::Until(arm(5, 3, 900));
        assert!(matches!(lease.started(&same, now), Err(Refusal::Stale { .. })));
        let past = Bound::Until(arm(5, 4, 120));
        assert_eq!(lease.started(&past, now), Err(Refusal::DeadlinePast));
        let next = lease.started(&Bound::Until(arm(5, 4, 900)), now).unwrap();
        assert!(!next.view().fired);
        assert_eq!(next.view().until, Some(Reading::at_us(900)));
    }

    #[test]
    fn an_unbound_start_does_not_revive_what_fired_either() {
        let mut lease = armed(5, 3, 100);
        lease.fire();
        let mut standby = lease.started(&Bound::Unbound, Reading::at_us(150)).unwrap();
        assert!(matches!(standby.arm(&arm(5, 3, 900)), Err(Refusal::Stale { .. })));
        standby.arm(&arm(6, 0, 900)).unwrap();
    }

    #[test]
    fn a_pause_takes_the_deadline_away_and_the_next_arm_brings_one() {
        let mut lease = armed(5, 3, 100);
        lease.disarm(Revision(9)).unwrap();
        assert!(!lease.due(Reading::at_us(u64::MAX)));
        assert!(matches!(lease.disarm(Revision(8)), Err(Refusal::PauseStale { .. })));
        lease.arm(&arm(5, 4, 90)).unwrap();
        assert_eq!(lease.view().until, Some(Reading::at_us(90)));
    }
}
