//! The answering half of a stream that carries many calls.
//!
//! All calls of a stream are under way at once; answers that are ready together leave together. One
//! task does the work of a stream, whether or not its client reads the answers: each call keeps its
//! own deadline and gives back its place among the node's requests, and what a client leaves unread
//! counts as under way, so that nothing more is read of it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt as _, Stream, StreamExt as _};
use regent_rpc::mux::MAX_BATCH;
use regent_rpc::pb::v1::answer::Outcome;
use regent_rpc::pb::v1::{Answer, AnswerBatch, Call, CallBatch, Failure};
use tokio::sync::{Notify, mpsc};
use tonic::Status;

/// Answers in one message at most, and the size from which on no more are added.
const MAX_ANSWERS: usize = 512;
const MAX_ANSWER_BATCH_BYTES: usize = 128 * 1024;

/// What becomes a call's answer.
pub type Work = BoxFuture<'static, Answer>;

/// Serves a stream: `act` begins the work of one call, `judge` may end the stream before a message
/// is looked at. At most `most` calls are under way or answered and unread, give or take one message;
/// the rest waits in the connection's window.
pub fn serve<S, J, A>(
    calls: S,
    most: usize,
    judge: J,
    act: A,
) -> BoxStream<'static, Result<AnswerBatch, Status>>
where
    S: Stream<Item = Result<CallBatch, Status>> + Send + Unpin + 'static,
    J: FnMut() -> Result<(), Status> + Send + 'static,
    A: Fn(Call) -> Work + Send + 'static,
{
    // One more for a status that ends the stream.
    let (finished, answers) = mpsc::channel(most + MAX_BATCH + 1);
    let read = Arc::new(Notify::new());
    let under_way = FuturesUnordered::new();
    let serving = Serving { calls, most, judge, act, under_way, finished, read: read.clone() };
    tokio::spawn(serving.run());
    Answers { answers, read, last: None }.boxed()
}

type Finished = Result<Answer, Status>;

/// The task of one stream.
struct Serving<S, J, A> {
    calls: S,
    most: usize,
    judge: J,
    act: A,
    under_way: FuturesUnordered<Work>,
    finished: mpsc::Sender<Finished>,
    /// Told when the client has taken answers.
    read: Arc<Notify>,
}

impl<S, J, A> Serving<S, J, A>
where
    S: Stream<Item = Result<CallBatch, Status>> + Unpin,
    J: FnMut() -> Result<(), Status>,
    A: Fn(Call) -> Work,
{
    async fn run(mut self) {
        let mut open = true;
        while open || !self.under_way.is_empty() {
            let unread = self.finished.max_capacity() - self.finished.capacity();
            let room = self.under_way.len() + unread < self.most;
            tokio::select! {
                Some(answer) = self.under_way.next() => self.finish(answer),
                batch = self.calls.next(), if open && room => match batch {
                    Some(Ok(batch)) => {
                        if let Err(status) = self.begin(batch) {
                            // Full only for a client that reads nothing, and so not this either.
                            let _ = self.finished.try_send(Err(status));
                            return;
                        }
                    }
                    // A broken stream: nobody waits for the answers.
                    Some(Err(_)) => return,
                    None => open = false,
                },
                () = self.read.notified(), if open && !room => {}
                () = self.finished.closed() => return,
            }
        }
    }

    fn begin(&mut self, batch: CallBatch) -> Result<(), Status> {
        (self.judge)()?;
        if batch.calls.len() > MAX_BATCH {
            return Err(Status::invalid_argument(format!(
                "a message may hold {MAX_BATCH} calls, this one has {}",
                batch.calls.len()
            )));
        }
        self.under_way.extend(batch.calls.into_iter().map(&self.act));
        Ok(())
    }

    /// Hands over an answer and whatever else is ready.
    fn finish(&mut self, first: Answer) {
        let mut next = Some(first);
        while let Some(answer) = next {
            let kept = self.finished.try_send(Ok(answer));
            debug_assert!(
                !matches!(kept, Err(mpsc::error::TrySendError::Full(_))),
                "there is room for all that may be under way"
            );
            next = self.under_way.next().now_or_never().flatten();
        }
    }
}

/// What the client reads.
struct Answers {
    answers: mpsc::Receiver<Finished>,
    read: Arc<Notify>,
    /// The status that ends the stream, once the answers before it are read.
    last: Option<Status>,
}

