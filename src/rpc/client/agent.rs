//! The stream of an instance's agent: to one node at a time, until it breaks.
//!
//! It must never decide what an agent does: it carries the core's types both ways. Coming back
//! after a break is the caller's business, because only the caller knows what to say first.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use regent_core::command::Request;
use regent_core::id::ServiceName;
use regent_core::role::observe::Observation;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::lane::Lane;
use super::{CallError, Client};
use crate::convert::agent::{
    Ask, FromAgent, FromCoordinator, HELLO, Hello, agent_out, coordinator_in,
};
use crate::convert::common::{Freshness, freshness_out};
use crate::convert::status::Refused;
use crate::limits::{MAX_AGENT_MESSAGE_BYTES, MAX_REQUEST_BYTES};
use crate::pb::v1;
use crate::pb::v1::agent_service_client::AgentServiceClient;
use crate::pb::v1::topology_service_client::TopologyServiceClient;

/// Messages waiting for the connection: an agent has a few asks under way and five observations a
/// second. A full queue is a dead stream.
const QUEUE: usize = 64;

/// A node that is cut off from the others still talks to its agents, and nobody else hears of it.
/// Renewals leave such a node within a third of a second. After this long the node of the stream is
/// asked whether it reaches a majority: not in the middle of an election, which makes renewals
/// change their node too.
const APART: Duration = Duration::from_secs(2);
/// A node that needs longer to confirm a read is of no use to an agent.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// The lane of an agent's asks: one stream after the other uses it, and a stream does its asks one
/// after the other.
#[derive(Debug, Default)]
pub(super) struct AgentLane(Mutex<Option<Lane>>);

impl AgentLane {
    fn next(&self) -> Request {
        let mut lane = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lane.get_or_insert_with(Lane::fresh).next()
    }
}

/// The stream cannot be written to: it broke, or the node does not read. Connect again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream to the node is broken or full")]
pub struct StreamBroken;

/// The agent's end of a stream.
#[derive(Debug)]
pub struct AgentStream {
    /// To the node.
    pub sender: AgentSender,
    /// From the node.
    pub receiver: AgentReceiver,
}

/// Speaks to the node. Clones speak on the same stream, which ends when all are gone.
#[derive(Clone, Debug)]
pub struct AgentSender {
    client: Client,
    tx: mpsc::Sender<v1::AgentMessage>,
}

/// Hears the node.
#[derive(Debug)]
pub struct AgentReceiver {
    client: Client,
    /// The place of the node among those known, to leave it when the stream breaks.
    at: usize,
    endpoint: String,
    answers: Streaming<v1::CoordinatorMessage>,
    /// Ends when the node is found to be cut off from the others.
    lonely: JoinHandle<()>,
}

impl AgentStream {
    /// Attaches to the node in use and says `hello`, whose answer comes as the answer to
    /// [`HELLO`](crate::convert::agent::HELLO). One attempt; after a failure the next one goes to
    /// another node.
    ///
    /// # Errors
    /// [`CallError`]: the node could not be reached in `within`, or refused the certificate.
    pub async fn connect(
        client: &Client,
        hello: Hello,
        within: Duration,
    ) -> Result<Self, CallError> {
        let (at, node) = client.inner.nodes.current();
        let (tx, rx) = mpsc::channel(QUEUE);
        let sender = AgentSender { client: client.clone(), tx };
        let service = hello.service.clone();
        // The queue is empty: it has room.
        let _ = sender.send(FromAgent::Hello(Box::new(hello), Some(client.inner.agent.next())));
        let mut api = api(node.calls.channel());
        let attached = tokio::time::timeout(within, api.attach(ReceiverStream::new(rx))).await;
        let status = match attached {
            Ok(Ok(answers)) => {
                let (endpoint, answers) = (node.address.clone(), answers.into_inner());
                let channel = node.calls.channel();
                let lonely = tokio::spawn(lonely(client.clone(), at, channel, service));
                let client = client.clone();
                let receiver = AgentReceiver { client, at, endpoint, answers, lonely };
                return Ok(Self { sender, receiver });
            }
            Ok(Err(status)) => status,
            Err(_) => {
                Status::deadline_exceeded(format!("no answer within {} ms", within.as_millis()))
            }
        };
        client.inner.nodes.leave(at);
        Err(failed(status, &node.address))
    }
}

