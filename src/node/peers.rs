//! Channels to the other nodes: one per node and lane, dialled when first used, over mTLS.
//!
//! A channel only ever speaks to the node it was made for: the dialer checks the certificate's node
//! id, because an answer in another's name would be a false vote.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use regent_core::id::{Incarnation, NodeId};
use regent_raft::held::Held;
use regent_rpc::channel::{BadAddress, ChannelOptions, connect_lazy};
use regent_rpc::mux::Mux;
use regent_rpc::pb::raft::peer_service_client::PeerServiceClient;
use regent_rpc::pb::raft::raft_service_client::RaftServiceClient;
use regent_rpc::pb::v1::cluster_service_client::ClusterServiceClient;
use regent_rpc::tls::{ExpectPeer, Tls};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::Channel;

use crate::start::{HEADER, HELD_HEADER, LIFE_HEADER, Start, held_header, life_header};

/// Largest message among nodes.
pub const MAX_MESSAGE_BYTES: usize = regent_rpc::limits::MAX_PEER_MESSAGE_BYTES;
/// Flow-control window: a snapshot or a burst of entries must not wait for a round trip per 64 KiB.
pub const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// What travels on a connection of its own, so that it cannot wait behind something bigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Votes, heartbeats, replication.
    Raft,
    /// Forwarded proposals, read indexes, renewals, clocks.
    Peer,
    /// Snapshots.
    Bulk,
}

/// Channels to the other nodes.
pub struct Peers {
    tls: Arc<Tls>,
    start: Start,
    header: MetadataValue<Ascii>,
    held: OnceLock<MetadataValue<Ascii>>,
    life: ArcSwapOption<MetadataValue<Ascii>>,
    channels: Mutex<HashMap<(NodeId, Lane), (String, Channel)>>,
    heartbeats: Mutex<HashMap<NodeId, (String, Mux)>>,
}

impl Peers {
    /// No channel yet; `start` is shown in every call.
    pub fn new(tls: Arc<Tls>, start: Start) -> Self {
        let (header, held, life) = (start.header(), OnceLock::new(), ArcSwapOption::empty());
        let (channels, heartbeats) = (Mutex::default(), Mutex::default());
        Self { tls, start, header, held, life, channels, heartbeats }
    }

    /// This process's start.
    pub fn start(&self) -> Start {
        self.start
    }

    /// A request that shows this process's start and must be answered within `ttl`.
    pub fn request<T>(&self, message: T, ttl: Duration) -> Request<T> {
        let mut request = self.stream_request(message);
        request.set_timeout(ttl);
        request
    }

    /// A request for a stream, which has no deadline as a whole.
    pub fn stream_request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        self.sign(request.metadata_mut());
        request
    }

    /// What this node's disk held when it started; shown in every call from now on. Set once, before
    /// the first call.
    pub fn set_held(&self, held: Held) {
        let _ = self.held.set(held_header(held));
    }

    /// Shows this process's start, what its disk held, and the life of the cluster its state belongs to.
    pub fn sign(&self, metadata: &mut MetadataMap) {
        metadata.insert(HEADER, self.header.clone());
        if let Some(held) = self.held.get() {
            metadata.insert(HELD_HEADER, held.clone());
        }
        if let Some(life) = self.life.load().as_deref() {
            metadata.insert(LIFE_HEADER, life.clone());
        }
    }

    /// The state belongs to this life of the cluster from now on.
    pub fn set_life(&self, life: Incarnation) {
        self.life.store((life.counter > 0).then(|| Arc::new(life_header(life))));
    }

    /// The Raft service of node `to` at `address`.
    ///
    /// # Errors
    /// [`BadAddress`]; nothing is dialled before the first call.
    pub fn raft(
        &self,
        to: NodeId,
        address: &str,
        lane: Lane,
    ) -> Result<RaftServiceClient<Channel>, BadAddress> {
        Ok(RaftServiceClient::new(self.channel(to, address, lane)?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// The peer service of node `to` at `address`.
    ///
    /// # Errors
    /// [`BadAddress`]; nothing is dialled before the first call.
    pub fn peer(
        &self,
        to: NodeId,
        address: &str,
    ) -> Result<PeerServiceClient<Channel>, BadAddress> {
        Ok(PeerServiceClient::new(self.channel(to, address, Lane::Peer)?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// The service that answers everybody, of node `to` at `address`.
    ///
    /// # Errors
    /// [`BadAddress`]; nothing is dialled before the first call.
    pub fn cluster(
        &self,
        to: NodeId,
        address: &str,
    ) -> Result<ClusterServiceClient<Channel>, BadAddress> {
        Ok(ClusterServiceClient::new(self.channel(to, address, Lane::Peer)?))
    }

    /// The channel for a lane; made anew when the node's address changed.
    fn channel(&self, to: NodeId, address: &str, lane: Lane) -> Result<Channel, BadAddress> {
        let mut channels = self.channels.lock();
        if let Some((known, channel)) = channels.get(&(to, lane))
            && known == address
        {
            return Ok(channel.clone());
        }
        let options = ChannelOptions { window: Some(WINDOW_BYTES), ..ChannelOptions::default() };
        let channel = connect_lazy(address, self.tls.clone(), ExpectPeer::Node(to), options)?;
        channels.insert((to, lane), (address.to_owned(), channel.clone()));
        Ok(channel)
    }

    /// The stream of heartbeats to node `to` at `address`; `open` makes one where there is none.
    pub fn heartbeats(&self, to: NodeId, address: &str, open: impl FnOnce() -> Mux) -> Mux {
        let mut heartbeats = self.heartbeats.lock();
        if let Some((known, stream)) = heartbeats.get(&to)
            && known == address
            && !stream.is_closed()
        {
            return stream.clone();
        }
        let stream = open();
        heartbeats.insert(to, (address.to_owned(), stream.clone()));
        stream
    }

    /// Forgets nodes that are no longer members, so that their connections end.
    pub fn keep_only(&self, members: impl Fn(NodeId) -> bool) {
        self.channels.lock().retain(|(node, _), _| members(*node));
        self.heartbeats.lock().retain(|node, _| members(*node));
    }
}