impl Stream for Answers {
    type Item = Result<AnswerBatch, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let (mut answers, mut bytes, mut ended) = (Vec::new(), 0, false);
        while self.last.is_none() && answers.len() < MAX_ANSWERS && bytes < MAX_ANSWER_BATCH_BYTES {
            match self.answers.poll_recv(cx) {
                Poll::Ready(Some(Ok(answer))) => {
                    bytes += size(&answer);
                    answers.push(answer);
                }
                Poll::Ready(Some(Err(status))) => self.last = Some(status),
                Poll::Ready(None) => {
                    ended = true;
                    break;
                }
                Poll::Pending => break,
            }
        }
        if !answers.is_empty() {
            self.read.notify_one();
            return Poll::Ready(Some(Ok(AnswerBatch { answers })));
        }
        match self.last.take() {
            Some(status) => Poll::Ready(Some(Err(status))),
            None if ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

fn size(answer: &Answer) -> usize {
    match &answer.outcome {
        Some(Outcome::Response(response)) => response.len(),
        Some(Outcome::Failure(failure)) => failure.message.len() + failure.details.len(),
        None => 0,
    }
}

/// A status as an answer's outcome; `request_id` as the log has it.
pub fn failure(status: &Status, request_id: String) -> Outcome {
    Outcome::Failure(Failure {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details: status.details().to_vec().into(),
        request_id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::sync::Semaphore;

    /// Lets the stream's task do what it can do now.
    async fn settle() {
        for _ in 0..2_000 {
            tokio::task::yield_now().await;
        }
    }

    fn call(id: u64) -> Call {
        Call { id, ..Call::default() }
    }

    fn answer(id: u64) -> Answer {
        Answer { id, outcome: Some(Outcome::Response(bytes::Bytes::new())) }
    }

    fn batch(ids: std::ops::Range<u64>) -> Result<CallBatch, Status> {
        Ok(CallBatch { calls: ids.map(call).collect() })
    }

    /// Answers wait for permits of `gate`.
    fn gated(gate: &Arc<Semaphore>) -> impl Fn(Call) -> Work + Send + Unpin + 'static {
        let gate = gate.clone();
        move |call| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.expect("open").forget();
                answer(call.id)
            }
            .boxed()
        }
    }

    #[tokio::test]
    async fn what_is_ready_together_leaves_together_and_the_end_waits_for_all() {
        let gate = Arc::new(Semaphore::new(0));
        let calls = stream::iter([batch(0..3), batch(3..5)]);
        let mut answers = serve(calls, 10, || Ok(()), gated(&gate));
        settle().await;
        assert!(answers.next().now_or_never().is_none(), "nothing is done yet");
        gate.add_permits(4);
        settle().await;
        let first = answers.next().await.expect("more").expect("answers");
        assert_eq!(first.answers.len(), 4);
        settle().await;
        assert!(answers.next().now_or_never().is_none(), "one is under way");
        gate.add_permits(1);
        let second = answers.next().await.expect("more").expect("answers");
        assert_eq!(second.answers.len(), 1);
        assert!(answers.next().await.is_none());
    }

    /// Endless calls, and how many of them were read.
    fn counted() -> (impl Stream<Item = Result<CallBatch, Status>> + Unpin, Arc<AtomicU64>) {
        let read = Arc::new(AtomicU64::new(0));
        let counted = read.clone();
        let calls = stream::iter((0..).map(move |at| {
            counted.fetch_add(1, Ordering::Relaxed);
            batch(at..at + 1)
        }));
        (calls, read)
    }

    #[tokio::test]
    async fn no_more_is_read_than_may_be_under_way() {
        let gate = Arc::new(Semaphore::new(0));
        let (calls, read) = counted();
        let mut answers = serve(calls, 4, || Ok(()), gated(&gate));
        settle().await;
        assert_eq!(read.load(Ordering::Relaxed), 4);
        gate.add_permits(100);
        let mut seen = 0;
        while seen < 100 {
            seen += answers.next().await.expect("more").expect("answers").answers.len();
        }
    }

    #[tokio::test]
    async fn a_client_that_reads_no_answer_holds_up_no_work_and_is_read_no_more() {
        let gate = Arc::new(Semaphore::new(1_000));
        let (calls, read) = counted();
        let mut answers = serve(calls, 4, || Ok(()), gated(&gate));
        settle().await;
        assert_eq!(read.load(Ordering::Relaxed), 4);
        assert_eq!(gate.available_permits(), 996, "what was read is done");
        assert_eq!(answers.next().await.expect("more").expect("answers").answers.len(), 4);
        settle().await;
        assert_eq!(read.load(Ordering::Relaxed), 8, "once it reads, so do we");
    }

    #[tokio::test]
    async fn a_stream_that_is_judged_bad_or_sends_too_much_ends_with_the_reason() {
        let gate = Arc::new(Semaphore::new(10));
        let judge = || Err(Status::permission_denied("gone"));
        let mut bad = serve(stream::iter([batch(0..1)]), 10, judge, gated(&gate));
        let said = bad.next().await.expect("a status").expect_err("refused");
        assert_eq!(said.code(), tonic::Code::PermissionDenied);
        assert!(bad.next().await.is_none());
        let large = batch(0..MAX_BATCH as u64 + 1);
        let mut large = serve(stream::iter([large]), 10, || Ok(()), gated(&gate));
        let said = large.next().await.expect("a status").expect_err("refused");
        assert_eq!(said.code(), tonic::Code::InvalidArgument);
        assert_eq!(gate.available_permits(), 10, "nothing was begun");
    }

    #[tokio::test]
    async fn a_broken_stream_drops_what_is_under_way() {
        let gate = Arc::new(Semaphore::new(0));
        let calls = stream::iter([batch(0..3), Err(Status::cancelled("gone"))]);
        let mut answers = serve(calls, 10, || Ok(()), gated(&gate));
        assert!(answers.next().await.is_none());
        settle().await;
        assert_eq!(Arc::strong_count(&gate), 1);
    }

    #[tokio::test]
    async fn a_client_that_went_away_ends_the_work() {
        let gate = Arc::new(Semaphore::new(0));
        let calls = stream::iter([batch(0..3)]).chain(stream::pending());
        let answers = serve(calls, 10, || Ok(()), gated(&gate));
        settle().await;
        drop(answers);
        settle().await;
        assert_eq!(Arc::strong_count(&gate), 1);
    }
}
