//! On the leader: the renewals that all nodes sent within half a tick become one log entry.
//!
//! It keeps nothing that matters: if the leader changes, each waiting batch fails as not proposed
//! or unknown, and the nodes that hold the clients' streams deal with it.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use regent_core::command::FullRenewal;
use regent_core::limits::MAX_RENEWALS_PER_ENTRY;
use regent_core::reply::RenewalOutcome;
use tokio::sync::{Notify, Semaphore, oneshot};

use super::{Named, RenewError, fate_of_older, merge_sorted};
use crate::duties::Duties;
use crate::http::metrics::Metrics;

/// Renewals waiting to be merged: ten full entries. Beyond that the log does not keep up, and
/// refusing lets the nodes merge what they hold.
const MAX_WAITING: usize = 10 * MAX_RENEWALS_PER_ENTRY;
/// Entries under way at once.
const MAX_ENTRIES_UNDER_WAY: usize = 16;

/// Proposes entries of renewals on this node.
pub trait EntryProposer: Send + Sync + 'static {
    /// One outcome per renewal, in order, once the entry is applied.
    fn propose_renewals(
        &self,
        renewals: Vec<FullRenewal>,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Vec<RenewalOutcome>, RenewError>>;
}

type Outcomes = Result<Vec<RenewalOutcome>, RenewError>;

struct Waiting {
    renewals: Vec<FullRenewal>,
    until: Instant,
    answer: oneshot::Sender<Outcomes>,
}

/// Merges batches; clone it freely.
#[derive(Clone)]
pub struct Merger {
    shared: Arc<Shared>,
}

struct Shared {
    proposer: Arc<dyn EntryProposer>,
    window: Duration,
    metrics: Arc<Metrics>,
    queue: Mutex<(Vec<Waiting>, usize)>,
    arrived: Notify,
    named: Named,
    hurry: Arc<Notify>,
}

impl Merger {
    /// Starts the loop on the current tokio runtime; `window` as [`super::half_tick`] says.
    pub fn start(
        window: Duration,
        proposer: Arc<dyn EntryProposer>,
        metrics: Arc<Metrics>,
        duties: &Duties,
    ) -> Self {
        let queue = Mutex::default();
        let (arrived, named, hurry) = (Notify::new(), Named::default(), Arc::default());
        let shared = Arc::new(Shared { proposer, window, metrics, queue, arrived, named, hurry });
        duties.spawn("merged renewals", run(Arc::downgrade(&shared)));
        Self { shared }
    }

    /// One node's batch; answered in order once committed and applied.
    ///
    /// # Errors
    /// [`RenewError::NotProposed`] when too much waits or `deadline` passed before it was proposed,
    /// and whatever the proposer says.
    pub async fn submit(&self, renewals: Vec<FullRenewal>, deadline: Duration) -> Outcomes {
        if renewals.is_empty() {
            return Ok(Vec::new());
        }
        let (answer, answered) = oneshot::channel();
        let is_new = self.shared.named.is_new(&renewals);
        {
            let mut queue = self.shared.queue.lock();
            if queue.1 + renewals.len() > MAX_WAITING {
                return Err(RenewError::NotProposed(format!("{} renewals wait already", queue.1)));
            }
            queue.1 += renewals.len();
            queue.0.push(Waiting { renewals, until: Instant::now() + deadline, answer });
        }
        self.shared.arrived.notify_one();
        if is_new {
            self.shared.hurry.notify_one();
        }
        let gone = || Err(RenewError::Unknown("the merger stopped".into()));
        answered.await.unwrap_or_else(|_| gone())
    }
}

