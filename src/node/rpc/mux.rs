//! The answering half of a stream that carries many calls.
//!
//! All calls of a stream are under way at once; answers that are ready together leave together. The
//! task that writes the answers reads the calls too and does their work, so none is spawned and
//! nothing is handed from one to another.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{Stream, StreamExt as _};
use regent_rpc::mux::MAX_BATCH;
use regent_rpc::pb::v1::answer::Outcome;
use regent_rpc::pb::v1::{Answer, AnswerBatch, Call, CallBatch, Failure};
use tonic::Status;

/// Answers in one message at most, and the size from which on no more are added.
const MAX_ANSWERS: usize = 512;
const MAX_ANSWER_BATCH_BYTES: usize = 128 * 1024;
/// Messages read before others get their turn.
const MAX_READS: usize = 16;

/// What becomes a call's answer.
pub type Work = BoxFuture<'static, Answer>;

/// Serves a stream: `act` begins the work of one call, `judge` may end the stream before a message
/// is looked at. At most `most` calls are under way, give or take one message; the rest waits in the
/// connection's window.
pub fn serve<S, J, A>(
    calls: S,
    most: usize,
    judge: J,
    act: A,
) -> BoxStream<'static, Result<AnswerBatch, Status>>
where
    S: Stream<Item = Result<CallBatch, Status>> + Send + Unpin + 'static,
    J: FnMut() -> Result<(), Status> + Send + Unpin + 'static,
    A: Fn(Call) -> Work + Send + Unpin + 'static,
{
    Serving { calls, most, judge, act, under_way: FuturesUnordered::new(), ended: false }.boxed()
}

struct Serving<S, J, A> {
    calls: S,
    most: usize,
    judge: J,
    act: A,
    under_way: FuturesUnordered<Work>,
    ended: bool,
}

impl<S, J, A> Serving<S, J, A>
where
    J: FnMut() -> Result<(), Status>,
    A: Fn(Call) -> Work,
{
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
}

impl<S, J, A> Stream for Serving<S, J, A>
where
    S: Stream<Item = Result<CallBatch, Status>> + Unpin,
    J: FnMut() -> Result<(), Status> + Unpin,
    A: Fn(Call) -> Work + Unpin,
{
    type Item = Result<AnswerBatch, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut reads = 0;
        while !self.ended && self.under_way.len() < self.most {
            if reads == MAX_READS {
                cx.waker().wake_by_ref();
                break;
            }
            reads += 1;
            match self.calls.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(batch))) => {
                    if let Err(status) = self.begin(batch) {
                        (self.ended, self.under_way) = (true, FuturesUnordered::new());
                        return Poll::Ready(Some(Err(status)));
                    }
                }
                // A broken stream: nobody waits for the answers.
                Poll::Ready(Some(Err(_))) => return Poll::Ready(None),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => break,
            }
        }
        let (mut answers, mut bytes) = (Vec::new(), 0);
        while answers.len() < MAX_ANSWERS && bytes < MAX_ANSWER_BATCH_BYTES {
            match self.under_way.poll_next_unpin(cx) {
                Poll::Ready(Some(answer)) => {
                    bytes += size(&answer);
                    answers.push(answer);
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        match (answers.is_empty(), self.ended && self.under_way.is_empty()) {
            (false, _) => Poll::Ready(Some(Ok(AnswerBatch { answers }))),
            (true, true) => Poll::Ready(None),
            (true, false) => Poll::Pending,
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
    use futures::{FutureExt as _, stream};
    use std::sync::Arc;
    use tokio::sync::Semaphore;

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
        assert!(answers.next().now_or_never().is_none(), "nothing is done yet");
        gate.add_permits(4);
        let first = answers.next().await.expect("more").expect("answers");
        assert_eq!(first.answers.len(), 4);
        assert!(answers.next().now_or_never().is_none(), "one is under way");
        gate.add_permits(1);
        let second = answers.next().await.expect("more").expect("answers");
        assert_eq!(second.answers.len(), 1);
        assert!(answers.next().await.is_none());
    }

    #[tokio::test]
    async fn no_more_is_read_than_may_be_under_way() {
        let gate = Arc::new(Semaphore::new(0));
        let read = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = read.clone();
        let calls = stream::iter((0..100_u64).map(move |at| {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            batch(at..at + 1)
        }));
        let mut answers = serve(calls, 4, || Ok(()), gated(&gate));
        assert!(answers.next().now_or_never().is_none());
        assert_eq!(read.load(std::sync::atomic::Ordering::Relaxed), 4);
        gate.add_permits(100);
        let mut seen = 0;
        while let Some(batch) = answers.next().await {
            seen += batch.expect("answers").answers.len();
        }
        assert_eq!(seen, 100);
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
        drop(answers);
        assert_eq!(Arc::strong_count(&gate), 1);
    }
}
