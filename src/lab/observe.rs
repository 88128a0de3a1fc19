//! What a running lab looks like: processes from `/proc`, roles from the nodes themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use regent_rpc::channel::{ChannelOptions, connect_lazy};
use regent_rpc::pb::v1::cluster_service_client::ClusterServiceClient;
use regent_rpc::pb::v1::{StatusRequest, StatusResponse};
use regent_rpc::tls::{ExpectPeer, Tls, TlsError, TlsFiles};
use serde::Serialize;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::databases::{self, DatabasesView};
use crate::layout::{Certificates, Lab, LabNode, Pair};
use crate::network::Network;
use crate::process::{Life, Usage};

/// How long a node may take to answer before it counts as silent. A frozen process keeps its
/// connections open and never answers.
const PATIENCE: Duration = Duration::from_millis(1_000);

/// A lab as it is now.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// Its directory.
    pub dir: std::path::PathBuf,
    /// Its nodes.
    pub nodes: Vec<NodeView>,
    /// Who leads, as the node with the highest term says; 0: nobody.
    pub leader: u64,
    /// Its databases; absent when it has none.
    #[serde(flatten)]
    pub databases: Option<DatabasesView>,
    /// Its own network; absent when it shares the machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Files to log in with.
    pub certificates: Certificates,
}

/// A node as it is now.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    /// Its id.
    pub id: u64,
    /// Its zone.
    pub zone: String,
    /// `host:port` of its gRPC port.
    pub grpc: String,
    /// `host:port` of its HTTP port.
    pub http: String,
    /// Its process; `None` when it is dead.
    pub pid: Option<u32>,
    /// What the process does.
    pub life: Life,
    /// Whether it would take requests: admitted to vote, a leader known, storage well.
    pub ready: bool,
    /// What the node says it is; empty when it does not answer.
    pub role: String,
    /// Term it is in; 0 when it does not answer.
    pub term: u64,
    /// Leader it knows; 0: none.
    pub leader: u64,
    /// Entries applied.
    pub applied: u64,
    /// Memory and processor time.
    pub usage: Option<Usage>,
    /// Where its output goes.
    pub log: std::path::PathBuf,
    /// Where its data are.
    pub data_dir: std::path::PathBuf,
}

/// Connections to a lab's nodes, with one of its identities.
pub struct Connections {
    channels: BTreeMap<u64, Channel>,
}

impl Connections {
    /// Prepares connections to every node; nothing is dialled yet.
    ///
    /// # Errors
    /// The certificates cannot be used.
    pub fn new(lab: &Lab, pair: &Pair) -> Result<Self, TlsError> {
        let tls = Tls::load(TlsFiles {
            cert: pair.cert.clone(),
            key: pair.key.clone(),
            ca: lab.certificates().ca,
            revoked: None,
            trust: Some(lab.trust_domain.clone()),
        })?;
        let options = ChannelOptions { connect_timeout: PATIENCE, ..ChannelOptions::default() };
        let channels = lab
            .nodes
            .iter()
            .map(|node| {
                let expect = ExpectPeer::AnyNode;
                let channel = connect_lazy(&node.grpc, Arc::clone(&tls), expect, options)
                    .expect("the lab chose host and port itself");
                (node.id, channel)
            })
            .collect();
        Ok(Self { channels })
    }

    /// The connection to a node.
    pub fn channel(&self, id: u64) -> Option<Channel> {
        self.channels.get(&id).cloned()
    }

    /// A node's own view; `None` when it does not answer in time.
    pub async fn status(&self, id: u64) -> Option<StatusResponse> {
        let mut client = ClusterServiceClient::new(self.channel(id)?);
        let answer = tokio::time::timeout(PATIENCE, client.status(StatusRequest {})).await;
        answer.ok()?.ok().map(tonic::Response::into_inner)
    }
}

/// Looks at every node and instance at once.
pub async fn view(lab: &Lab, connections: &Connections) -> View {
    let (nodes, databases) = tokio::join!(view_nodes(lab, connections), databases::view(lab));
    View { databases, ..nodes }
}

/// Looks at every node at once, and at no database.
pub async fn view_nodes(lab: &Lab, connections: &Connections) -> View {
    let mut looks = tokio::task::JoinSet::new();
    for node in &lab.nodes {
        let node = node.clone();
        let alive = node.process.as_ref().is_some_and(|process| process.life() == Life::Running);
        let channel = connections.channel(node.id).filter(|_| alive);
        looks.spawn(async move { look(node, channel).await });
    }
    let mut nodes = looks.join_all().await;
    nodes.sort_by_key(|node| node.id);
    let leader =
        nodes.iter().max_by_key(|node| (node.term, node.leader != 0)).map_or(0, |n| n.leader);
    View {
        dir: lab.dir.clone(),
        nodes,
        leader,
        databases: None,
        network: lab.network.clone(),
        certificates: lab.certificates(),
    }
}

async fn look(node: LabNode, channel: Option<Channel>) -> NodeView {
    let (status, ready) = match channel {
        Some(channel) => {
            let mut health = HealthClient::new(channel.clone());
            let mut client = ClusterServiceClient::new(channel);
            // Both at once: a node that does not answer costs the patience once.
            let asked = tokio::time::timeout(PATIENCE, async {
                tokio::join!(
                    client.status(StatusRequest {}),
                    health.check(HealthCheckRequest::default())
                )
            });
            match asked.await {
                Ok((status, health)) => {
                    let serving = health
                        .is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving);
                    (status.ok().map(tonic::Response::into_inner), serving)
                }
                Err(_) => (None, false),
            }
        }
        None => (None, false),
    };
    // After the question: a node that died meanwhile must not be shown alive and silent.
    let life = node.process.as_ref().map_or(Life::Dead, |process| process.life());
    let usage = node.process.as_ref().and_then(|process| process.usage());
    let pid = node.process.as_ref().map(|process| process.pid).filter(|_| life != Life::Dead);
    let status = status.unwrap_or_default();
    let own = status.node.unwrap_or_default();
    NodeView {
        id: node.id,
        zone: node.zone,
        grpc: node.grpc,
        http: node.http,
        pid,
        life,
        ready,
        role: own.role,
        term: status.term,
        leader: status.leader,
        applied: own.applied,
        usage,
        log: node.log,
        data_dir: node.data_dir,
    }
}
