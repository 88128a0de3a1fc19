//! Roles and operations: what people see of them, and what they ask for.

use regent_core::id::{Epoch, InstanceName, Revision, ServiceName};
use tonic::Streaming;
use tonic::transport::Channel;

use super::call::request;
use super::{CallError, Client};
use crate::calls::Calls;
use crate::convert::common::{Freshness, epoch_out, freshness_out};
use crate::limits::MAX_ANSWER_BYTES;
use crate::pb::v1;
use crate::pb::v1::operation_service_client::OperationServiceClient;

fn api(calls: &Calls) -> OperationServiceClient<Channel> {
    OperationServiceClient::new(calls.channel()).max_decoding_message_size(MAX_ANSWER_BYTES)
}

fn named<T: ToString>(name: Option<&T>) -> String {
    name.map(ToString::to_string).unwrap_or_default()
}

/// Another primary: asked for by a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Of which service.
    pub service: ServiceName,
    /// Who; `None`: whoever is best.
    pub to: Option<InstanceName>,
    /// Why, for the audit chain.
    pub reason: String,
    /// Refused when another epoch is in force; `None`: whichever is.
    pub seen: Option<Epoch>,
}

impl Client {
    /// Another primary, in order.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn switchover(&self, wanted: &Wanted) -> Result<v1::SwitchoverResponse, CallError> {
        self.write(|calls, left, id| {
            let message = v1::SwitchoverRequest {
                request: Some(id),
                service: wanted.service.to_string(),
                to: named(wanted.to.as_ref()),
                reason: wanted.reason.clone(),
                seen: wanted.seen.map(epoch_out),
            };
            async move { api(&calls).switchover(request(message, left)).await }
        })
        .await
    }

    /// Another primary, because the old one is gone.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn failover(&self, wanted: &Wanted) -> Result<v1::FailoverResponse, CallError> {
        self.write(|calls, left, id| {
            let message = v1::FailoverRequest {
                request: Some(id),
                service: wanted.service.to_string(),
                to: named(wanted.to.as_ref()),
                reason: wanted.reason.clone(),
                seen: wanted.seen.map(epoch_out),
            };
            async move { api(&calls).failover(request(message, left)).await }
        })
        .await
    }

    /// Gives up the role change that is open; with `operation` only if it is that one.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn abort_operation(
        &self,
        service: &ServiceName,
        operation: Option<Revision>,
        reason: &str,
    ) -> Result<v1::AbortOperationResponse, CallError> {
        self.write(|calls, left, id| {
            let message = v1::AbortOperationRequest {
                request: Some(id),
                service: service.to_string(),
                operation: operation.map_or(0, |operation| operation.0),
                reason: reason.to_owned(),
            };
            async move { api(&calls).abort_operation(request(message, left)).await }
        })
        .await
    }

    /// All operations of a service, or of all services: by service, the oldest first; page after
    /// page. The stamp is the first page's.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn list_operations(
        &self,
        service: Option<&ServiceName>,
        read: Freshness,
    ) -> Result<v1::ListOperationsResponse, CallError> {
        let mut all = self.list_operations_after(service, None, read).await?;
        while let (true, Some(last)) = (all.more, all.operations.last()) {
            let (at, id) = (last.service.clone(), last.id);
            let page = self.list_operations_after(service, Some((at, id)), read).await?;
            // A node that says there are more and names none would be asked for ever.
            all.more = page.more && !page.operations.is_empty();
            all.operations.extend(page.operations);
        }
        Ok(all)
    }

    async fn list_operations_after(
        &self,
        service: Option<&ServiceName>,
        after: Option<(String, u64)>,
        read: Freshness,
    ) -> Result<v1::ListOperationsResponse, CallError> {
        let (after_service, after) = after.unwrap_or_default();
        self.read(|calls, left| {
            let message = v1::ListOperationsRequest {
                service: named(service),
                read: freshness_out(read),
                after_service: after_service.clone(),
                after,
            };
            async move { api(&calls).list_operations(request(message, left)).await }
        })
        .await
    }

    /// One operation; `None`: the newest of the service.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn show_operation(
        &self,
        service: &ServiceName,
        operation: Option<Revision>,
        read: Freshness,
    ) -> Result<v1::ShowOperationResponse, CallError> {
        self.read(|calls, left| {
            let message = v1::ShowOperationRequest {
                service: service.to_string(),
                operation: operation.map_or(0, |operation| operation.0),
                read: freshness_out(read),
            };
            async move { api(&calls).show_operation(request(message, left)).await }
        })
        .await
    }

    /// A service's role and newest operation, now and each time one of them changes. Every message
    /// is the whole of it, so after a break the caller just watches again.
    ///
    /// # Errors
    /// [`CallError`] when no node begins; later the stream's own status.
    pub async fn watch_operations(
        &self,
        service: &ServiceName,
    ) -> Result<Streaming<v1::WatchOperationsResponse>, CallError> {
        self.read(|calls, _| {
            let message = v1::WatchOperationsRequest { service: service.to_string() };
            async move { api(&calls).watch_operations(message).await }
        })
        .await
    }

    /// The roles of all services, or of one: page after page. The stamp is the first page's.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn list_roles(
        &self,
        service: Option<&ServiceName>,
        read: Freshness,
    ) -> Result<v1::ListRolesResponse, CallError> {
        let page = async |after: String| {
            self.read(|calls, left| {
                let (service, after) = (named(service), after.clone());
                let message = v1::ListRolesRequest { service, read: freshness_out(read), after };
                async move { api(&calls).list_roles(request(message, left)).await }
            })
            .await
        };
        let mut all = page(String::new()).await?;
        while let (true, Some(last)) = (all.more, all.roles.last()) {
            let next = page(last.service.clone()).await?;
            all.more = next.more && !next.roles.is_empty();
            all.roles.extend(next.roles);
        }
        Ok(all)
    }

    /// What the leader knows of a service, what it would do, and why not.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn explain(&self, service: &ServiceName) -> Result<v1::ExplainResponse, CallError> {
        self.read(|calls, left| {
            let message = v1::ExplainRequest { service: service.to_string() };
            async move { api(&calls).explain(request(message, left)).await }
        })
        .await
    }

    /// Keeps Regent's hands off a service.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn pause(
        &self,
        service: &ServiceName,
        reason: &str,
    ) -> Result<v1::PauseResponse, CallError> {
        self.write(|calls, left, id| {
            let (service, reason) = (service.to_string(), reason.to_owned());
            let message = v1::PauseRequest { request: Some(id), service, reason };
            async move { api(&calls).pause(request(message, left)).await }
        })
        .await
    }

    /// Ends a pause.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn resume(
        &self,
        service: &ServiceName,
        reason: &str,
    ) -> Result<v1::ResumeResponse, CallError> {
        self.write(|calls, left, id| {
            let (service, reason) = (service.to_string(), reason.to_owned());
            let message = v1::ResumeRequest { request: Some(id), service, reason };
            async move { api(&calls).resume(request(message, left)).await }
        })
        .await
    }

    /// Operations that ask people, of a service or of all; with `all` those that were answered, too.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn list_approvals(
        &self,
        service: Option<&ServiceName>,
        all: bool,
        read: Freshness,
    ) -> Result<v1::ListApprovalsResponse, CallError> {
        self.read(|calls, left| {
            let (service, read) = (named(service), freshness_out(read));
            let message = v1::ListApprovalsRequest { service, read, all };
            async move { api(&calls).list_approvals(request(message, left)).await }
        })
        .await
    }

    /// Answers an approval.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn answer_approval(
        &self,
        service: &ServiceName,
        approval: Revision,
        granted: bool,
        reason: &str,
    ) -> Result<v1::AnswerApprovalResponse, CallError> {
        self.write(|calls, left, id| {
            let message = v1::AnswerApprovalRequest {
                request: Some(id),
                service: service.to_string(),
                approval: approval.0,
                granted,
                reason: reason.to_owned(),
            };
            async move { api(&calls).answer_approval(request(message, left)).await }
        })
        .await
    }
}
