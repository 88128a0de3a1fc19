//! Calls over a stream against a node that is told how to misbehave.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use prost::Message as _;
use regent_core::authz::Role;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Calls, MAX_SMALL, REQUEST_ID, method};
use crate::channel::{ChannelOptions, connect_lazy};
use crate::pb::v1;
use crate::pb::v1::answer::Outcome;
use crate::pb::v1::call_service_server::{CallService, CallServiceServer};
use crate::testing::{Pki, eventually};
use crate::tls::{AcceptLimits, ExpectPeer};

const LONG: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Mode {
    /// Answers each message's calls in reverse, the request's election as the answer's.
    #[default]
    Backwards,
    /// Refuses each call.
    Refuses,
    /// Knows no such stream.
    Unknown,
    /// Ends the stream when a call comes.
    Breaks,
    /// Never answers.
    Silent,
}

#[derive(Clone, Default)]
struct Node {
    mode: Arc<Mutex<Mode>>,
    streams: Arc<AtomicUsize>,
    messages: Arc<Mutex<Vec<Vec<v1::Call>>>>,
}

fn backwards(batch: &v1::CallBatch) -> v1::AnswerBatch {
    let answer = |call: &v1::Call| {
        let asked = v1::LeaderRequest::decode(call.request.clone()).unwrap();
        let election = Some(v1::Election { name: asked.election, ..Default::default() });
        let response = v1::LeaderResponse { stamp: None, election };
        let outcome = Some(Outcome::Response(response.encode_to_vec().into()));
        v1::Answer { id: call.id, outcome }
    };
    v1::AnswerBatch { answers: batch.calls.iter().rev().map(answer).collect() }
}

fn refusals(batch: &v1::CallBatch) -> v1::AnswerBatch {
    let answer = |call: &v1::Call| {
        let failure = v1::Failure {
            code: Code::FailedPrecondition as i32,
            message: "somebody else leads".into(),
            details: b"why".as_slice().into(),
            request_id: "00c0ffee".into(),
        };
        v1::Answer { id: call.id, outcome: Some(Outcome::Failure(failure)) }
    };
    v1::AnswerBatch { answers: batch.calls.iter().map(answer).collect() }
}

#[tonic::async_trait]
impl CallService for Node {
    type CallsStream = BoxStream<'static, Result<v1::AnswerBatch, Status>>;

    async fn calls(
        &self,
        request: Request<Streaming<v1::CallBatch>>,
    ) -> Result<Response<Self::CallsStream>, Status> {
        if *self.mode.lock().unwrap() == Mode::Unknown {
            return Err(Status::unimplemented("no such service"));
        }
        self.streams.fetch_add(1, Ordering::Relaxed);
        let node = self.clone();
        let answers = request.into_inner().filter_map(move |batch| {
            let node = node.clone();
            async move {
                let batch = batch.ok()?;
                node.messages.lock().unwrap().push(batch.calls.clone());
                let mode = *node.mode.lock().unwrap();
                match mode {
                    Mode::Backwards => Some(Ok(backwards(&batch))),
                    Mode::Refuses => Some(Ok(refusals(&batch))),
                    Mode::Breaks | Mode::Unknown => Some(Err(Status::aborted("told so"))),
                    Mode::Silent => None,
                }
            }
        });
        Ok(Response::new(answers.boxed()))
    }
}

