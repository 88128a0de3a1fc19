//! The node's collector: takes renewals from all streams, judges them once per tick, sends one batch
//! on and brings the outcomes back.
//!
//! Each renewal taken from a stream is answered exactly once, or its stream is gone. A batch that
//! was certainly not proposed goes back into the queue, where a newer renewal of the same session
//! replaces it and age ends it (C5); so an election of the leader costs clients a wait, not a
//! round of resends.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use parking_lot::{Mutex, RwLock};
use regent_core::authz::Principal;
use regent_core::command::{FullRenewal, Renewal};
use regent_core::id::SessionId;
use regent_core::lease::gate::{self, Verdict};
use regent_core::lease::holder::Answer;
use regent_core::limits::MAX_RENEWALS_PER_ENTRY;
use regent_core::reply::RenewalOutcome;
use regent_core::role::HolderReport;
use regent_core::state::State;
use regent_core::time::Reading;
use regent_rpc::clock::Clock;
use regent_rpc::pb::v1;
use tokio::sync::{Notify, Semaphore};

use super::stream::{Answered, Cell, KeepAliveStream};
use super::{Named, RenewError, RenewalSink, fate_of_older, half_tick, merge_sorted};
use crate::duties::Duties;
use crate::http::metrics::{Kind, Metrics};

/// Batches under way at once. A commit takes a few ticks; beyond this many the leader is not
/// keeping up, and what waits is better merged than sent.
const MAX_BATCHES_UNDER_WAY: usize = 32;
/// Renewals of a session this node has not heard of (it lags behind the leader) are judged by age
/// alone, as if the session had the shortest ttl anybody could have configured.
const UNKNOWN_TTL_MS: u64 = 1_000;
/// Of those, so many are passed on per tick; the others are to be sent anew. Whoever invents ids
/// must not fill the log with them, and a node that has just lost touch needs no more.
const MAX_UNKNOWN: usize = 500;
/// A batch that could not be proposed is tried again after this long.
const RETRY: Duration = Duration::from_millis(50);
/// Bounds of the deadline of one batch: even the most impatient batch deserves a round trip, and
/// even the most patient one an end.
const DEADLINES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// How the keeper paces itself.
#[derive(Clone, Copy, Debug)]
pub struct KeeperConfig {
    /// How long renewals are collected before a batch leaves: see [`half_tick`].
    pub window: Duration,
}

impl KeeperConfig {
    /// For a cluster with this commit tick.
    pub fn for_tick(commit_tick_ms: u64) -> Self {
        Self { window: half_tick(commit_tick_ms) }
    }
}

/// Hears of renewals of somebody else's session.
pub type NoteRefused = dyn Fn(&Principal, SessionId) + Send + Sync;

/// What the keeper is built from.
pub struct KeeperParts {
    /// The replicated state, for owners and ttls.
    pub state: Arc<RwLock<State>>,
    /// Where batches go.
    pub sink: Arc<dyn RenewalSink>,
    /// This machine's clocks.
    pub clock: Arc<dyn Clock>,
    /// Called for each renewal of a session that belongs to somebody else; only hands it on.
    pub refused: Arc<NoteRefused>,
    /// This node, its start and the voters; the clock's readings are filled in here.
    pub face: Arc<dyn Fn() -> v1::NodeClock + Send + Sync>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Collects renewals; clone it freely. The loop ends when the last clone and the last stream are
/// gone.
#[derive(Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    parts: KeeperParts,
    config: KeeperConfig,
    queue: Mutex<Vec<Batch>>,
    arrived: Notify,
    named: Named,
    hurry: Arc<Notify>,
}

/// Renewals that came together on one stream.
pub(super) struct Batch {
    pub cell: Arc<Cell>,
    pub received: Reading,
    pub renewals: Vec<FullRenewal>,
}

/// One renewal on its way to the leader.
struct Flight {
    renewal: Renewal,
    report: Option<Box<HolderReport>>,
    received: Reading,
    ttl_ms: u64,
    cell: usize,
    /// Renewals of the same start with lower numbers: they are not sent, and answered with this one.
    older: Vec<Flight>,
}

