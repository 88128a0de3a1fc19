//! A policy as the log and snapshots keep it: the fields that it had at first, in that order. What came
//! later has its place in words that an older release does not know, and goes only where every member
//! reads it ([`STRICT_LEVEL`](crate::state::version::STRICT_LEVEL)); what is old reads as it did.

use serde::{Deserialize, Serialize};

use super::{CoordinatorLoss, LossBound, LoweredSync, Mode, Policy, Scope, Survive, TooFewSync};

/// The mode, and with the third word a strict one: only commits that wait can wait for less.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum StoredMode {
    Lease,
    Quorum,
    QuorumStrict,
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
        Self {
            mode: match (policy.mode, policy.on_lowered_sync) {
                (Mode::Lease, _) => StoredMode::Lease,
                (Mode::Quorum, LoweredSync::Report) => StoredMode::Quorum,
                (Mode::Quorum, LoweredSync::Strict) => StoredMode::QuorumStrict,
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
        let (mode, on_lowered_sync) = match stored.mode {
            StoredMode::Lease => (Mode::Lease, LoweredSync::Report),
            StoredMode::Quorum => (Mode::Quorum, LoweredSync::Report),
            StoredMode::QuorumStrict => (Mode::Quorum, LoweredSync::Strict),
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
}
