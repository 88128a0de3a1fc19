//! Keep-alive streams and the batching of renewals.
//!
//! ```text
//! client ══ KeepAlive ══► stream inbox ─┐  half a commit tick     ┌─ half a commit tick
//! client ══ KeepAlive ══► stream inbox ─┼──► Keeper ──► RenewalSink ──► (leader) Merger ──► one entry
//! client ══ KeepAlive ══► stream inbox ─┘    C5, owner            │  renewals of all nodes
//!        ◄═══ answers, only once the entry is committed ══════════┘
//! ```
//!
//! A hundred thousand sessions renew here every few seconds, so nothing is done per renewal that
//! can be done per batch: no task, no await, no allocation of its own. Nothing here may answer
//! "extended" before the renewal is committed (C4), extend by one that waited too long (C5), or
//! tick while nobody renews.

pub mod keeper;
pub mod merger;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use regent_core::command::{FullRenewal, Renewal};
use regent_core::reply::RenewalOutcome;

pub use keeper::{Keeper, KeeperConfig, KeeperParts};
pub use merger::{EntryProposer, Merger};
pub use stream::KeepAliveStream;

/// Why a batch of renewals has no outcomes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenewError {
    /// Certainly not in the log: no leader, no quorum, refused for overload, unreachable before it
    /// was sent. The batch is tried again until C5 ends its usefulness.
    #[error("not proposed: {0}")]
    NotProposed(String),
    /// It may be in the log. Clients are told to send anew.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

/// Takes a node's batch to the leader: to the local [`Merger`] if this node leads, else by
/// `PeerService.Renew`.
pub trait RenewalSink: Send + Sync + 'static {
    /// One outcome per renewal, in the same order, once they are committed and applied. Must come
    /// back by `deadline`, after which the renewals are too old to extend anything (C5).
    fn renew_batch(
        &self,
        renewals: Vec<FullRenewal>,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Vec<RenewalOutcome>, RenewError>>;
}

/// What the keeper and the merger agree on: how a commit tick is shared between them, so that a
/// renewal waits one tick in all (C6 counts one).
pub fn half_tick(commit_tick_ms: u64) -> Duration {
    Duration::from_micros(commit_tick_ms.saturating_mul(1000) / 2).max(Duration::from_millis(1))
}

/// The highest grant that any renewal has named here. One that names a higher one is waited for by
/// somebody who may not act before its answer (C8), so it leaves at once and takes along what waits.
#[derive(Debug, Default)]
struct Named(AtomicU64);

impl Named {
    fn is_new(&self, renewals: &[FullRenewal]) -> bool {
        let named = renewals.iter().map(|full| full.renewal.known_grant.0);
        let newest = named.max().unwrap_or(0);
        self.0.fetch_max(newest, Ordering::Relaxed) < newest
    }
}

/// Sorts by session and lane of the client's start; of several renewals of one start only the one
/// with the highest number is worth committing. Calls `supersede` with each of the others and the
/// one that stands for it.
///
/// What is superseded must share the fate of what stands for it ([`fate_of_older`]): answering it
/// any sooner would acknowledge a renewal that nobody has committed (C4).
///
/// Renewals of different nonces are all kept: a stale start with a high number must not push out
/// the living one; `apply` tells them apart.
fn merge_sorted<T>(
    mut items: Vec<T>,
    renewal: impl Fn(&T) -> &Renewal,
    mut supersede: impl FnMut(&mut T, &mut T),
) -> Vec<T> {
    items.sort_by(|a, b| {
        let (a, b) = (renewal(a), renewal(b));
        (a.session, a.nonce, b.number).cmp(&(b.session, b.nonce, a.number))
    });
    items.dedup_by(|older, kept| {
        let (old, new) = (renewal(older), renewal(kept));
        let same = (old.session, old.nonce) == (new.session, new.nonce);
        if same {
            supersede(older, kept);
        }
        same
    });
    items
}

/// What a committed entry said of a renewal, for the older ones that it stood for: a holder takes
/// [`RenewalOutcome::NumberStale`] as proof that the number it names was applied.
fn fate_of_older(newest: RenewalOutcome) -> RenewalOutcome {
    match newest {
        RenewalOutcome::Extended { number, .. } => RenewalOutcome::NumberStale { have: number },
        other => other,
    }
}
