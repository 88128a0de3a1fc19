//! The audit chain.

use tonic::Streaming;
use tonic::transport::Channel;

use super::call::request;
use super::{CallError, Client};
use crate::calls::Calls;
use crate::pb::v1;
use crate::pb::v1::audit_service_client::AuditServiceClient;

fn api(calls: &Calls) -> AuditServiceClient<Channel> {
    AuditServiceClient::new(calls.channel())
}

impl Client {
    /// Records in order. The deadline is the caller's.
    ///
    /// # Errors
    /// [`CallError`] when no node begins; later the stream's own status.
    pub async fn list_audit(
        &self,
        ask: v1::ListAuditRequest,
    ) -> Result<Streaming<v1::AuditRecord>, CallError> {
        self.read(|calls, _| async move { api(&calls).list_audit(ask).await }).await
    }

    /// Number and hash of the newest record.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn audit_head(&self) -> Result<v1::AuditHeadResponse, CallError> {
        self.read(|calls, left| async move {
            api(&calls).audit_head(request(v1::AuditHeadRequest {}, left)).await
        })
        .await
    }
}
