//! A policy as the log and snapshots keep it: the fields that it had at first, in that order. What came
//! later has its place in words that an older release does not know, and goes only where every member
//! reads it ([`Policy::level`]); what is old reads as it did.

use serde::{Deserialize, Serialize};

use super::{
    AwaitRouters, CoordinatorLoss, LossBound, LoweredSync, Mode, Policy, Scope, Survive, TooFewSync,
};
use crate::state::version::{DRAIN_LEVEL, FIRST_FEATURE_LEVEL, STRICT_LEVEL};

/// The mode, and with the third word a strict one: only commits that wait can wait for less. The fourth
/// is one of the first three, with how far operations wait for routers.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum StoredMode {
    Lease,
    Quorum,
    QuorumStrict,
    Awaits { mode: Word, routers: AwaitRouters },
}

/// The first three again: a word of its own, so that the fourth cannot hold itself.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Word {
    Lease,
    Quorum,
    QuorumStrict,
}

impl Policy {
    /// The feature level that every member must have before this policy may be in the log.
    pub fn level(&self) -> u32 {
        if self.await_routers != AwaitRouters::NONE {
            DRAIN_LEVEL
        } else if self.on_lowered_sync == LoweredSync::Strict {
            STRICT_LEVEL
        } else {
            FIRST_FEATURE_LEVEL
        }
    }
}

/// The fields and their order are the log's.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Stored {
    mode: StoredMode,
    ttl_ms: u64,
    sync_standbys: u32,
    min_sync_standbys: u32,
    on_too_few_sync: TooFewSync,
    on_coordinator_loss: CoordinatorLoss,
    loss_bound: LossBound,
    max_failover_scope: Scope,
    survive: Survive,
    restart_grace_ms: u64,
    failover_cooldown_ms: u64,
}

impl From<Policy> for Stored {
    fn from(policy: Policy) -> Self {
        let mode = match (policy.mode, policy.on_lowered_sync) {
            (Mode::Lease, _) => Word::Lease,
            (Mode::Quorum, LoweredSync::Report) => Word::Quorum,
            (Mode::Quorum, LoweredSync::Strict) => Word::QuorumStrict,
        };
        Self {
            mode: match (mode, policy.await_routers) {
                (Word::Lease, AwaitRouters::NONE) => StoredMode::Lease,
                (Word::Quorum, AwaitRouters::NONE) => StoredMode::Quorum,
                (Word::QuorumStrict, AwaitRouters::NONE) => StoredMode::QuorumStrict,
                (mode, routers) => StoredMode::Awaits { mode, routers },
            },
            ttl_ms: policy.ttl_ms,
            sync_standbys: policy.sync_standbys,
            min_sync_standbys: policy.min_sync_standbys,
            on_too_few_sync: policy.on_too_few_sync,
            on_coordinator_loss: policy.on_coordinator_loss,
            loss_bound: policy.loss_bound,
            max_failover_scope: policy.max_failover_scope,
            survive: policy.survive,
            restart_grace_ms: policy.restart_grace_ms,
            failover_cooldown_ms: policy.failover_cooldown_ms,
        }
    }
}

impl From<Stored> for Policy {
    fn from(stored: Stored) -> Self {
        let (mode, await_routers) = match stored.mode {
            StoredMode::Lease => (Word::Lease, AwaitRouters::NONE),
            StoredMode::Quorum => (Word::Quorum, AwaitRouters::NONE),
            StoredMode::QuorumStrict => (Word::QuorumStrict, AwaitRouters::NONE),
            StoredMode::Awaits { mode, routers } => (mode, routers),
        };
        let (mode, on_lowered_sync) = match mode {
            Word::Lease => (Mode::Lease, LoweredSync::Report),
            Word::Quorum => (Mode::Quorum, LoweredSync::Report),
            Word::QuorumStrict => (Mode::Quorum, LoweredSync::Strict),
        };
        Self {
            mode,
            on_lowered_sync,
            ttl_ms: stored.ttl_ms,
            sync_standbys: stored.sync_standbys,
            min_sync_standbys: stored.min_sync_standbys,
            on_too_few_sync: stored.on_too_few_sync,
            on_coordinator_loss: stored.on_coordinator_loss,
            loss_bound: stored.loss_bound,
            max_failover_scope: stored.max_failover_scope,
            survive: stored.survive,
            restart_grace_ms: stored.restart_grace_ms,
            failover_cooldown_ms: stored.failover_cooldown_ms,
            await_routers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::OnViolation;

    #[test]
    fn a_policy_of_the_first_releases_is_written_and_read_as_it_was() {
        /// As it was when it was derived.
        #[derive(Serialize)]
        struct First {
            mode: Mode,
            ttl_ms: u64,
            sync_standbys: u32,
            min_sync_standbys: u32,
            on_too_few_sync: TooFewSync,
            on_coordinator_loss: CoordinatorLoss,
            max_bytes: u64,
            max_ms: u64,
            on_violation: OnViolation,
            max_failover_scope: Scope,
            survive: Survive,
            restart_grace_ms: u64,
            failover_cooldown_ms: u64,
        }
        for mode in [Mode::Lease, Mode::Quorum] {
            let policy = Policy::default_for(mode);
            let first = First {
                mode,
                ttl_ms: policy.ttl_ms,
                sync_standbys: policy.sync_standbys,
                min_sync_standbys: policy.min_sync_standbys,
                on_too_few_sync: policy.on_too_few_sync,
                on_coordinator_loss: policy.on_coordinator_loss,
                max_bytes: policy.loss_bound.max_bytes,
                max_ms: policy.loss_bound.max_ms,
                on_violation: policy.loss_bound.on_violation,
                max_failover_scope: policy.max_failover_scope,
                survive: policy.survive,
                restart_grace_ms: policy.restart_grace_ms,
                failover_cooldown_ms: policy.failover_cooldown_ms,
            };
            let bytes = postcard::to_stdvec(&first).expect("plain");
            assert_eq!(postcard::to_stdvec(&policy).expect("plain"), bytes);
            assert_eq!(postcard::from_bytes::<Policy>(&bytes).expect("plain"), policy);
        }
    }

    #[test]
    fn a_strict_one_reads_back_and_is_no_word_of_the_first_releases() {
        let base = Policy::default_for(Mode::Quorum);
        let strict = Policy { on_lowered_sync: LoweredSync::Strict, ..base };
        let bytes = postcard::to_stdvec(&strict).expect("plain");
        assert_eq!(postcard::from_bytes::<Policy>(&bytes).expect("plain"), strict);
        assert!(postcard::from_bytes::<Mode>(&bytes).is_err());
    }

    #[test]
    fn one_that_waits_for_routers_reads_back_in_each_mode_and_is_no_word_of_older_releases() {
        for mode in [Mode::Lease, Mode::Quorum] {
            for on_lowered_sync in [LoweredSync::Report, LoweredSync::Strict] {
                let await_routers = AwaitRouters { percent: 100, within_ms: 250 };
                let policy = Policy { on_lowered_sync, await_routers, ..Policy::default_for(mode) };
                if mode == Mode::Lease && on_lowered_sync == LoweredSync::Strict {
                    continue;
                }
                let bytes = postcard::to_stdvec(&policy).expect("plain");
                assert_eq!(postcard::from_bytes::<Policy>(&bytes).expect("plain"), policy);
                assert!(postcard::from_bytes::<Word>(&bytes).is_err());
            }
        }
    }
}
