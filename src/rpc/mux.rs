//! The asking half of a stream that carries many calls.
//!
//! Calls that wait together leave in one message, and their answers come back the same way: a
//! stream of its own for each would cost both ends more than the work that is asked for. What
//! became of a call is always told: answered, lost on the way, or never sent.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::task::AtomicWaker;
use futures::{Stream, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::calls::REQUEST_ID;
use crate::pb::v1;
use crate::pb::v1::answer::Outcome;

/// Calls that wait for the stream; more than all requests a node admits at once by default.
const MAX_WAITING: usize = 8_192;
/// Calls in one message at most.
pub const MAX_BATCH: usize = 512;
/// The other end answers this much before the caller gives up, so that its reason arrives.
const ANSWER_EARLIER: Duration = Duration::from_millis(5);

/// What became of a call.
#[derive(Debug)]
pub enum Asked {
    /// The answer, or a status that the other end gave.
    Answer(Result<Bytes, Status>),
    /// It may or may not have arrived; why the stream ended.
    Lost(Status),
    /// It was not sent; why.
    NotSent(Status),
}

/// A call on its way to the stream.
#[derive(Debug)]
pub struct Ask {
    /// As in [`v1::Call::method`].
    pub method: &'static str,
    /// The encoded request.
    pub body: Bytes,
    /// By when the answer must be there.
    pub until: Instant,
    /// As in [`v1::Call::request_id`].
    pub request_id: String,
}

impl Ask {
    /// Without a request id.
    pub fn new(method: &'static str, body: Bytes, until: Instant) -> Self {
        Self { method, body, until, request_id: String::new() }
    }
}

struct Item {
    ask: Ask,
    tell: oneshot::Sender<Asked>,
}

/// One stream. Ends when dropped, once all that was asked is answered.
#[derive(Clone)]
pub struct Mux {
    queue: mpsc::Sender<Item>,
    shared: Arc<Shared>,
}

/// Bounds of a stream.
#[derive(Clone, Copy, Debug)]
pub struct MuxLimits {
    /// Requests in one message, in bytes; a message of one call may be larger.
    pub batch_bytes: usize,
    /// Calls sent and not answered. At most what the other end has under way: beyond that it reads no
    /// more, and what waits on the way there is done although its caller may have left.
    pub under_way: usize,
}

/// What both directions of a stream know.
struct Shared {
    calls: Mutex<Calls>,
    /// The request side, while it waits for answers.
    room: AtomicWaker,
}

struct Calls {
    /// Callers whose calls were sent; an error once the stream has ended, so that nobody is added to
    /// those who were told.
    sent: Result<HashMap<u64, oneshot::Sender<Asked>>, Status>,
    /// Calls that were not sent and never will be: told so once it is known why.
    left: Vec<Item>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, why: &Status) {
        let mut calls = self.lock();
        let sent = std::mem::replace(&mut calls.sent, Err(why.clone()));
        let left = std::mem::take(&mut calls.left);
        drop(calls);
        for (_, tell) in sent.into_iter().flatten() {
            let _ = tell.send(Asked::Lost(why.clone()));
        }
        for item in left {
            let _ = item.tell.send(Asked::NotSent(why.clone()));
        }
    }
}

impl Mux {
    /// A stream within `limits`; `open` sends its messages. Must be called in a tokio runtime.
    pub fn start<F, O, S>(limits: MuxLimits, open: F) -> Self
    where
        F: FnOnce(Outgoing) -> O + Send + 'static,
        O: Future<Output = Result<S, Status>> + Send,
        S: Stream<Item = Result<v1::AnswerBatch, Status>> + Send + Unpin,
    {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let calls = Mutex::new(Calls { sent: Ok(HashMap::new()), left: Vec::new() });
        let shared = Arc::new(Shared { calls, room: AtomicWaker::new() });
        let outgoing = Outgoing { waiting: Some(waiting), shared: shared.clone(), next: 0, limits };
        let mux = Self { queue, shared: shared.clone() };
        tokio::spawn(async move {
            let why = match open(outgoing).await {
                Ok(answers) => deliver(answers, &shared).await,
                Err(status) => status,
            };
            tracing::debug!(%why, "a stream of calls ended");
            shared.end(&why);
        });
        mux
    }

    /// Whether nothing can be asked any more.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed() || self.shared.lock().sent.is_err()
    }

    /// Sends `ask`; the future waits for what became of it, for as long as the stream lasts.
    /// Dropped earlier, the call may still take effect.
    pub fn ask(&self, ask: Ask) -> impl Future<Output = Asked> + Send + use<> {
        let (tell, told) = oneshot::channel();
        let queued = self.queue.try_send(Item { ask, tell });
        async move {
            match queued {
                Ok(()) => told.await.unwrap_or_else(|_| Asked::Lost(ended())),
                Err(mpsc::error::TrySendError::Closed(_)) => Asked::NotSent(ended()),
                Err(mpsc::error::TrySendError::Full(_)) => {
                    Asked::NotSent(Status::unavailable("too many calls wait for the stream"))
                }
            }
        }
    }
}