impl Flight {
    /// C5, when a place among the batches under way was found: waiting for it counts too.
    fn is_late(&self, now: Reading) -> bool {
        gate::too_old(self.received, now, self.ttl_ms)
    }
}

/// Answers on their way back, by stream.
struct Answers {
    cells: Vec<Arc<Cell>>,
    by_cell: Vec<Vec<Answered>>,
}

impl Answers {
    fn new(cells: Vec<Arc<Cell>>) -> Self {
        let by_cell = cells.iter().map(|_| Vec::new()).collect();
        Self { cells, by_cell }
    }

    fn add(&mut self, cell: usize, answer: Answered) {
        self.by_cell[cell].push(answer);
    }

    /// The outcome of `flight`, and what it means for those it stood for.
    fn outcome(&mut self, flight: &Flight, outcome: RenewalOutcome) {
        self.add(flight.cell, Answered::outcome(&flight.renewal, outcome));
        for older in &flight.older {
            self.add(older.cell, Answered::outcome(&older.renewal, fate_of_older(outcome)));
        }
    }

    /// `flight` and those it stood for have to be sent anew.
    fn resend(&mut self, flight: &Flight) {
        for flight in std::iter::once(flight).chain(&flight.older) {
            self.add(flight.cell, Answered::new(&flight.renewal, Answer::Resend));
        }
    }

    fn deliver(self) {
        for (cell, answers) in self.cells.iter().zip(self.by_cell) {
            if !answers.is_empty() {
                cell.answer(answers);
            }
        }
    }
}

impl Keeper {
    /// Starts the loop on the current tokio runtime.
    pub fn start(config: KeeperConfig, parts: KeeperParts, duties: &Duties) -> Self {
        let shared = Arc::new(Shared {
            parts,
            config,
            queue: Mutex::default(),
            arrived: Notify::new(),
            named: Named::default(),
            hurry: Arc::default(),
        });
        duties.spawn("renewals", run(Arc::downgrade(&shared)));
        Self { shared }
    }

    /// One client's keep-alive stream. `identity` is what its certificate says. Ends when the
    /// client has closed its side and everything is answered.
    pub fn handle_stream<S>(&self, identity: Principal, incoming: S) -> KeepAliveStream<S>
    where
        S: Stream<Item = Result<v1::KeepAliveRequest, tonic::Status>> + Unpin,
    {
        self.shared.parts.metrics.keepalive_streams.inc();
        KeepAliveStream::new(self.shared.clone(), identity, incoming)
    }
}

impl Shared {
    /// Takes renewals from a stream.
    pub(super) fn take(&self, cell: &Arc<Cell>, renewals: Vec<FullRenewal>) {
        let received = self.now();
        self.count_waiting(renewals.len());
        let is_new = self.named.is_new(&renewals);
        self.queue.lock().push(Batch { cell: cell.clone(), received, renewals });
        self.arrived.notify_one();
        if is_new {
            self.hurry.notify_one();
        }
    }

    pub(super) fn now(&self) -> Reading {
        self.parts.clock.now()
    }

    /// The answer to a probe (C9). Read when it leaves: a client allows for the round trip, not for
    /// the time that an answer waited here.
    pub(super) fn clock(&self, probe: u64) -> v1::NodeClock {
        let incarnation = self.parts.state.read().incarnation().counter;
        let face = (self.parts.face)();
        let Reading { boottime_us, raw_us } = self.now();
        v1::NodeClock { probe, boottime_us, raw_us, incarnation, ..face }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.parts.metrics
    }

    fn count_waiting(&self, more: usize) {
        self.metrics().renewals_waiting.inc_by(i64::try_from(more).unwrap_or(i64::MAX));
    }