struct Rig {
    node: Node,
    calls: Calls,
    pki: Pki,
    server: JoinHandle<()>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn rig() -> Rig {
    let (pki, node) = (Pki::new(), Node::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = pki.tls(Role::Node, "1").incoming(listener, AcceptLimits::default());
    let service = CallServiceServer::new(node.clone());
    let server = tonic::transport::Server::builder().add_service(service);
    let server = tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
    let tls = pki.tls(Role::Client, "app");
    let options = ChannelOptions::default();
    let channel = connect_lazy(&address, tls, ExpectPeer::AnyNode, options).unwrap();
    Rig { node, calls: Calls::new(channel), pki, server }
}

impl Rig {
    fn mode(&self, mode: Mode) {
        *self.node.mode.lock().unwrap() = mode;
    }

    fn sent(&self) -> usize {
        self.node.messages.lock().unwrap().iter().map(Vec::len).sum()
    }

    async fn leader(&self, election: &str, left: Duration) -> Result<String, Status> {
        let ask = v1::LeaderRequest { election: election.into(), read: None };
        let answer = self.calls.unary::<_, v1::LeaderResponse>(method::LEADER, ask, left).await?;
        Ok(answer.into_inner().election.unwrap().name)
    }
}

#[tokio::test]
async fn each_caller_gets_its_own_answer_over_one_stream_with_many_calls_in_a_message() {
    let rig = rig().await;
    let asked: Vec<_> = (0..1_000).map(|at| format!("e/{at}")).collect();
    let answers = asked.iter().map(|election| rig.leader(election, LONG));
    let answers = futures::future::join_all(answers).await;
    for (asked, answer) in asked.iter().zip(answers) {
        assert_eq!(&answer.unwrap(), asked);
    }
    assert_eq!(rig.node.streams.load(Ordering::Relaxed), 1);
    let messages = rig.node.messages.lock().unwrap();
    assert!(messages.len() < 100, "{} messages for 1,000 calls", messages.len());
    assert!(messages.iter().flatten().all(|call| call.method == method::LEADER));
    let ttl = messages[0][0].ttl_ms;
    assert!(u128::from(ttl) < LONG.as_millis() && ttl > 4_000, "{ttl}");
}

#[tokio::test]
async fn a_refusal_is_a_status_with_its_details_and_the_id_of_the_nodes_log() {
    let rig = rig().await;
    rig.mode(Mode::Refuses);
    let said = rig.leader("e", LONG).await.unwrap_err();
    assert_eq!(said.code(), Code::FailedPrecondition);
    assert_eq!((said.message(), said.details()), ("somebody else leads", b"why".as_slice()));
    assert_eq!(said.metadata().get(REQUEST_ID).unwrap(), "00c0ffee");
}

#[tokio::test]
async fn a_broken_stream_tells_all_who_wait_and_the_next_call_opens_another() {
    let rig = rig().await;
    rig.leader("e", LONG).await.unwrap();
    rig.mode(Mode::Silent);
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let calls = rig.calls.clone();
            tokio::spawn(async move {
                let ask = v1::LeaderRequest::default();
                calls.unary::<_, v1::LeaderResponse>(method::LEADER, ask, LONG).await
            })
        })
        .collect();
    eventually("ten are under way", || rig.sent() == 11).await;
    rig.mode(Mode::Breaks);
    let said = rig.leader("e", LONG).await.unwrap_err();
    assert_eq!(said.code(), Code::Aborted, "{said}");
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap().unwrap_err().code(), Code::Aborted);
    }
    rig.mode(Mode::Backwards);
    assert_eq!(rig.leader("again", LONG).await.unwrap(), "again");
    assert_eq!(rig.node.streams.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_call_whose_time_is_up_is_not_sent() {
    let rig = rig().await;
    rig.leader("e", LONG).await.unwrap();
    let said = rig.leader("late", Duration::ZERO).await.unwrap_err();
    assert_eq!(said.code(), Code::DeadlineExceeded);
    assert_eq!(rig.sent(), 1);
}

#[tokio::test]
async fn a_node_without_such_streams_and_a_large_request_are_asked_by_themselves() {
    let rig = rig().await;
    rig.mode(Mode::Unknown);
    // There is no election service at this address either: the call by itself says so in its own way.
    let said = rig.leader("e", LONG).await.unwrap_err();
    assert_eq!(said.code(), Code::Unimplemented);
    assert!(!said.message().contains("no such service"), "{said}");
    rig.mode(Mode::Backwards);
    rig.leader("e", LONG).await.unwrap_err();
    assert_eq!(rig.sent(), 0, "once told, it does not try again");

    let fresh = Calls::new(rig.calls.channel());
    let ask = v1::LeaderRequest { election: "x".repeat(MAX_SMALL), read: None };
    fresh.unary::<_, v1::LeaderResponse>(method::LEADER, ask, LONG).await.unwrap_err();
    assert_eq!(rig.sent(), 0);
}

#[tokio::test]
async fn nobody_at_the_address_is_told_to_every_caller_at_once() {
    let rig = rig().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let tls = rig.pki.tls(Role::Client, "app");
    let options = ChannelOptions::default();
    let channel = connect_lazy(&address, tls, ExpectPeer::AnyNode, options).unwrap();
    let calls = Calls::new(channel);
    let ask = v1::LeaderRequest::default();
    let asked = calls.unary::<_, v1::LeaderResponse>(method::LEADER, ask, LONG);
    let said = tokio::time::timeout(LONG / 2, asked).await.unwrap().unwrap_err();
    assert!(matches!(said.code(), Code::Unavailable | Code::Unknown), "{said:?}");
    assert!(std::error::Error::source(&said).is_some(), "why is not said: {said:?}");
}
