//! The safer of two policies (PROTOCOL.md C7): what binds while nobody knows by which of them a holder
//! acts.

use super::{CoordinatorLoss, LossBound, LoweredSync, Mode, OnViolation, Policy, TooFewSync};

impl Policy {
    /// The one that refuses whatever either of the two refuses, and waits as long as either waits.
    /// What no holder acts by and no proof rests on (where and when a failover goes, what is to be
    /// survived, who is waited for) is `self`'s: people widen a scope when the holder can name nothing
    /// any more.
    ///
    /// Quorum mode is the safer one: it takes no lapse for a proof and no loss for small enough, and
    /// asks for receipts that lease mode would take as well.
    #[must_use]
    pub fn safer(&self, other: &Self) -> Self {
        let either = |is: fn(&Self) -> bool| is(self) || is(other);
        Self {
            mode: match either(|policy| policy.mode == Mode::Quorum) {
                true => Mode::Quorum,
                false => Mode::Lease,
            },
            ttl_ms: self.ttl_ms.max(other.ttl_ms),
            sync_standbys: self.sync_standbys.max(other.sync_standbys),
            min_sync_standbys: self.min_sync_standbys.max(other.min_sync_standbys),
            on_too_few_sync: match either(|policy| policy.on_too_few_sync == TooFewSync::Block) {
                true => TooFewSync::Block,
                false => TooFewSync::Degrade,
            },
            on_lowered_sync: match either(|policy| policy.on_lowered_sync == LoweredSync::Strict) {
                true => LoweredSync::Strict,
                false => LoweredSync::Report,
            },
            on_coordinator_loss: match either(|it| it.on_coordinator_loss == CoordinatorLoss::Stop)
            {
                true => CoordinatorLoss::Stop,
                false => CoordinatorLoss::Hold,
            },
            loss_bound: self.loss_bound.safer(&other.loss_bound),
            ..*self
        }
    }
}

impl LossBound {
    fn safer(&self, other: &Self) -> Self {
        let on_violation = match (self.on_violation, other.on_violation) {
            (OnViolation::Refuse, _) | (_, OnViolation::Refuse) => OnViolation::Refuse,
            (OnViolation::Ask, _) | (_, OnViolation::Ask) => OnViolation::Ask,
            (OnViolation::Accept, OnViolation::Accept) => OnViolation::Accept,
        };
        Self {
            max_bytes: self.max_bytes.min(other.max_bytes),
            max_ms: self.max_ms.min(other.max_ms),
            on_violation,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn base() -> Policy {
        Policy::default_for(Mode::Lease)
    }

    #[test]
    fn each_rule_takes_the_safer_of_both_whichever_came_first() {
        type Change = fn(&mut Policy);
        let with = |change: Change| {
            let mut policy = base();
            change(&mut policy);
            policy
        };
        // One that is safer, one that is laxer, in one field each.
        let table: [(Change, Change); 9] = [
            (|it| it.mode = Mode::Quorum, |it| it.mode = Mode::Lease),
            (|it| it.ttl_ms = 9_000, |it| it.ttl_ms = 3_000),
            (|it| it.sync_standbys = 2, |it| it.sync_standbys = 1),
            (|it| it.min_sync_standbys = 2, |it| it.min_sync_standbys = 1),
            (
                |it| it.on_too_few_sync = TooFewSync::Block,
                |it| it.on_too_few_sync = TooFewSync::Degrade,
            ),
            (
                |it| it.on_lowered_sync = LoweredSync::Strict,
                |it| it.on_lowered_sync = LoweredSync::Report,
            ),
            (
                |it| it.on_coordinator_loss = CoordinatorLoss::Stop,
                |it| it.on_coordinator_loss = CoordinatorLoss::Hold,
            ),
            (|it| it.loss_bound.max_ms = 10, |it| it.loss_bound.max_ms = 20),
            (
                |it| it.loss_bound.on_violation = OnViolation::Refuse,
                |it| it.loss_bound.on_violation = OnViolation::Accept,
            ),
        ];
        for (at, (safe, lax)) in table.into_iter().enumerate() {
            let (safe, lax) = (with(safe), with(lax));
            assert_eq!((safe.safer(&lax), lax.safer(&safe)), (safe, safe), "line {at}");
        }
    }

    prop_compose! {
        fn policies()(
            quorum: bool, ttl_ms in 1_000u64..9_000, k in 0u32..3, least in 0u32..3,
            block: bool, stop: bool, max_ms in 0u64..9, max_bytes in 0u64..9, said in 0usize..3,
        ) -> Policy {
            let said = [OnViolation::Refuse, OnViolation::Ask, OnViolation::Accept][said];
            Policy {
                mode: if quorum { Mode::Quorum } else { Mode::Lease },
                ttl_ms,
                sync_standbys: k,
                min_sync_standbys: least,
                on_too_few_sync: if block { TooFewSync::Block } else { TooFewSync::Degrade },
                on_coordinator_loss: match stop {
                    true => CoordinatorLoss::Stop,
                    false => CoordinatorLoss::Hold,
                },
                loss_bound: LossBound { max_bytes, max_ms, on_violation: said },
                ..base()
            }
        }
    }

    proptest! {
        #[test]
        fn the_order_of_changes_decides_nothing(a in policies(), b in policies(), c in policies()) {
            prop_assert_eq!(a.safer(&b), b.safer(&a));
            prop_assert_eq!(a.safer(&b).safer(&c), a.safer(&b.safer(&c)));
            prop_assert_eq!(a.safer(&a), a);
        }

        #[test]
        fn it_allows_no_loss_and_no_wait_that_one_of_the_two_would_refuse(
            a in policies(), b in policies(),
        ) {
            let both = a.safer(&b);
            for one in [a, b] {
                prop_assert!(both.ttl_ms >= one.ttl_ms);
                prop_assert!(both.min_sync_standbys >= one.min_sync_standbys);
                prop_assert!(both.loss_bound.max_ms <= one.loss_bound.max_ms);
                prop_assert!(both.loss_bound.max_bytes <= one.loss_bound.max_bytes);
                prop_assert!(both.mode == Mode::Quorum || one.mode == Mode::Lease);
            }
        }
    }
}
