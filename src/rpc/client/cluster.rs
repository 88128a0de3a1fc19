//! The cluster itself: status, members, backup.

use regent_core::id::NodeId;
use tonic::Streaming;
use tonic::transport::Channel;

use super::call::{Safety, request};
use super::{CallError, Client};
use crate::calls::Calls;
use crate::convert::cluster::NewMember;
use crate::convert::common::locality_out;
use crate::limits::MAX_ANSWER_BYTES;
use crate::pb::v1;
use crate::pb::v1::cluster_service_client::ClusterServiceClient;

fn api(calls: &Calls) -> ClusterServiceClient<Channel> {
    ClusterServiceClient::new(calls.channel()).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// A node that was added, as a learner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedMember {
    /// The id it was given.
    pub node: NodeId,
}

impl Client {
    /// Status of the cluster, as the node that answers sees it.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn status(&self) -> Result<v1::StatusResponse, CallError> {
        self.read(|calls, left| async move {
            api(&calls).status(request(v1::StatusRequest {}, left)).await
        })
        .await
    }

    /// All members.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn list_members(&self) -> Result<v1::ListMembersResponse, CallError> {
        self.read(|calls, left| async move {
            api(&calls).list_members(request(v1::ListMembersRequest {}, left)).await
        })
        .await
    }

    /// Adds a node as a learner.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn add_member(&self, member: &NewMember) -> Result<AddedMember, CallError> {
        let lane = self.inner.lanes.take();
        let id = crate::convert::common::request_out(lane.request());
        // Long by nature (the new node must answer), so one attempt has all the time.
        let response = self
            .call(Safety::Once, |calls, left| {
                let message = v1::AddMemberRequest {
                    request: Some(id),
                    address: member.address.clone(),
                    http_address: member.http_address.clone(),
                    locality: Some(locality_out(&member.locality)),
                    label: member.label.clone(),
                };
                async move { api(&calls).add_member(request(message, left)).await }
            })
            .await?;
        Ok(AddedMember { node: NodeId(response.node) })
    }

    /// Makes a caught-up learner a voter.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn promote_member(&self, node: NodeId) -> Result<(), CallError> {
        self.call(Safety::Once, |calls, left| async move {
            let message = v1::PromoteMemberRequest { node: node.0 };
            api(&calls).promote_member(request(message, left)).await
        })
        .await
        .map(|_| ())
    }

    /// Removes a node.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn remove_member(&self, node: NodeId) -> Result<(), CallError> {
        self.call(Safety::Once, |calls, left| async move {
            let message = v1::RemoveMemberRequest { node: node.0 };
            api(&calls).remove_member(request(message, left)).await
        })
        .await
        .map(|_| ())
    }

    /// Hands leadership to `to`, or to the most caught-up other voter. Returns the new leader.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn transfer_leader(&self, to: Option<NodeId>) -> Result<NodeId, CallError> {
        let response = self
            .call(Safety::Once, |calls, left| async move {
                let message = v1::TransferLeaderRequest { to: to.map_or(0, |node| node.0) };
                api(&calls).transfer_leader(request(message, left)).await
            })
            .await?;
        Ok(NodeId(response.leader))
    }

    /// A consistent copy of the replicated state, in chunks. The deadline is the caller's.
    ///
    /// # Errors
    /// [`CallError`] when no node begins; later the stream's own status.
    pub async fn backup(&self) -> Result<Streaming<v1::BackupChunk>, CallError> {
        self.read(|calls, _| async move { api(&calls).backup(v1::BackupRequest {}).await }).await
    }
}
