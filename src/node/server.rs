//! The gRPC port: every service of this node behind one mTLS listener, with its bounds.

use std::sync::Arc;
use std::time::Duration;

use regent_rpc::limits::{
    KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, MAX_AGENT_MESSAGE_BYTES, MAX_ANSWER_BYTES,
    MAX_CARRIED_BYTES, MAX_HEADER_BYTES,
};
use regent_rpc::pb::FILE_DESCRIPTOR_SET;
use regent_rpc::pb::raft::peer_service_server::PeerServiceServer;
use regent_rpc::pb::raft::raft_service_server::RaftServiceServer;
use regent_rpc::pb::v1::agent_service_server::{self, AgentServiceServer};
use regent_rpc::pb::v1::audit_service_server::{self, AuditServiceServer};
use regent_rpc::pb::v1::call_service_server::{self, CallServiceServer};
use regent_rpc::pb::v1::cluster_service_server::{self, ClusterServiceServer};
use regent_rpc::pb::v1::election_service_server::{self, ElectionServiceServer};
use regent_rpc::pb::v1::operation_service_server::{self, OperationServiceServer};
use regent_rpc::pb::v1::routing_service_server::{self, RoutingServiceServer};
use regent_rpc::pb::v1::topology_service_server::{self, TopologyServiceServer};
use regent_rpc::tls::AcceptLimits;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic_health::pb::health_server::{Health, HealthServer};

use crate::peers::{MAX_MESSAGE_BYTES, WINDOW_BYTES};
use crate::rpc::ads::AdsSource;
use crate::rpc::agent::AgentHandler;
use crate::rpc::audit::AuditHandler;
use crate::rpc::calls::Calls;
use crate::rpc::carried::CallHandler;
use crate::rpc::cluster::ClusterHandler;
use crate::rpc::election::ElectionHandler;
use crate::rpc::operation::OperationHandler;
use crate::rpc::peer::PeerHandler;
use crate::rpc::raft::RaftHandler;
use crate::rpc::routing::RoutingHandler;
use crate::rpc::routing::watch::WatchRoutesCall;
use crate::rpc::topology::TopologyHandler;
use crate::rpc::watches::{ObserveCall, WatchServicesCall};
use crate::shell::Shell;
use crate::telemetry::request::Pace;
use crate::watch::serve::Preencoded;

/// Handshakes computed at a time: two cores are busy with four of them.
const MAX_HANDSHAKES: usize = 32;
/// From the TCP connection to the end of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// What clients ask the health of: everything public, and the node as a whole.
pub const SERVICES: [&str; 9] = [
    "",
    call_service_server::SERVICE_NAME,
    election_service_server::SERVICE_NAME,
    topology_service_server::SERVICE_NAME,
    cluster_service_server::SERVICE_NAME,
    audit_service_server::SERVICE_NAME,
    agent_service_server::SERVICE_NAME,
    operation_service_server::SERVICE_NAME,
    routing_service_server::SERVICE_NAME,
];

/// Serves until `stop` says true or its sender is gone; then lets calls under way finish.
///
/// # Errors
/// What the transport said; a broken connection is none.
pub async fn serve(
    shell: Arc<Shell>,
    health: HealthServer<impl Health>,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let limits = shell.config.limits;
    let accept = AcceptLimits {
        connections: limits.max_connections as usize,
        handshakes: MAX_HANDSHAKES,
        deadline: HANDSHAKE_TIMEOUT,
    };
    let incoming = shell.tls.incoming(listener, accept);
    let most = limits.max_request_bytes as usize;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors were made by the compiler of the same build");
    let election = ElectionServiceServer::new(ElectionHandler(shell.clone()))
        .max_decoding_message_size(most)
        .max_encoding_message_size(MAX_ANSWER_BYTES);
    let election =
        Preencoded::new(election, "/regent.v1.ElectionService/Observe", ObserveCall(shell.clone()));
    let carried = CallServiceServer::new(CallHandler(shell.clone()))
        .max_decoding_message_size(MAX_CARRIED_BYTES)
        .max_encoding_message_size(MAX_ANSWER_BYTES);
    let topology = TopologyServiceServer::new(TopologyHandler(shell.clone()))
        .max_decoding_message_size(most)
        .max_encoding_message_size(MAX_ANSWER_BYTES);
    let topology = Preencoded::new(
        topology,
        "/regent.v1.TopologyService/WatchServices",
        WatchServicesCall(shell.clone()),
    );
    let cluster = ClusterServiceServer::new(ClusterHandler(shell.clone()))
        .max_decoding_message_size(most)
        .max_encoding_message_size(MAX_ANSWER_BYTES);
    let audit = AuditServiceServer::new(AuditHandler(shell.clone()))
        .max_decoding_message_size(most)
        .max_encoding_message_size(MAX_ANSWER_BYTES);
    let agent = AgentServiceServer::new(AgentHandler(shell.clone()))
        .max_decoding_message_size(MAX_AGENT_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_ANSWER_BYTES);
    let operation = OperationServiceServer::new(OperationHandler(shell.clone()))
        .max_decoding_message_size(most)
        .max_encoding_message_size(MAX_ANSWER_BYTES);
    let routing = RoutingServiceServer::new(RoutingHandler(shell.clone()))
        .max_decoding_message_size(most)
        .max_encoding_message_size(MAX_ANSWER_BYTES);
    let routing =
        Preencoded::new(routing, "/regent.v1.RoutingService/Watch", WatchRoutesCall(shell.clone()));
    let ads = regent_xds::serve::service(AdsSource(shell.clone()));
    // Anybody may connect to these two, so their requests are bounded in the handler as well: what
    // comes from a certificate that is no node's is refused before its body is looked at.
    let raft = RaftServiceServer::new(RaftHandler(shell.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let peer = PeerServiceServer::new(PeerHandler(shell.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Server::builder()
        .max_concurrent_streams(limits.max_streams_per_connection)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .add_service(raft)
        .add_service(peer)
        .add_service(Calls::of(election, Pace::Frequent, shell.metrics.clone()))
        .add_service(Calls::of(carried, Pace::Frequent, shell.metrics.clone()))
        .add_service(Calls::of(topology, Pace::Rare, shell.metrics.clone()))
        .add_service(Calls::of(cluster, Pace::Rare, shell.metrics.clone()))
        .add_service(Calls::of(audit, Pace::Rare, shell.metrics.clone()))
        .add_service(Calls::of(agent, Pace::Rare, shell.metrics.clone()))
        .add_service(Calls::of(operation, Pace::Rare, shell.metrics.clone()))
        .add_service(Calls::of(routing, Pace::Rare, shell.metrics.clone()))
        .add_service(Calls::of(ads, Pace::Rare, shell.metrics.clone()))
        .add_service(health)
        .add_service(reflection)
        .serve_with_incoming_shutdown(incoming, async move {
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
}
