//! The leader's end of a follower's stream of forwarded entries.
//!
//! All entries of a stream are under way at once; answers that are ready together leave together.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt as _, StreamExt as _};
use regent_core::command::Entry;
use regent_core::id::NodeId;
use regent_core::limits::MAX_ENTRY_BYTES;
use regent_rpc::pb::raft::forward_answer::Outcome;
use regent_rpc::pb::raft::{ForwardAnswer, ForwardAnswers, ForwardBatch, ForwardedEntry, Refusal};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::guard::MAX_DEADLINE;
use crate::admission::Pass;
use crate::shell::Shell;

/// Entries of one follower that are under way at most; the rest waits in the connection's window.
const MAX_UNDER_WAY: usize = 8_192;
/// Answers in one message at most.
const MAX_ANSWERS: usize = 512;
/// Messages of answers that wait for a slow follower before its next batch is read.
const ANSWERS_QUEUED: usize = 4;

type UnderWay = FuturesUnordered<BoxFuture<'static, ForwardAnswer>>;

/// Proposes what `from` sends; the answers end when it stops sending and all is answered.
pub fn serve(
    shell: &Arc<Shell>,
    mut from: Pass,
    mut batches: Streaming<ForwardBatch>,
) -> BoxStream<'static, Result<ForwardAnswers, Status>> {
    let shell = shell.clone();
    let (answers, outgoing) = mpsc::channel(ANSWERS_QUEUED);
    tokio::spawn(async move {
        let mut under_way = UnderWay::new();
        let mut open = true;
        while open || !under_way.is_empty() {
            tokio::select! {
                batch = batches.message(), if open && under_way.len() < MAX_UNDER_WAY => match batch {
                    Ok(Some(batch)) => {
                        if let Err(why) = from.still_good() {
                            tracing::warn!(from = %from.node(), why, "forwarding was ended");
                            return;
                        }
                        let from = from.node();
                        under_way.extend(batch.entries.into_iter().map(|e| propose(&shell, from, e)));
                    }
                    // A broken stream: nobody waits for the answers.
                    Err(_) => return,
                    Ok(None) => open = false,
                },
                Some(first) = under_way.next() => {
                    let ready = ready_too(first, &mut under_way);
                    if answers.send(Ok(ForwardAnswers { answers: ready })).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    ReceiverStream::new(outgoing).boxed()
}

fn ready_too(first: ForwardAnswer, under_way: &mut UnderWay) -> Vec<ForwardAnswer> {
    let mut ready = vec![first];
    while ready.len() < MAX_ANSWERS {
        match under_way.next().now_or_never() {
            Some(Some(answer)) => ready.push(answer),
            Some(None) | None => break,
        }
    }
    ready
}

fn propose(
    shell: &Arc<Shell>,
    from: NodeId,
    forwarded: ForwardedEntry,
) -> BoxFuture<'static, ForwardAnswer> {
    let shell = shell.clone();
    let ForwardedEntry { id, ttl_ms, entry } = forwarded;
    let ttl = Duration::from_millis(ttl_ms.into()).min(MAX_DEADLINE);
    async move {
        // The sender has checked it; a damaged one must not get into the log all the same.
        let outcome = if entry.len() > MAX_ENTRY_BYTES || Entry::decode(&entry).is_err() {
            tracing::error!(%from, bytes = entry.len(), "a node forwarded an unreadable entry");
            refusal(&Status::invalid_argument("the entry cannot be read"))
        } else {
            match shell.proposer.as_leader(entry, Instant::now() + ttl).await {
                Ok(reply) => Outcome::Reply(
                    postcard::to_stdvec(&reply)
                        .expect("a reply has no type postcard refuses")
                        .into(),
                ),
                Err(status) => refusal(&status),
            }
        };
        ForwardAnswer { id, outcome: Some(outcome) }
    }
    .boxed()
}

fn refusal(status: &Status) -> Outcome {
    Outcome::Refusal(Refusal {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details: status.details().to_vec().into(),
    })
}
