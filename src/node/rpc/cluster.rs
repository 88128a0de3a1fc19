//! `regent.v1.ClusterService`: status, members, backup.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use regent_core::authz::Verb;
use regent_core::id::NodeId;
use regent_raft::api::{ConsensusStatus, Member};
use regent_rpc::convert::cluster::{new_member, node_id, timing_in, timing_out};
use regent_rpc::convert::common::{locality_out, request as request_id};
use regent_rpc::convert::election::FENCE_BUDGET_MS;
use regent_rpc::limits::CHUNK_BYTES;
use regent_rpc::pb::v1::cluster_service_server::ClusterService;
use regent_rpc::pb::v1::{
    self, AddMemberRequest, AddMemberResponse, BackupChunk, BackupHeader, BackupRequest,
    ListMembersRequest, ListMembersResponse, NodeStatus, PromoteMemberRequest,
    PromoteMemberResponse, RemoveMemberRequest, RemoveMemberResponse, SetTimingRequest,
    SetTimingResponse, StatusRequest, StatusResponse, TransferLeaderRequest,
    TransferLeaderResponse,
};
use tonic::{Request, Response, Status};

use crate::members::MEMBERSHIP;
use crate::shell::Shell;

/// Serves the cluster's own matters.
pub struct ClusterHandler(pub Arc<Shell>);

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl ClusterHandler {
    fn members(&self, status: &ConsensusStatus) -> Vec<v1::Member> {
        let members = status.members.iter();
        members
            .map(|(id, member, voter)| {
                let matched = status.matched.iter().find(|(node, _)| node == id);
                let behind = match status.is_leader {
                    true if *id == status.id => Some(0),
                    true => matched.map(|(_, at)| status.last_log.0.saturating_sub(at.0)),
                    false => None,
                };
                v1::Member {
                    id: id.0,
                    address: member.address.clone(),
                    http_address: member.http_address.clone(),
                    locality: Some(locality_out(&member.locality)),
                    voter: *voter,
                    leader: status.leader == Some(*id),
                    behind,
                    label: member.label.clone(),
                }
            })
            .collect()
    }

    fn node_status(&self, status: &ConsensusStatus) -> NodeStatus {
        let expiry = self.0.tls.expires_in();
        let role = if self.0.health.get().against.contains_key(MEMBERSHIP) {
            "removed"
        } else if self.0.admission.quarantine().is_some() {
            "quarantined"
        } else {
            status.role
        };
        NodeStatus {
            id: self.0.node.0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: role.to_owned(),
            last_log: status.last_log.0,
            applied: status.applied.0,
            snapshot: status.snapshot.0,
            boot: self.0.boot,
            storage_problem: status.notice().to_owned(),
            certificate_expires_in_ms: ms(expiry.leaf),
            ca_expires_in_ms: ms(expiry.ca),
            uptime_ms: ms(self.0.started.elapsed()),
            clock_skew_ppm: self.0.comparison.worst_ppm(),
            timing: Some(timing_out(&self.0.config.timing())),
            warnings: self.0.tls.problem().into_iter().collect(),
        }
    }
}

#[tonic::async_trait]
impl ClusterService for ClusterHandler {
    type BackupStream = BoxStream<'static, Result<BackupChunk, Status>>;

