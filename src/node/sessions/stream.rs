//! One keep-alive stream: what came in goes to the keeper, what the keeper answers goes out.
//!
//! The stream is polled by the task that writes the response, so reading, judging pressure and
//! writing share one task and none is spawned. A client that does not read its answers is not read
//! either once [`MAX_PENDING`] renewals are unanswered: its backlog stays in its own socket.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use futures::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use regent_core::authz::Principal;
use regent_core::command::Renewal;
use regent_core::id::{RenewalNumber, SessionId};
use regent_core::lease::gate::{Gate, Verdict};
use regent_core::lease::holder::Answer;
use regent_core::reply::RenewalOutcome;
use regent_core::state::session::Session;
use regent_core::time::Reading;
use regent_rpc::convert::election::{renewals, renewed_out};
use regent_rpc::pb::v1;

use super::keeper::Shared;
use crate::http::metrics::Kind;

/// Unanswered renewals of one stream: two ticks of a client with 100,000 sessions, and then some.
const MAX_PENDING: usize = 50_000;
/// Renewals in one answer: about 60 KiB.
const MAX_ANSWERS: usize = 4_096;
/// Messages read before others get their turn.
const MAX_READS: usize = 32;

/// One answer, still small.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    pub session: SessionId,
    pub number: RenewalNumber,
    pub answer: Answer,
}

impl Answered {
    pub(super) fn new(renewal: &Renewal, answer: Answer) -> Self {
        Self { session: renewal.session, number: renewal.number, answer }
    }

    pub(super) fn outcome(renewal: &Renewal, outcome: RenewalOutcome) -> Self {
        Self::new(renewal, Answer::Outcome(outcome))
    }

    /// For the metric's label.
    fn kind(&self) -> usize {
        match self.answer {
            Answer::Outcome(RenewalOutcome::Extended { .. }) => 0,
            Answer::Outcome(RenewalOutcome::SessionGone) => 1,
            Answer::Outcome(RenewalOutcome::NonceStale) => 2,
            Answer::Outcome(RenewalOutcome::NumberStale { .. }) => 3,
            Answer::Resend => 4,
        }
    }
}

const KINDS: [&str; 5] = ["extended", "session_gone", "nonce_stale", "number_stale", "resend"];

/// What the keeper and a stream share.
pub(super) struct Cell {
    owner: Principal,
    inner: Mutex<Inner>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct Inner {
    answers: Vec<Answered>,
    pending: usize,
    /// The newest question for this node's clock; 0: none is open.
    probe: u64,
    closed: bool,
    gates: HashMap<SessionId, Gate>,
}

/// The gates of a stream, locked.
pub(super) struct Gates<'a>(MutexGuard<'a, Inner>);

impl Gates<'_> {
    /// C5's judgement. Only sessions that exist and belong to this stream's client get here, so a
    /// client cannot make the table grow beyond its sessions.
    pub(super) fn judge(
        &mut self,
        renewal: &Renewal,
        row: &Session,
        received: Reading,
        now: Reading,
    ) -> Verdict {
        let new = || Gate::new(row.ttl_ms, row.renew_interval_ms);
        let gate = self.0.gates.entry(renewal.session).or_insert_with(new);
        gate.judge(renewal.acked, received, now)
    }
}

impl Cell {
    fn new(owner: Principal) -> Self {
        Self { owner, inner: Mutex::default(), waker: AtomicWaker::new() }
    }

    pub(super) fn owner(&self) -> &Principal {
        &self.owner
    }

    pub(super) fn gates(&self) -> Gates<'_> {
        Gates(self.inner.lock())
    }

    /// Hands answers to the stream, which sends them when it is polled.
    pub(super) fn answer(&self, answers: Vec<Answered>) {
        {
            let mut inner = self.inner.lock();
            if inner.closed {
                return;
            }
            if inner.answers.is_empty() {
                inner.answers = answers;
            } else {
                inner.answers.extend(answers);
            }
        }
        self.waker.wake();
    }
}

/// The response stream of `ElectionService.KeepAlive`.
pub struct KeepAliveStream<S> {
    keeper: Arc<Shared>,
    cell: Arc<Cell>,
    incoming: S,
    ended: bool,
}

impl<S> KeepAliveStream<S> {
    pub(super) fn new(keeper: Arc<Shared>, owner: Principal, incoming: S) -> Self {
        Self { keeper, cell: Arc::new(Cell::new(owner)), incoming, ended: false }
    }