    /// Judges everything in the queue. What passes is returned, sorted by session; the rest is
    /// answered at once.
    fn judge(&self) -> (Vec<Arc<Cell>>, Vec<Flight>) {
        let batches = std::mem::take(&mut *self.queue.lock());
        let now = self.now();
        let mut cells: Vec<Arc<Cell>> = Vec::with_capacity(batches.len());
        let mut flights = Vec::with_capacity(batches.iter().map(|b| b.renewals.len()).sum());
        let mut refused = Vec::new();
        let mut unknown = 0;
        let mut answers = Answers::new(Vec::new());
        {
            let state = self.parts.state.read();
            for Batch { cell, received, renewals } in batches {
                let at = cells.len();
                let mut gates = cell.gates();
                answers.by_cell.push(Vec::new());
                for FullRenewal { renewal, report } in renewals {
                    let row = state.sessions().get(&renewal.session);
                    if row.is_none() && state.has_seen(renewal.session) {
                        let gone = RenewalOutcome::SessionGone;
                        answers.add(at, Answered::outcome(&renewal, gone));
                        continue;
                    }
                    let ttl_ms = row.map_or(UNKNOWN_TTL_MS, |row| row.ttl_ms);
                    let resend = match row {
                        Some(row) if row.owner != *cell.owner() => {
                            refused.push((at, renewal.session));
                            // The same answer as for no session at all: whose it is, is nobody
                            // else's business.
                            let gone = RenewalOutcome::SessionGone;
                            answers.add(at, Answered::outcome(&renewal, gone));
                            continue;
                        }
                        Some(row) => {
                            let verdict = gates.judge(&renewal, row, received, now);
                            verdict != Verdict::Pass
                        }
                        None => {
                            unknown += 1;
                            unknown > MAX_UNKNOWN || gate::too_old(received, now, ttl_ms)
                        }
                    };
                    if resend {
                        answers.add(at, Answered::new(&renewal, Answer::Resend));
                    } else {
                        let older = Vec::new();
                        flights.push(Flight { renewal, report, received, ttl_ms, cell: at, older });
                    }
                }
                drop(gates);
                cells.push(cell);
            }
        }
        for (at, session) in refused {
            (self.parts.refused)(cells[at].owner(), session);
            self.metrics().renewals.get_or_create(&Kind { kind: "refused" }).inc();
        }
        let flights = merge_sorted(
            flights,
            |flight| &flight.renewal,
            |older, kept| {
                let Flight { renewal, received, ttl_ms, cell, .. } = *older;
                let report = older.report.take();
                let older = Vec::new();
                kept.older.push(Flight { renewal, report, received, ttl_ms, cell, older });
            },
        );
        answers.cells.clone_from(&cells);
        answers.deliver();
        (cells, flights)
    }

    /// Puts back what was certainly not proposed.
    fn put_back(&self, cells: &[Arc<Cell>], flights: Vec<Flight>) {
        let mut flights: Vec<Flight> = flights
            .into_iter()
            .flat_map(|mut flight| {
                let older = std::mem::take(&mut flight.older);
                std::iter::once(flight).chain(older)
            })
            .collect();
        flights.sort_by_key(|flight| (flight.cell, flight.received.boottime_us));
        let mut batches: Vec<Batch> = Vec::new();
        let mut last = usize::MAX;
        for flight in flights {
            let cell = &cells[flight.cell];
            let full = FullRenewal { renewal: flight.renewal, report: flight.report };
            match batches.last_mut() {
                Some(batch) if last == flight.cell && batch.received == flight.received => {
                    batch.renewals.push(full);
                }
                _ => batches.push(Batch {
                    cell: cell.clone(),
                    received: flight.received,
                    renewals: vec![full],
                }),
            }
            last = flight.cell;
        }
        self.queue.lock().append(&mut batches);
    }

    /// How long a batch may take: until the first of its renewals is too old (C5).
    fn deadline(&self, flights: &[Flight]) -> Duration {
        let now = self.now();
        let left = flights.iter().map(|flight| {
            let age = now.since(flight.received).0;
            (flight.ttl_ms * 500).saturating_sub(age)
        });
        Duration::from_micros(left.min().unwrap_or(0)).clamp(DEADLINES.0, DEADLINES.1)
    }