    /// Answered from this node alone, whatever the state of the cluster: it is what people ask when
    /// there is no leader. The stamp's age says what it is worth.
    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        self.0.authorize(&request, Verb::StatusRead, "status")?;
        let status = self.0.leadership.status();
        let leader = self.0.leadership.now();
        let age_ms = self.0.reads.age_ms().unwrap_or(u64::MAX);
        let node = Some(self.node_status(&status));
        let members = self.members(&status);
        let state = self.0.state.read();
        let cluster = state.cluster();
        let hash: String = state.rolling_hash().iter().map(|b| format!("{b:02x}")).collect();
        let quarantined = state.services().values().filter(|s| s.quarantine.is_some()).count();
        Ok(Response::new(StatusResponse {
            stamp: Some(self.0.stamp(&state, age_ms)),
            cluster: self.0.config.cluster.clone(),
            node,
            leader: status.leader.map_or(0, |id| id.0),
            leader_address: leader.map_or_else(String::new, |l| l.address),
            term: status.term,
            feature_level: cluster.feature_level,
            state_hash: hash,
            timing: Some(timing_out(&cluster.timing)),
            sessions: state.sessions().len() as u64,
            elections: state.elections().len() as u64,
            services: state.services().len() as u64,
            quarantined: quarantined as u64,
            audit_records: state.audit().head().number,
            least_ttl_ms: cluster.timing.least_ttl_ms(FENCE_BUDGET_MS),
            grants_held_ms: cluster.grants_held_ms,
            members,
        }))
    }

    async fn list_members(
        &self,
        request: Request<ListMembersRequest>,
    ) -> Result<Response<ListMembersResponse>, Status> {
        let caller = self.0.admit(&request, Verb::MembersRead, "members")?;
        self.0.reads.linearizable(caller.until).await?;
        let members = self.members(&self.0.leadership.status());
        let committed = {
            let state = self.0.state.read();
            let cluster = state.cluster();
            cluster.voters.iter().chain(&cluster.learners).map(|id| id.0).collect()
        };
        let stamp = Some(self.0.stamp_at(None));
        Ok(Response::new(ListMembersResponse { stamp, members, committed }))
    }

    async fn add_member(
        &self,
        request: Request<AddMemberRequest>,
    ) -> Result<Response<AddMemberResponse>, Status> {
        let resource = &request.get_ref().address;
        let caller = self.0.admit(&request, Verb::MembersWrite, resource)?;
        let request = request.into_inner();
        let new = new_member(&request)?;
        let id = request_id("request", request.request)?;
        let member = Member {
            address: new.address,
            http_address: new.http_address,
            locality: new.locality,
            label: new.label,
        };
        let node = self.0.add_member(&caller.principal, id, member, caller.until).await?;
        let stamp = Some(self.0.stamp_at(None));
        Ok(Response::new(AddMemberResponse { stamp, node: node.0 }))
    }

    async fn promote_member(
        &self,
        request: Request<PromoteMemberRequest>,
    ) -> Result<Response<PromoteMemberResponse>, Status> {
        let resource = format!("node {}", request.get_ref().node);
        let caller = self.0.admit(&request, Verb::MembersWrite, &resource)?;
        let node = node_id("node", request.into_inner().node)?;
        self.0.promote_member(&caller.principal, node).await?;
        Ok(Response::new(PromoteMemberResponse { stamp: Some(self.0.stamp_at(None)) }))
    }

    async fn remove_member(
        &self,
        request: Request<RemoveMemberRequest>,
    ) -> Result<Response<RemoveMemberResponse>, Status> {
        let resource = format!("node {}", request.get_ref().node);
        let caller = self.0.admit(&request, Verb::MembersWrite, &resource)?;
        let node = node_id("node", request.into_inner().node)?;
        self.0.remove_member(&caller.principal, node).await?;
        Ok(Response::new(RemoveMemberResponse { stamp: Some(self.0.stamp_at(None)) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let caller = self.0.admit(&request, Verb::MembersWrite, "leader")?;
        let to = Some(request.into_inner().to).filter(|to| *to > 0).map(NodeId);
        let leader = self.0.transfer(&caller.principal, to).await?;
        let stamp = Some(self.0.stamp_at(None));
        Ok(Response::new(TransferLeaderResponse { stamp, leader: leader.0 }))
    }

    async fn set_timing(
        &self,
        request: Request<SetTimingRequest>,
    ) -> Result<Response<SetTimingResponse>, Status> {
        let caller = self.0.admit(&request, Verb::MembersWrite, "timing")?;
        let SetTimingRequest { request, timing } = request.into_inner();
        let timing = timing_in(timing.unwrap_or_default())?;
        let reply = self.0.set_timing(caller, request, timing).await?;
        Ok(Response::new(SetTimingResponse {
            stamp: Some(self.0.stamp_at(reply.revision())),
            least_ttl_ms: timing.least_ttl_ms(FENCE_BUDGET_MS),
        }))
    }

    async fn backup(
        &self,
        request: Request<BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let caller = self.0.admit(&request, Verb::Backup, "cluster")?;
        // Recorded first: the backup then holds its own record.
        self.0.record(&caller.principal, Verb::Backup, "cluster", "asked for", "done".into()).await;
        self.0.reads.linearizable(caller.until).await?;
        let shell = self.0.clone();
        let encoded = tokio::task::spawn_blocking(move || {
            // A clone of the maps is short; encoding them is not, and must not hold up `apply`.
            let state = shell.state.read().clone();
            let stamp = shell.stamp(&state, 0);
            (stamp, state.cluster().name.clone(), Bytes::from(state.encode_snapshot()))
        });
        let (stamp, cluster, data) =
            encoded.await.map_err(|_| Status::internal("encoding the state failed"))?;
        tracing::info!(who = %caller.principal, bytes = data.len(), "a backup is being taken");
        let header = BackupHeader { stamp: Some(stamp), cluster, size: data.len() as u64 };
        let first = BackupChunk { header: Some(header), data: Bytes::new() };
        let rest = (0..data.len()).step_by(CHUNK_BYTES).map(move |at| {
            let end = (at + CHUNK_BYTES).min(data.len());
            Ok(BackupChunk { header: None, data: data.slice(at..end) })
        });
        let chunks = futures::stream::iter(std::iter::once(Ok(first)).chain(rest));
        Ok(Response::new(chunks.boxed()))
    }
}