    /// Takes up to [`MAX_ANSWERS`] answers; only now do they count as sent (C5).
    fn take_answers(&self) -> Option<v1::KeepAliveResponse> {
        let mut inner = self.cell.inner.lock();
        let probe = std::mem::take(&mut inner.probe);
        if inner.answers.is_empty() && probe == 0 {
            return None;
        }
        let now = self.keeper.now();
        let most = inner.answers.len().min(MAX_ANSWERS);
        let rest = inner.answers.split_off(most);
        let sent = std::mem::replace(&mut inner.answers, rest);
        inner.pending = inner.pending.saturating_sub(sent.len());
        let mut renewed = Vec::with_capacity(sent.len());
        for answer in &sent {
            inner.note_sent(answer, now);
            renewed.push(renewed_out(answer.session, answer.number, answer.answer));
        }
        drop(inner);
        self.count(&sent);
        let clock = (probe != 0).then(|| self.keeper.clock(probe));
        Some(v1::KeepAliveResponse { renewed, clock })
    }

    fn count(&self, sent: &[Answered]) {
        let metrics = self.keeper.metrics();
        metrics.renewals_waiting.dec_by(i64::try_from(sent.len()).unwrap_or(i64::MAX));
        let mut counts = [0_u64; KINDS.len()];
        for answer in sent {
            counts[answer.kind()] += 1;
        }
        for (kind, count) in KINDS.into_iter().zip(counts).filter(|(_, count)| *count > 0) {
            metrics.renewals.get_or_create(&Kind { kind }).inc_by(count);
        }
    }

    /// Takes one message.
    fn take_message(&self, message: &v1::KeepAliveRequest) -> Result<(), tonic::Status> {
        let renewals = renewals(message)?;
        if message.probe != 0 {
            self.cell.inner.lock().probe = message.probe;
        }
        if !renewals.is_empty() {
            self.cell.inner.lock().pending += renewals.len();
            self.keeper.take(&self.cell, renewals);
        }
        Ok(())
    }
}

impl Inner {
    fn note_sent(&mut self, answered: &Answered, now: Reading) {
        match answered.answer {
            Answer::Outcome(RenewalOutcome::SessionGone) => {
                self.gates.remove(&answered.session);
            }
            Answer::Outcome(RenewalOutcome::Extended { number, .. }) => {
                if let Some(gate) = self.gates.get_mut(&answered.session) {
                    gate.ack_sent(number, now);
                }
            }
            Answer::Outcome(_) | Answer::Resend => {
                if let Some(gate) = self.gates.get_mut(&answered.session) {
                    gate.resend_sent(now);
                }
            }
        }
    }
}

impl<S> Stream for KeepAliveStream<S>
where
    S: Stream<Item = Result<v1::KeepAliveRequest, tonic::Status>> + Unpin,
{
    type Item = Result<v1::KeepAliveResponse, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Before anything is looked at, so that an answer that comes meanwhile wakes this task.
        self.cell.waker.register(cx.waker());
        let mut reads = 0;
        while !self.ended && self.cell.inner.lock().pending < MAX_PENDING {
            if reads == MAX_READS {
                cx.waker().wake_by_ref();
                break;
            }
            reads += 1;
            match Pin::new(&mut self.incoming).poll_next(cx) {
                Poll::Ready(Some(Ok(message))) => {
                    if let Err(invalid) = self.take_message(&message) {
                        self.ended = true;
                        return Poll::Ready(Some(Err(invalid)));
                    }
                }
                // A client that vanished gets no answers; what it renewed still counts.
                Poll::Ready(Some(Err(_))) => return Poll::Ready(None),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => break,
            }
        }
        if let Some(response) = self.take_answers() {
            return Poll::Ready(Some(Ok(response)));
        }
        if self.ended && self.cell.inner.lock().pending == 0 {
            return Poll::Ready(None);
        }
        Poll::Pending
    }
}

impl<S> Drop for KeepAliveStream<S> {
    fn drop(&mut self) {
        let lost = {
            let mut inner = self.cell.inner.lock();
            inner.closed = true;
            inner.answers = Vec::new();
            inner.gates = HashMap::new();
            std::mem::take(&mut inner.pending)
        };
        let metrics = self.keeper.metrics();
        metrics.renewals_waiting.dec_by(i64::try_from(lost).unwrap_or(i64::MAX));
        metrics.keepalive_streams.dec();
    }
}
