//! Deliberate faults of the store, for tests only: each must be caught by the enumeration of crash
//! states, or the enumeration proves nothing. Outside tests every question is answered "no" at
//! compile time.

/// A deliberate fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// Records are acknowledged before they are synced.
    AckBeforeSync,
    /// Groups that hold nothing but votes are not synced.
    VoteNotSynced,
    /// A torn group at the end is read as if it were whole.
    TornTailAccepted,
    /// Wrong checksums of bodies are overlooked.
    CrcIgnored,
    /// The directory is not synced after a segment was added.
    DirNotSynced,
    /// What was read back is not synced before it is used.
    RecoveredNotSynced,
    /// The mark behind what was read back is written before that is synced.
    MarkedBeforeSynced,
}

#[cfg(test)]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Sabotage>> = const { std::cell::Cell::new(None) };
}

/// Whether this fault is switched on.
#[cfg(test)]
pub(super) fn is(fault: Sabotage) -> bool {
    ACTIVE.with(|active| active.get() == Some(fault))
}

/// Whether this fault is switched on: never.
#[cfg(not(test))]
#[inline(always)]
pub(super) fn is(_fault: Sabotage) -> bool {
    false
}

/// Runs `work` with a fault switched on, on this thread.
#[cfg(test)]
pub(super) fn with<T>(fault: Option<Sabotage>, work: impl FnOnce() -> T) -> T {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            ACTIVE.with(|active| active.set(None));
        }
    }
    ACTIVE.with(|active| active.set(fault));
    let _restore = Restore;
    work()
}
