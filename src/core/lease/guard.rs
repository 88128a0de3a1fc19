//! S4: what a resource does with epochs. The other end of a lease: whoever writes says under which
//! epoch, and the resource refuses what is below the highest it has seen. Then a holder that was
//! frozen between its check and its act does no harm, whatever its clock says.

use crate::id::Epoch;

/// Refused: somebody has acted under a higher epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("epoch {given} is over: {highest} has acted here; ask who holds the lease now")]
pub struct EpochOver {
    /// What the request carried.
    pub given: Epoch,
    /// The highest that was admitted.
    pub highest: Epoch,
}

/// The highest epoch that a resource has admitted.
///
/// A resource whose effects outlive its process keeps [`EpochGuard::highest`] with them, in the same
/// transaction, and begins with [`EpochGuard::since`]: one that forgets it at a restart guards
/// nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EpochGuard {
    highest: Epoch,
}

impl EpochGuard {
    /// A resource on which nobody has acted yet.
    pub const fn new() -> Self {
        Self { highest: Epoch::NONE }
    }

    /// A resource on which this epoch was the highest to act.
    pub const fn since(highest: Epoch) -> Self {
        Self { highest }
    }

    /// Admits a request under `epoch`, and everything below it never again. The same epoch may act
    /// any number of times.
    ///
    /// # Errors
    /// [`EpochOver`] when a higher epoch was admitted before: nothing may be done for this request.
    pub fn admit(&mut self, epoch: Epoch) -> Result<(), EpochOver> {
        if epoch < self.highest {
            return Err(EpochOver { given: epoch, highest: self.highest });
        }
        self.highest = epoch;
        Ok(())
    }

    /// The highest epoch that was admitted.
    pub const fn highest(&self) -> Epoch {
        self.highest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::Revision;

    fn epoch(incarnation: u64, revision: u64) -> Epoch {
        Epoch { incarnation, revision: Revision(revision) }
    }

    #[test]
    fn what_comes_late_is_refused_and_told_by_whom() {
        let mut guard = EpochGuard::new();
        assert_eq!(guard.admit(epoch(1, 7)), Ok(()));
        assert_eq!(guard.admit(epoch(1, 7)), Ok(()));
        assert_eq!(guard.admit(epoch(2, 3)), Ok(()));
        let over = guard.admit(epoch(1, 9)).expect_err("2.3 has acted");
        assert_eq!(over, EpochOver { given: epoch(1, 9), highest: epoch(2, 3) });
        assert!(over.to_string().starts_with("epoch 1.9 is over: 2.3 has acted here"));
        // A restart that kept it changes nothing; one that forgot lets everybody in.
        assert!(EpochGuard::since(guard.highest()).admit(epoch(1, 9)).is_err());
        assert!(EpochGuard::new().admit(epoch(1, 9)).is_ok());
    }

    proptest! {
        /// Whatever comes in whatever order, what has an effect never goes back (S4), and nothing
        /// is refused that is as new as anything before it.
        #[test]
        fn effects_never_go_back(requests in prop::collection::vec((0_u64..3, 0_u64..5), 0..40)) {
            let mut guard = EpochGuard::new();
            let mut highest = Epoch::NONE;
            for (incarnation, revision) in requests {
                let epoch = epoch(incarnation, revision);
                prop_assert_eq!(guard.admit(epoch).is_ok(), epoch >= highest);
                highest = highest.max(epoch);
            }
        }
    }
}
