//! Services.

use regent_core::command::Expect;
use regent_core::id::{Epoch, InstanceName, PartitionName, ServiceName};
use regent_core::spec::ServiceSpec;
use tonic::transport::Channel;

use super::call::request;
use super::watch::{ServiceEvents, Watch};
use super::{CallError, Client};
use crate::calls::Calls;
use crate::convert::common::{self, Freshness, epoch_out, expect_out, freshness_out};
use crate::convert::page::gets_on;
use crate::convert::topology::spec_out;
use crate::limits::MAX_ANSWER_BYTES;
use crate::pb::v1;
use crate::pb::v1::topology_service_client::TopologyServiceClient;

pub(super) fn api(calls: &Calls) -> TopologyServiceClient<Channel> {
    TopologyServiceClient::new(calls.channel()).max_decoding_message_size(MAX_ANSWER_BYTES)
}

impl Client {
    /// Declares or changes a service; with `dry_run` only says whether it would change anything.
    ///
    /// # Errors
    /// [`CallError`]; the field that is wrong is in its details.
    pub async fn apply_service(
        &self,
        spec: &ServiceSpec,
        expect: Expect,
        dry_run: bool,
    ) -> Result<v1::ApplyServiceResponse, CallError> {
        let (spec, expect) = (spec_out(spec), expect_out(expect));
        self.write(|calls, left, id| {
            let spec = Some(spec.clone());
            let message = v1::ApplyServiceRequest { request: Some(id), spec, expect, dry_run };
            async move { api(&calls).apply_service(request(message, left)).await }
        })
        .await
    }

    /// One service.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn get_service(
        &self,
        name: &ServiceName,
        read: Freshness,
    ) -> Result<v1::GetServiceResponse, CallError> {
        self.read(|calls, left| {
            let (name, read) = (name.to_string(), freshness_out(read));
            let message = v1::GetServiceRequest { name, read };
            async move { api(&calls).get_service(request(message, left)).await }
        })
        .await
    }

    /// All services, page after page. The stamp is the first page's: nothing in the answer is older.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn list_services(
        &self,
        read: Freshness,
    ) -> Result<v1::ListServicesResponse, CallError> {
        let mut all = self.list_services_after("", read).await?;
        while let (true, Some(last)) = (all.more, all.services.last()) {
            let name = last.spec.as_ref().map_or("", |spec| &spec.name);
            let page = self.list_services_after(name, read).await?;
            all.services.extend(page.services);
            all.more = page.more;
        }
        Ok(all)
    }

    /// One page of [`Client::list_services`]: names above `after`, in their order. There are more
    /// when the answer says so.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn list_services_after(
        &self,
        after: &str,
        read: Freshness,
    ) -> Result<v1::ListServicesResponse, CallError> {
        self.read(|calls, left| {
            let (read, after) = (freshness_out(read), after.to_owned());
            let message = v1::ListServicesRequest { read, after };
            async move {
                let after = message.after.clone();
                gets_on(&after, api(&calls).list_services(request(message, left)).await?)
            }
        })
        .await
    }

    /// Removes a service.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn delete_service(
        &self,
        name: &ServiceName,
        expect: Expect,
    ) -> Result<v1::DeleteServiceResponse, CallError> {
        self.write(|calls, left, id| {
            let (name, expect) = (name.to_string(), expect_out(expect));
            let message = v1::DeleteServiceRequest { request: Some(id), name, expect };
            async move { api(&calls).delete_service(request(message, left)).await }
        })
        .await
    }

    /// Lets a quarantined service go on.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn release_quarantine(
        &self,
        service: &ServiceName,
        reason: &str,
    ) -> Result<v1::ReleaseQuarantineResponse, CallError> {
        self.write(|calls, left, id| {
            let (service, reason) = (service.to_string(), reason.to_owned());
            let message = v1::ReleaseQuarantineRequest { request: Some(id), service, reason };
            async move { api(&calls).release_quarantine(request(message, left)).await }
        })
        .await
    }

    /// Gives a partition to an instance, or to nobody, under a new epoch.
    ///
    /// # Errors
    /// [`CallError`]; refused when another epoch than `seen` is in force.
    pub async fn assign_partition(
        &self,
        service: &ServiceName,
        partition: &PartitionName,
        to: Option<&InstanceName>,
        seen: Epoch,
    ) -> Result<v1::AssignPartitionResponse, CallError> {
        self.write(|calls, left, id| {
            let message = v1::AssignPartitionRequest {
                request: Some(id),
                service: service.to_string(),
                partition: partition.to_string(),
                to: to.map(ToString::to_string).unwrap_or_default(),
                seen: Some(epoch_out(seen)),
            };
            async move { api(&calls).assign_partition(request(message, left)).await }
        })
        .await
    }

    /// Sees every change of one service, or of all.
    pub fn watch_services(
        &self,
        name: Option<ServiceName>,
        from: common::From,
    ) -> Watch<ServiceEvents> {
        Watch::new(self.clone(), ServiceEvents { name }, from)
    }
}
