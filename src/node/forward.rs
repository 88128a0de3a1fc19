//! A follower's end of forwarding: one stream to the leader carries the entries of all callers.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use regent_core::id::NodeId;
use regent_core::reply::Reply;
use regent_rpc::convert::status::Leader;
use regent_rpc::mux::{Ask, Asked, Mux, MuxLimits};
use tokio::time::Instant;
use tonic::{Response, Status};

use crate::peers::Peers;
use crate::telemetry::request;

/// Bytes of entries in one message: far below the largest message among nodes. Entries under way:
/// below what the leader has of one follower.
const LIMITS: MuxLimits = MuxLimits { batch_bytes: 1024 * 1024, under_way: 6_144 };

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
    stream: Mux,
}

impl Forwarder {
    /// Opens streams through `peers`.
    pub fn new(peers: Arc<Peers>) -> Self {
        Self { peers, lane: Mutex::default() }
    }

    /// Hands `entry` to `leader` and waits for its answer until `until`. Dropped earlier, the entry
    /// may still take effect.
    pub async fn hand_over(&self, leader: &Leader, entry: Bytes, until: Instant) -> Forwarded {
        let request_id = request::current().map_or_else(String::new, |id| id.to_string());
        let ask = Ask { request_id, ..Ask::new("", entry, until) };
        let asked = self.stream(leader).ask(ask);
        match tokio::time::timeout_at(until, asked).await {
            Ok(Asked::Answer(Ok(reply))) => Forwarded::Answer(
                postcard::from_bytes(&reply)
                    .map_err(|_| Status::internal("the leader's reply is unreadable")),
            ),
            Ok(Asked::Answer(Err(status))) => Forwarded::Answer(Err(status)),
            Ok(Asked::NotSent(_)) => Forwarded::NotSent,
            Ok(Asked::Lost(_)) | Err(_) => Forwarded::Lost,
        }
    }

    /// The stream to `leader`; a new one if the last has ended: it may fare better.
    fn stream(&self, leader: &Leader) -> Mux {
        let mut lane = self.lane.lock();
        if let Some(open) = &*lane
            && open.to == leader.node
            && open.address == leader.address
            && !open.stream.is_closed()
        {
            return open.stream.clone();
        }
        let (peers, to, address) = (self.peers.clone(), leader.node, leader.address.clone());
        let stream = Mux::start(LIMITS, move |entries| async move {
            let client = peers.peer(to, &address);
            let mut client = client.map_err(|bad| Status::internal(bad.to_string()))?;
            client.forward(peers.stream_request(entries)).await.map(Response::into_inner)
        });
        let open = Lane { to, address: leader.address.clone(), stream: stream.clone() };
        *lane = Some(open);
        stream
    }
}
