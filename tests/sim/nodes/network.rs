//! The simulated network under the nodes' Raft traffic.
//!
//! A message travels in a task of the world, not of its sender: it arrives even if the sender is
//! frozen or dead by then. Calls can be lost, delayed, overtaken and duplicated. Streams behave
//! like TCP: in order, stalled by a cut, broken now and then.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, Stream, StreamExt};
use futures::{FutureExt, SinkExt};
use regent_core::id::NodeId;
use regent_raft::api::{Member, RpcKind, Transport, TransportError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::node::Handle;
use super::world::{Addr, Answer, World};

/// Messages on their way on one stream.
const WINDOW: usize = 64;
/// How often a stalled stream looks whether the way is open again.
const RETRANSMIT: Duration = Duration::from_millis(20);

/// Asks a node something, in a task of that node, and brings the answer back.
pub async fn ask<T, F>(
    world: &World,
    from: Addr,
    to: u64,
    limit: Duration,
    question: F,
) -> Answer<T>
where
    T: Send + 'static,
    F: FnOnce(Handle) -> BoxFuture<'static, T> + Send + 'static,
{
    let deadline = Instant::now() + limit;
    let (back, answer) = oneshot::channel();
    let there = world.clone();
    tokio::spawn(async move {
        if !there.hop(from, to).await {
            return;
        }
        let Some(node) = there.running(to) else {
            if there.hop(to, from).await {
                let _ = back.send(None);
            }
            return;
        };
        let asked = node.clone();
        let Ok(value) = node.life.spawn(there.seed(), question(asked)).await else { return };
        if there.hop(to, from).await {
            let _ = back.send(Some(value));
        }
    });
    match tokio::time::timeout_at(deadline, answer).await {
        Ok(Ok(Some(value))) => Answer::Got(value),
        Ok(Ok(None)) => Answer::Refused,
        Ok(Err(_)) => {
            tokio::time::sleep_until(deadline).await;
            Answer::Lost
        }
        Err(_) => Answer::Lost,
    }
}

/// One node's way to the others.
pub struct Port {
    /// Whose.
    pub me: u64,
    /// Where.
    pub world: World,
}

fn lost() -> TransportError {
    TransportError("no answer".into())
}

impl Transport for Port {
    fn call(
        &self,
        to: NodeId,
        _member: &Member,
        kind: RpcKind,
        body: Bytes,
        ttl: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (world, me, to) = (self.world.clone(), self.me, to.0);
        async move {
            let (_, twice) = world.fate();
            if twice {
                let (world, body) = (world.clone(), body.clone());
                tokio::spawn(async move {
                    let _ = ask(&world, me, to, ttl, deliver(kind, body)).await;
                });
            }
            match ask(&world, me, to, ttl, deliver(kind, body)).await {
                Answer::Got(answer) => answer,
                Answer::Refused => Err(TransportError("connection refused".into())),
                Answer::Lost => Err(lost()),
            }
        }
        .boxed()
    }

    fn stream_append(
        &self,
        to: NodeId,
        _member: &Member,
        input: BoxStream<'static, Bytes>,
    ) -> Option<
        BoxFuture<
            'static,
            Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError>,
        >,
    > {
        let (world, me, to) = (self.world.clone(), self.me, to.0);
        Some(open_stream(world, me, to, input).boxed())
    }

    fn snapshot(
        &self,
        to: NodeId,
        _member: &Member,
        head: Bytes,
        data: Arc<Vec<u8>>,
        ttl: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (world, me, to) = (self.world.clone(), self.me, to.0);
        async move {
            let question = move |node: Handle| {
                async move { node.consensus.handle_snapshot(head, data.to_vec()).await }.boxed()
            };
            match ask(&world, me, to, ttl.min(Duration::from_secs(2)), question).await {
                Answer::Got(answer) => answer,
                Answer::Refused | Answer::Lost => Err(lost()),
            }
        }
        .boxed()
    }
}

type Delivery = BoxFuture<'static, Result<Bytes, TransportError>>;

fn deliver(kind: RpcKind, body: Bytes) -> impl FnOnce(Handle) -> Delivery + Send + 'static {
    move |node| async move { node.consensus.handle(kind, body).await }.boxed()
}