fn ended() -> Status {
    Status::unavailable("the stream of calls has ended")
}

/// Hands answers to those who wait for them; returns why the stream ended.
async fn deliver(
    mut answers: impl Stream<Item = Result<v1::AnswerBatch, Status>> + Unpin,
    shared: &Shared,
) -> Status {
    loop {
        match answers.next().await {
            Some(Ok(batch)) => {
                let mut calls = shared.lock();
                for answer in batch.answers {
                    let tell = calls.sent.as_mut().ok().and_then(|sent| sent.remove(&answer.id));
                    if let Some(tell) = tell {
                        // A caller that gave up does not care.
                        let _ = tell.send(Asked::Answer(outcome(answer)));
                    }
                }
                drop(calls);
                shared.room.wake();
            }
            None => return ended(),
            Some(Err(status)) => return status,
        }
    }
}

fn outcome(answer: v1::Answer) -> Result<Bytes, Status> {
    match answer.outcome {
        Some(Outcome::Response(response)) => Ok(response),
        Some(Outcome::Failure(failed)) => {
            let code = match Code::from_i32(failed.code) {
                // A failure that says "ok" is none of ours.
                Code::Ok => Code::Internal,
                code => code,
            };
            let mut status = Status::with_details(code, failed.message, failed.details);
            if let Ok(id) = MetadataValue::try_from(failed.request_id)
                && !id.is_empty()
            {
                status.metadata_mut().insert(REQUEST_ID, id);
            }
            Err(status)
        }
        None => Err(Status::internal("the answer is empty")),
    }
}

/// The request side of a stream: each time the connection can take a message, all that waits.
pub struct Outgoing {
    waiting: Option<mpsc::Receiver<Item>>,
    shared: Arc<Shared>,
    next: u64,
    limits: MuxLimits,
}

impl Outgoing {
    fn send(&mut self, item: Item, batch: &mut v1::CallBatch) -> usize {
        let Item { ask, tell } = item;
        let left = ask.until.saturating_duration_since(Instant::now());
        // The caller has gone, or nothing could be answered in time.
        if tell.is_closed() || left.is_zero() {
            let _ = tell.send(Asked::NotSent(Status::deadline_exceeded("it waited too long")));
            return 0;
        }
        let ttl = left.saturating_sub(ANSWER_EARLIER).max(Duration::from_millis(1));
        let ttl_ms = u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX);
        let id = self.next;
        self.next += 1;
        match self.shared.lock().sent.as_mut() {
            Ok(sent) => sent.insert(id, tell),
            Err(why) => {
                let _ = tell.send(Asked::NotSent(why.clone()));
                return 0;
            }
        };
        let bytes = ask.body.len();
        batch.calls.push(v1::Call {
            id,
            ttl_ms,
            method: ask.method.to_owned(),
            request: ask.body,
            request_id: ask.request_id,
        });
        bytes
    }
}

impl Stream for Outgoing {
    type Item = v1::CallBatch;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut batch = v1::CallBatch::default();
        let mut bytes = 0;
        // Before it is looked at, so that answers that come meanwhile wake this task.
        self.shared.room.register(cx.waker());
        let under_way = self.shared.lock().sent.as_ref().map_or(0, HashMap::len);
        let most = MAX_BATCH.min(self.limits.under_way.saturating_sub(under_way));
        while batch.calls.len() < most && bytes < self.limits.batch_bytes {
            let Some(waiting) = &mut self.waiting else { break };
            match waiting.poll_recv(cx) {
                Poll::Ready(Some(item)) => bytes += self.send(item, &mut batch),
                Poll::Ready(None) => self.waiting = None,
                Poll::Pending => break,
            }
        }
        match (batch.calls.is_empty(), self.waiting.is_some()) {
            (false, _) => Poll::Ready(Some(batch)),
            (true, true) => Poll::Pending,
            (true, false) => Poll::Ready(None),
        }
    }
}

impl Drop for Outgoing {
    /// What still waits has not been sent; told so, its callers may ask elsewhere. A connection that
    /// could not be made drops this before it says why: then those who wait hear of that.
    fn drop(&mut self) {
        let Some(waiting) = &mut self.waiting else { return };
        waiting.close();
        let mut calls = self.shared.lock();
        while let Ok(item) = waiting.try_recv() {
            match &calls.sent {
                Ok(_) => calls.left.push(item),
                Err(why) => drop(item.tell.send(Asked::NotSent(why.clone()))),
            }
        }
    }
}
