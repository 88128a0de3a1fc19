//! Linearizable reads on any node (S11): ask for a read index, wait until it is applied here, read
//! the local state.
//!
//! One task runs the rounds, one after the other; every read that arrives before the next round is
//! sent shares it, so a hundred readers cost one quorum round, not a hundred. A round's *sending*
//! time is what counts for the age of the answer and for the believed-live clocks (C3): whatever
//! was acknowledged before it is covered, and nothing later is claimed.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use regent_core::id::Revision;
use regent_core::state::State;
use regent_core::time::Reading;
use regent_raft::Consensus;
use regent_rpc::clock::Clock;
use regent_rpc::convert::common::Freshness;
use regent_rpc::convert::status;
use regent_rpc::pb::raft::ReadIndexRequest;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::Status;

use crate::clocks::NodeClocks;
use crate::duties::Duties;
use crate::http::Metrics;
use crate::leadership::Leadership;
use crate::peers::Peers;
use crate::refuse;

/// Reads waiting for the next round; more are refused, as they would only wait longer.
const MAX_WAITING: usize = 16_384;
/// Longest time one round may take before it is given up and the next one is sent.
const ROUND_TIMEOUT: Duration = Duration::from_millis(1_000);

type Waiter = oneshot::Sender<Result<Revision, Status>>;

/// The last round that was answered.
#[derive(Clone, Copy, Debug)]
struct Round {
    sent: Reading,
    answer: Revision,
}

/// The read barrier of one node; clones share it.
#[derive(Clone)]
pub struct Reads {
    waiting: mpsc::Sender<Waiter>,
    last: Arc<Mutex<Option<Round>>>,
    consensus: Consensus,
    state: Arc<RwLock<State>>,
    clock: Arc<dyn Clock>,
    leadership: Leadership,
    metrics: Arc<Metrics>,
}

/// What the round task needs.
struct Rounds {
    consensus: Consensus,
    leadership: Leadership,
    peers: Arc<Peers>,
    clock: Arc<dyn Clock>,
    clocks: Arc<NodeClocks>,
    last: Arc<Mutex<Option<Round>>>,
    metrics: Arc<Metrics>,
}

impl Reads {
    /// Starts the round task; it ends when all clones are gone.
    pub fn start(
        consensus: Consensus,
        leadership: Leadership,
        peers: Arc<Peers>,
        clock: Arc<dyn Clock>,
        clocks: Arc<NodeClocks>,
        metrics: Arc<Metrics>,
        duties: &Duties,
    ) -> Self {
        let (waiting, queue) = mpsc::channel(MAX_WAITING);
        let last = Arc::new(Mutex::new(None));
        let rounds = Rounds {
            consensus: consensus.clone(),
            leadership: leadership.clone(),
            peers,
            clock: clock.clone(),
            clocks,
            last: last.clone(),
            metrics: metrics.clone(),
        };
        duties.spawn("read rounds", rounds.run(queue));
        let state = consensus.state();
        Self { waiting, last, consensus, state, clock, leadership, metrics }
    }

    /// Waits until the local state is as fresh as asked. Returns the age in milliseconds that this
    /// node can prove: 0 for a linearizable read.
    ///
    /// # Errors
    /// UNAVAILABLE when no leader answers in time.
    pub async fn fresh(&self, freshness: Freshness, until: Instant) -> Result<u64, Status> {
        if let Freshness::MaxAgeMs(max_age_ms) = freshness
            && let Some(age_ms) = self.age_ms()
            && age_ms <= max_age_ms
        {
            return Ok(age_ms);
        }
        self.linearizable(until).await.map(|_| 0)
    }

    /// The age of the local state that this node can prove: since the last answered round was
    /// sent, if what it answered is applied here.
    pub fn age_ms(&self) -> Option<u64> {
        let round = (*self.last.lock())?;
        if self.state.read().revision() < round.answer {
            return None;
        }
        Some(self.clock.now().since(round.sent).0.div_ceil(1000))
    }

    /// Waits until everything acknowledged before this call is applied here.
    ///
    /// # Errors
    /// UNAVAILABLE when no leader answers in time.
    pub async fn linearizable(&self, until: Instant) -> Result<Revision, Status> {
        let begun = Instant::now();
        let give_up = self.leadership.give_up_at(until);
        loop {
            let (answer, answered) = oneshot::channel();
            self.waiting.try_send(answer).map_err(|_| {
                status::overloaded("too many reads are waiting", refuse::RETRY_AFTER)
            })?;
            let outcome = tokio::time::timeout_at(until, answered).await;
            let refused = match outcome {
                Ok(Ok(Ok(index))) => {
                    self.applied(index, until).await?;
                    self.metrics.read_index_reads.inc();
                    self.metrics.read_index_seconds.observe(begun.elapsed().as_secs_f64());
                    return Ok(index);
                }
                Ok(Ok(Err(status))) => status,
                Ok(Err(_)) => return Err(status::not_leader(None, refuse::RETRY_AFTER)),
                Err(_) => return Err(Status::deadline_exceeded("no read index in time")),
            };
            // A read changes nothing: trying again is always right, within the caller's patience.
            if Instant::now() >= give_up {
                return Err(refused);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until `index` is applied here.
    ///
    /// # Errors
    /// DEADLINE_EXCEEDED when it is not in time.
    pub async fn applied(&self, index: Revision, until: Instant) -> Result<Revision, Status> {
        if self.state.read().revision() >= index {
            return Ok(index);
        }
        let left = until.saturating_duration_since(Instant::now());
        match self.consensus.wait_applied(index, left).await {
            Ok(()) => Ok(index),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "this node has not applied revision {index} in time"
            ))),
        }
    }
}

impl Rounds {
    async fn run(self, mut queue: mpsc::Receiver<Waiter>) {
        let mut waiters = Vec::new();
        while queue.recv_many(&mut waiters, MAX_WAITING).await > 0 {
            let sent = self.clock.now();
            let outcome = self.round().await;
            if let Ok(answer) = outcome {
                self.metrics.read_index_rounds.inc();
                *self.last.lock() = Some(Round { sent, answer });
                self.clocks.read_index_answered(sent, answer);
            }
            for waiter in waiters.drain(..) {
                // A reader that gave up has dropped its end.
                let _ = waiter.send(outcome.clone());
            }
        }
    }

    async fn round(&self) -> Result<Revision, Status> {
        if self.leadership.is_here() {
            let here = self.consensus.read_index(ROUND_TIMEOUT).await;
            return here.map_err(refuse::consensus);
        }
        let until = Instant::now() + ROUND_TIMEOUT;
        let leader = self.leadership.other_than(None, until).await?;
        if leader.node == self.leadership.node() {
            let here = self.consensus.read_index(ROUND_TIMEOUT).await;
            return here.map_err(refuse::consensus);
        }
        let mut client = self
            .peers
            .peer(leader.node, &leader.address)
            .map_err(|bad| Status::internal(bad.to_string()))?;
        let request = self.peers.request(ReadIndexRequest {}, ROUND_TIMEOUT);
        tokio::select! {
            answer = client.read_index(request) => Ok(Revision(answer?.into_inner().index)),
            () = self.leadership.moved_from(leader.node) => {
                Err(status::not_leader(self.leadership.now(), refuse::RETRY_AFTER))
            }
            () = tokio::time::sleep_until(until) => {
                Err(status::not_leader(None, refuse::RETRY_AFTER))
            }
        }
    }
}