    /// Sends one batch and distributes what came of it. Returns whether it must be tried again.
    async fn fly(&self, cells: Vec<Arc<Cell>>, flights: Vec<Flight>) -> bool {
        let now = self.now();
        let (late, flights): (Vec<_>, Vec<_>) = flights.into_iter().partition(|f| f.is_late(now));
        let mut answers = Answers::new(cells.clone());
        late.iter().for_each(|flight| answers.resend(flight));
        answers.deliver();
        if flights.is_empty() {
            return false;
        }
        let deadline = self.deadline(&flights);
        let full = |it: &Flight| FullRenewal { renewal: it.renewal, report: it.report.clone() };
        let renewals: Vec<FullRenewal> = flights.iter().map(full).collect();
        let flying = self.parts.sink.renew_batch(renewals, deadline);
        let outcome = match tokio::time::timeout(deadline, flying).await {
            Ok(Ok(outcomes)) if outcomes.len() == flights.len() => Ok(outcomes),
            Ok(Ok(outcomes)) => Err(RenewError::Unknown(format!(
                "{} outcomes for {} renewals",
                outcomes.len(),
                flights.len()
            ))),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(RenewError::Unknown("no answer in time".into())),
        };
        match outcome {
            Ok(outcomes) => {
                let mut answers = Answers::new(cells);
                for (flight, outcome) in flights.iter().zip(outcomes) {
                    answers.outcome(flight, outcome);
                }
                answers.deliver();
                false
            }
            Err(RenewError::NotProposed(why)) => {
                tracing::debug!(%why, count = flights.len(), "renewals wait for a leader");
                self.put_back(&cells, flights);
                true
            }
            Err(RenewError::Unknown(why)) => {
                tracing::debug!(%why, count = flights.len(), "renewals have to be sent anew");
                let mut answers = Answers::new(cells);
                flights.iter().for_each(|flight| answers.resend(flight));
                answers.deliver();
                false
            }
        }
    }
}

/// The tick. It holds the keeper weakly while it waits, so that dropping the last handle ends it.
async fn run(keeper: std::sync::Weak<Shared>) {
    let under_way = Arc::new(Semaphore::new(MAX_BATCHES_UNDER_WAY));
    loop {
        let Some(shared) = keeper.upgrade() else { return };
        let (window, hurry) = (shared.config.window, shared.hurry.clone());
        // A second's poll is only for noticing that the keeper is gone; it costs nothing.
        let waited =
            tokio::time::timeout(Duration::from_secs(1), shared.arrived.notified()).await.is_ok();
        drop(shared);
        if !waited {
            continue;
        }
        let _ = tokio::time::timeout(window, hurry.notified()).await;
        let Some(shared) = keeper.upgrade() else { return };
        let (cells, flights) = shared.judge();
        if flights.is_empty() {
            continue;
        }
        shared.metrics().renewals_per_tick.observe(flights.len());
        for flights in chunks(flights) {
            let Ok(permit) = under_way.clone().acquire_owned().await else { return };
            let (shared, cells) = (shared.clone(), cells.clone());
            tokio::spawn(async move {
                let again = shared.fly(cells, flights).await;
                drop(permit);
                if again {
                    tokio::time::sleep(RETRY).await;
                    shared.arrived.notify_one();
                }
            });
        }
    }
}

/// Splits into pieces that fit one entry each; mostly there is one.
fn chunks(mut flights: Vec<Flight>) -> Vec<Vec<Flight>> {
    let mut pieces = Vec::with_capacity(1 + flights.len() / MAX_RENEWALS_PER_ENTRY);
    while flights.len() > MAX_RENEWALS_PER_ENTRY {
        pieces.push(flights.split_off(flights.len() - MAX_RENEWALS_PER_ENTRY));
    }
    pieces.push(flights);
    pieces
}
