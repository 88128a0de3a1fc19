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
use regent_core::id::{Nonce, RenewalNumber, Revision, SessionId};
use regent_core::lease::gate::{Gate, Verdict};
use regent_core::state::session::Session;
use regent_core::time::Reading;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub session: SessionId,
    pub number: RenewalNumber,
    pub outcome: v1::renewed::Outcome,
    pub grant: u64,
}

/// What the keeper and a stream share.
pub(super) struct Cell {
    owner: Principal,
    inner: Mutex<Inner>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct Inner {
    answers: Vec<Answer>,
    pending: usize,
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
    pub(super) fn answer(&self, answers: Vec<Answer>) {
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
        if inner.answers.is_empty() {
            return None;
        }
        let now = self.keeper.now();
        let rest = inner.answers.split_off(inner.answers.len().min(MAX_ANSWERS));
        let sent = std::mem::replace(&mut inner.answers, rest);
        inner.pending = inner.pending.saturating_sub(sent.len());
        let mut renewed = Vec::with_capacity(sent.len());
        for answer in &sent {
            inner.note_sent(answer, now);
            renewed.push(v1::Renewed {
                session: answer.session.0,
                number: answer.number.0,
                outcome: answer.outcome.into(),
                grant: answer.grant,
            });
        }
        drop(inner);
        self.count(&sent);
        Some(v1::KeepAliveResponse { renewed })
    }

    fn count(&self, sent: &[Answer]) {
        use v1::renewed::Outcome;
        let metrics = self.keeper.metrics();
        metrics.renewals_waiting.dec_by(i64::try_from(sent.len()).unwrap_or(i64::MAX));
        let kinds = [
            (Outcome::Extended, "extended"),
            (Outcome::SessionGone, "session_gone"),
            (Outcome::NonceStale, "nonce_stale"),
            (Outcome::NumberStale, "number_stale"),
            (Outcome::Resend, "resend"),
        ];
        for (outcome, kind) in kinds {
            let count = sent.iter().filter(|answer| answer.outcome == outcome).count();
            if count > 0 {
                metrics.renewals.get_or_create(&Kind { kind }).inc_by(count as u64);
            }
        }
    }

    /// Takes one message; returns whether it held anything.
    fn take_message(&self, message: v1::KeepAliveRequest) {
        if message.renewals.is_empty() {
            return;
        }
        let renewals: Vec<Renewal> = message.renewals.iter().map(renewal).collect();
        self.cell.inner.lock().pending += renewals.len();
        self.keeper.take(&self.cell, renewals);
    }
}

fn renewal(wire: &v1::Renewal) -> Renewal {
    Renewal {
        session: SessionId(wire.session),
        nonce: Nonce(wire.nonce),
        number: RenewalNumber(wire.number),
        acked: RenewalNumber(wire.acked),
        known_grant: Revision(wire.known_grant),
    }
}

impl Inner {
    fn note_sent(&mut self, answer: &Answer, now: Reading) {
        use v1::renewed::Outcome;
        match answer.outcome {
            Outcome::Extended => {
                if let Some(gate) = self.gates.get_mut(&answer.session) {
                    gate.ack_sent(answer.number, now);
                }
            }
            Outcome::SessionGone => {
                self.gates.remove(&answer.session);
            }
            _ => {
                if let Some(gate) = self.gates.get_mut(&answer.session) {
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
                Poll::Ready(Some(Ok(message))) => self.take_message(message),
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