async fn run(merger: Weak<Shared>) {
    let under_way = Arc::new(Semaphore::new(MAX_ENTRIES_UNDER_WAY));
    loop {
        let Some(shared) = merger.upgrade() else { return };
        let (window, hurry) = (shared.window, shared.hurry.clone());
        let waited =
            tokio::time::timeout(Duration::from_secs(1), shared.arrived.notified()).await.is_ok();
        drop(shared);
        if !waited {
            continue;
        }
        let _ = tokio::time::timeout(window, hurry.notified()).await;
        let Ok(permit) = under_way.clone().acquire_owned().await else { return };
        let Some(shared) = merger.upgrade() else { return };
        let waiting = {
            let mut queue = shared.queue.lock();
            queue.1 = 0;
            std::mem::take(&mut queue.0)
        };
        tokio::spawn(async move {
            shared.commit(waiting).await;
            drop(permit);
        });
    }
}

/// Where a renewal came from: which place of which batch.
type Place = (usize, usize);

/// One renewal to be committed.
struct Merged {
    renewal: FullRenewal,
    of: Place,
    /// Where the renewals came from that it stands for.
    older: Vec<Place>,
}

impl Shared {
    async fn commit(&self, waiting: Vec<Waiting>) {
        let now = Instant::now();
        let (waiting, late): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|w| w.until > now);
        for late in late {
            // Too old to extend anything (C5): not worth a place in the log.
            let _ = late.answer.send(Err(RenewError::NotProposed("it waited too long".into())));
        }
        let Some(until) = waiting.iter().map(|w| w.until).min() else { return };
        let mut outcomes: Vec<Vec<RenewalOutcome>> = Vec::with_capacity(waiting.len());
        let mut all = Vec::with_capacity(waiting.iter().map(|w| w.renewals.len()).sum());
        for (batch, w) in waiting.iter().enumerate() {
            outcomes.push(vec![RenewalOutcome::SessionGone; w.renewals.len()]);
            let renewals = w.renewals.iter().enumerate();
            all.extend(renewals.map(|(place, renewal)| Merged {
                renewal: renewal.clone(),
                of: (batch, place),
                older: Vec::new(),
            }));
        }
        let merged = merge_sorted(
            all,
            |merged| &merged.renewal.renewal,
            |older, kept| kept.older.push(older.of),
        );
        let entries = merged.chunks(MAX_RENEWALS_PER_ENTRY).map(|chunk| {
            self.metrics.renewals_per_entry.observe(chunk.len());
            let renewals: Vec<FullRenewal> =
                chunk.iter().map(|merged| merged.renewal.clone()).collect();
            self.proposer.propose_renewals(renewals, until.saturating_duration_since(now))
        });
        let answers = futures::future::join_all(entries).await;
        let mut failed: Vec<Option<RenewError>> = waiting.iter().map(|_| None).collect();
        for (chunk, answer) in merged.chunks(MAX_RENEWALS_PER_ENTRY).zip(answers) {
            let answer = match answer {
                Ok(got) if got.len() == chunk.len() => Ok(got),
                Ok(got) => Err(RenewError::Unknown(format!("{} outcomes", got.len()))),
                Err(error) => Err(error),
            };
            for (at, Merged { of, older, .. }) in chunk.iter().enumerate() {
                match &answer {
                    Ok(got) => {
                        outcomes[of.0][of.1] = got[at];
                        for (batch, place) in older {
                            outcomes[*batch][*place] = fate_of_older(got[at]);
                        }
                    }
                    Err(error) => {
                        for (batch, _) in std::iter::once(of).chain(older) {
                            worst(&mut failed[*batch], error);
                        }
                    }
                }
            }
        }
        for ((w, outcomes), failed) in waiting.into_iter().zip(outcomes).zip(failed) {
            // The other side may have given up: then nobody wants to know.
            let _ = w.answer.send(failed.map_or(Ok(outcomes), Err));
        }
    }
}

/// A batch that was spread over entries of which one failed is as uncertain as its worst part.
fn worst(have: &mut Option<RenewError>, new: &RenewError) {
    if !matches!(have, Some(RenewError::Unknown(_))) {
        *have = Some(new.clone());
    }
}
