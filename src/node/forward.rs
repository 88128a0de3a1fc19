//! A follower's end of forwarding: one stream to the leader carries the entries of all callers.
//!
//! Entries that wait together leave in one message, and their answers come back the same way: a
//! call of its own for each would cost both nodes more than the consensus itself. What became of
//! an entry is always told: answered, lost on the way, or never sent.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use regent_core::id::NodeId;
use regent_core::reply::Reply;
use regent_rpc::convert::status::Leader;
use regent_rpc::pb::raft::forward_answer::Outcome;
use regent_rpc::pb::raft::{ForwardAnswer, ForwardBatch, ForwardedEntry};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::peers::Peers;

/// Entries that wait for the stream; more than all requests a node admits at once by default.
const MAX_WAITING: usize = 8_192;
/// Entries in one message at most, and their bytes: far below the largest message among nodes.
const MAX_BATCH: usize = 512;
const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// The leader answers this much before the caller gives up, so that its reason arrives.
const ANSWER_EARLIER: Duration = Duration::from_millis(5);

/// What became of a forwarded entry.
#[derive(Debug)]
pub enum Forwarded {
    /// The leader's answer; a status says that it was refused, or what is unknown about it.
    Answer(Result<Reply, Status>),
    /// It may or may not have arrived.
    Lost,
    /// It was not sent.
    NotSent,
}

/// Streams to leaders; one at a time, made when first needed.
pub struct Forwarder {
    peers: Arc<Peers>,
    lane: Mutex<Option<Lane>>,
}

struct Lane {
    to: NodeId,
    address: String,
    queue: mpsc::Sender<Item>,
}

struct Item {
    entry: Bytes,
    until: Instant,
    tell: oneshot::Sender<Forwarded>,
}

/// Callers whose entries were sent; `None` once the stream has ended, so that nobody is added to
/// those who were told.
type Sent = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Forwarded>>>>>;

impl Forwarder {
    /// Opens streams through `peers`.
    pub fn new(peers: Arc<Peers>) -> Self {
        Self { peers, lane: Mutex::default() }
    }

    /// Hands `entry` to `leader` and waits for its answer until `until`. Dropped earlier, the entry
    /// may still take effect.
    pub async fn hand_over(&self, leader: &Leader, entry: Bytes, until: Instant) -> Forwarded {
        let (tell, told) = oneshot::channel();
        if !self.queue(leader, Item { entry, until, tell }) {
            return Forwarded::NotSent;
        }
        match tokio::time::timeout_at(until, told).await {
            Ok(Ok(outcome)) => outcome,
            // Dropped with the stream, or no answer in time.
            Ok(Err(_)) | Err(_) => Forwarded::Lost,
        }
    }

    fn queue(&self, leader: &Leader, item: Item) -> bool {
        let mut lane = self.lane.lock();
        let item = match lane.as_ref() {
            Some(open) if open.to == leader.node && open.address == leader.address => {
                match open.queue.try_send(item) {
                    Ok(()) => return true,
                    Err(mpsc::error::TrySendError::Full(_)) => return false,
                    // The stream has ended; the next one may fare better.
                    Err(mpsc::error::TrySendError::Closed(item)) => item,
                }
            }
            _ => item,
        };
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        let sent = queue.try_send(item).is_ok();
        tokio::spawn(run(self.peers.clone(), leader.clone(), waiting));
        *lane = Some(Lane { to: leader.node, address: leader.address.clone(), queue });
        sent
    }
}

/// One stream, from opening to its end.
async fn run(peers: Arc<Peers>, leader: Leader, waiting: mpsc::Receiver<Item>) {
    let sent: Sent = Arc::new(Mutex::new(Some(HashMap::new())));
    let outgoing = Outgoing { waiting: Some(waiting), sent: sent.clone(), next: 0 };
    let why = match peers.peer(leader.node, &leader.address) {
        Err(bad) => bad.to_string(),
        Ok(mut client) => match client.forward(peers.stream_request(outgoing)).await {
            Err(status) => status.message().to_owned(),
            Ok(answers) => {
                let mut answers = answers.into_inner();
                loop {
                    match answers.message().await {
                        Ok(Some(batch)) => {
                            let mut sent = sent.lock();
                            for answer in batch.answers {
                                let tell = sent.as_mut().and_then(|sent| sent.remove(&answer.id));
                                if let Some(tell) = tell {
                                    // A caller that gave up does not care.
                                    let _ = tell.send(outcome(answer));
                                }
                            }
                        }
                        Ok(None) => break "the leader ended it".to_owned(),
                        Err(status) => break status.message().to_owned(),
                    }
                }
            }
        },
    };
    tracing::debug!(leader = %leader.node, why, "a stream of forwarded entries ended");
    for (_, tell) in sent.lock().take().unwrap_or_default() {
        let _ = tell.send(Forwarded::Lost);
    }
}

fn outcome(answer: ForwardAnswer) -> Forwarded {
    Forwarded::Answer(match answer.outcome {
        Some(Outcome::Reply(reply)) => postcard::from_bytes(&reply)
            .map_err(|_| Status::internal("the leader's reply is unreadable")),
        Some(Outcome::Refusal(r)) => {
            Err(Status::with_details(Code::from_i32(r.code), r.message, r.details))
        }
        None => Err(Status::internal("the leader's answer is empty")),
    })
}

/// The request side of a stream: each time the connection can take a message, all that waits.
struct Outgoing {
    waiting: Option<mpsc::Receiver<Item>>,
    sent: Sent,
    next: u64,
}

impl Outgoing {
    fn send(&mut self, item: Item, batch: &mut ForwardBatch) -> usize {
        let left = item.until.saturating_duration_since(Instant::now());
        // The caller has gone, or nothing could be answered in time.
        if item.tell.is_closed() || left.is_zero() {
            let _ = item.tell.send(Forwarded::NotSent);
            return 0;
        }
        let ttl = left.saturating_sub(ANSWER_EARLIER).max(Duration::from_millis(1));
        let ttl_ms = u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX);
        let id = self.next;
        self.next += 1;
        match self.sent.lock().as_mut() {
            Some(sent) => sent.insert(id, item.tell),
            None => {
                let _ = item.tell.send(Forwarded::NotSent);
                return 0;
            }
        };
        let bytes = item.entry.len();
        batch.entries.push(ForwardedEntry { id, ttl_ms, entry: item.entry });
        bytes
    }
}

impl Stream for Outgoing {
    type Item = ForwardBatch;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ForwardBatch>> {
        let mut batch = ForwardBatch::default();
        let mut bytes = 0;
        while batch.entries.len() < MAX_BATCH && bytes < MAX_BATCH_BYTES {
            let Some(waiting) = &mut self.waiting else { break };
            match waiting.poll_recv(cx) {
                Poll::Ready(Some(item)) => bytes += self.send(item, &mut batch),
                // Another leader has a stream now, or the node stops.
                Poll::Ready(None) => self.waiting = None,
                Poll::Pending => break,
            }
        }
        match (batch.entries.is_empty(), self.waiting.is_some()) {
            (false, _) => Poll::Ready(Some(batch)),
            (true, true) => Poll::Pending,
            (true, false) => Poll::Ready(None),
        }
    }
}

impl Drop for Outgoing {
    /// What still waits has not been sent; told so, its callers may try another leader.
    fn drop(&mut self) {
        if let Some(waiting) = &mut self.waiting {
            waiting.close();
            while let Ok(item) = waiting.try_recv() {
                let _ = item.tell.send(Forwarded::NotSent);
            }
        }
    }
}
