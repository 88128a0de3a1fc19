//! `regent.v1.AuditService`: the audit chain, from this node's history.

use std::sync::Arc;

use futures::stream::BoxStream;
use regent_core::authz::Verb;
use regent_rpc::pb::v1::audit_service_server::AuditService;
use regent_rpc::pb::v1::{AuditHeadRequest, AuditHeadResponse, AuditRecord, ListAuditRequest};
use tonic::{Request, Response, Status};

use crate::shell::Shell;

/// Serves the audit chain.
pub struct AuditHandler(pub Arc<Shell>);

#[tonic::async_trait]
impl AuditService for AuditHandler {
    type ListAuditStream = BoxStream<'static, Result<AuditRecord, Status>>;

    async fn list_audit(
        &self,
        request: Request<ListAuditRequest>,
    ) -> Result<Response<Self::ListAuditStream>, Status> {
        let caller = self.0.admit(&request, Verb::AuditRead, "audit")?;
        self.0.reads.linearizable(caller.until).await?;
        self.0.list_audit(request.into_inner()).map(Response::new)
    }

    async fn audit_head(
        &self,
        request: Request<AuditHeadRequest>,
    ) -> Result<Response<AuditHeadResponse>, Status> {
        let caller = self.0.admit(&request, Verb::AuditRead, "audit")?;
        self.0.reads.linearizable(caller.until).await?;
        self.0.audit_head().map(Response::new)
    }
}