type Pipe<T> = (futures::channel::mpsc::Sender<T>, futures::channel::mpsc::Receiver<T>);

fn pipe<T>() -> Pipe<T> {
    futures::channel::mpsc::channel(WINDOW)
}

/// Moves what comes in to the other side, in order, as TCP would. Ends when either side does, or
/// when the connection breaks.
async fn wire<T: Send + 'static>(
    world: World,
    from: Addr,
    to: Addr,
    mut input: futures::channel::mpsc::Receiver<T>,
    mut output: futures::channel::mpsc::Sender<T>,
) {
    let mut on_the_way: VecDeque<(Instant, T)> = VecDeque::new();
    let mut free = Instant::now();
    loop {
        let next = match on_the_way.front() {
            None => input.next().await,
            Some((due, _)) => {
                let due = *due;
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(due) => {
                        while !world.open(from, to) {
                            if output.is_closed() {
                                return;
                            }
                            tokio::time::sleep(RETRANSMIT).await;
                        }
                        let Some((_, message)) = on_the_way.pop_front() else { return };
                        world.trace(from, to, 2, || format!("{from} > {to} streamed"));
                        if output.send(message).await.is_err() {
                            return;
                        }
                        continue;
                    }
                    next = input.next(), if on_the_way.len() < WINDOW => next,
                }
            }
        };
        let Some(message) = next else { break };
        let (broken, _) = world.fate();
        if broken && world.chance(200) {
            world.trace(from, to, 3, || format!("{from} > {to} stream broken"));
            return;
        }
        free = free.max(Instant::now() + world.latency());
        on_the_way.push_back((free, message));
    }
    for (due, message) in on_the_way {
        tokio::time::sleep_until(due).await;
        if !world.open(from, to) || output.send(message).await.is_err() {
            return;
        }
    }
}

async fn open_stream(
    world: World,
    me: u64,
    to: u64,
    input: BoxStream<'static, Bytes>,
) -> Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError> {
    let (near_in, far_in) = (pipe::<Bytes>(), pipe::<Bytes>());
    let (far_out, near_out) = (pipe(), pipe());
    let served = ask(&world, me, to, Duration::from_secs(1), {
        let (requests, mut answers) = (far_in.1, far_out.0);
        move |node: Handle| {
            async move {
                let mut stream = node.consensus.handle_append_stream(requests.boxed());
                let serve = async move {
                    while let Some(answer) = stream.next().await {
                        if answers.send(answer).await.is_err() {
                            return;
                        }
                    }
                };
                drop(node.life.spawn(node.world.seed(), serve));
            }
            .boxed()
        }
    });
    match served.await {
        Answer::Got(()) => {}
        Answer::Refused => return Err(TransportError("connection refused".into())),
        Answer::Lost => return Err(lost()),
    }
    tokio::spawn(wire(world.clone(), me, to, near_in.1, far_in.0));
    tokio::spawn(wire(world, to, me, far_out.1, near_out.0));
    let pump = input.map(Ok).forward(near_in.0).map(|_| ()).boxed();
    Ok(Duplex { pump: Some(pump), answers: near_out.1 }.boxed())
}

/// Answers of a stream; polling them also drives the requests, so that dropping the answers ends
/// the requests at once, as resetting an HTTP/2 stream does.
struct Duplex {
    pump: Option<BoxFuture<'static, ()>>,
    answers: futures::channel::mpsc::Receiver<Result<Bytes, TransportError>>,
}

impl Stream for Duplex {
    type Item = Result<Bytes, TransportError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(pump) = &mut self.pump
            && pump.poll_unpin(cx).is_ready()
        {
            self.pump = None;
        }
        self.answers.poll_next_unpin(cx)
    }
}