fn api(channel: Channel) -> AgentServiceClient<Channel> {
    AgentServiceClient::new(channel)
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_AGENT_MESSAGE_BYTES)
}

fn failed(status: Status, endpoint: &str) -> CallError {
    let refused = Refused::from_status(&status);
    CallError { status, refused, endpoint: endpoint.to_owned(), attempts: 1 }
}

/// Returns once renewals are committed through another node than the one at `at`, and that one does
/// not reach a majority.
async fn lonely(client: Client, at: usize, channel: Channel, service: ServiceName) {
    let mut since = None;
    loop {
        tokio::time::sleep(APART / 8).await;
        if !client.inner.nodes.renews_elsewhere(at) {
            since = None;
        } else if since.get_or_insert_with(Instant::now).elapsed() >= APART {
            if !reaches_majority(channel.clone(), &service).await {
                client.inner.nodes.go_where_renewed();
                return;
            }
            since = None;
        }
    }
}

/// Whether a node can answer a read that a majority has to confirm.
async fn reaches_majority(channel: Channel, service: &ServiceName) -> bool {
    let (name, read) = (service.to_string(), freshness_out(Freshness::Linearizable));
    let mut ask = tonic::Request::new(v1::GetServiceRequest { name, read });
    ask.set_timeout(ANSWER_WITHIN);
    let mut api = TopologyServiceClient::new(channel);
    matches!(tokio::time::timeout(ANSWER_WITHIN, api.get_service(ask)).await, Ok(Ok(_)))
}

impl Drop for AgentReceiver {
    fn drop(&mut self) {
        self.lonely.abort();
    }
}

impl AgentSender {
    /// Asks under `number` (above 0, the caller's choice; the answer names it).
    ///
    /// # Errors
    /// [`StreamBroken`].
    pub fn ask(&self, number: u64, ask: Ask) -> Result<(), StreamBroken> {
        debug_assert!(number != HELLO, "that is the number of the hello");
        self.send(FromAgent::Ask(number, ask, Some(self.client.inner.agent.next())))
    }

    /// Says what the agent sees. The whole of it each time.
    ///
    /// # Errors
    /// [`StreamBroken`].
    pub fn observe(&self, seen: Observation) -> Result<(), StreamBroken> {
        self.send(FromAgent::Observation(Box::new(seen)))
    }

    fn send(&self, message: FromAgent) -> Result<(), StreamBroken> {
        self.tx.try_send(agent_out(&message)).map_err(|_| StreamBroken)
    }

    /// Whether the stream is gone.
    pub fn is_broken(&self) -> bool {
        self.tx.is_closed()
    }
}

impl AgentReceiver {
    /// The node it is attached to.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The next message. After an error, or when the node ended the stream (`None`), connect anew:
    /// that goes to another node. May be dropped and called again.
    ///
    /// # Errors
    /// [`CallError`]: the stream broke, or the node said what this version does not understand.
    pub async fn next(&mut self) -> Result<Option<FromCoordinator>, CallError> {
        let message = tokio::select! {
            message = self.answers.message() => message,
            _ = &mut self.lonely => {
                let why = "it does not reach a majority of the nodes";
                return Err(failed(Status::unavailable(why), &self.endpoint));
            }
        };
        let status = match message {
            Ok(Some(message)) => match coordinator_in(message) {
                Ok(message) => return Ok(Some(message)),
                Err(invalid) => invalid.into(),
            },
            Ok(None) => {
                self.client.inner.nodes.leave(self.at);
                return Ok(None);
            }
            Err(status) => status,
        };
        self.client.inner.nodes.leave(self.at);
        Err(failed(status, &self.endpoint))
    }
}
