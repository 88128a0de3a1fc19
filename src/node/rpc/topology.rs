//! `regent.v1.TopologyService`: what services are declared.

use std::ops::Bound;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use regent_core::authz::Verb;
use regent_core::command::{Command, Expect};
use regent_core::id::{Revision, ServiceName};
use regent_core::reply::{Rejection, Reply};
use regent_core::spec::ServiceSpec;
use regent_core::state::State;
use regent_core::state::service::{Life, Service};
use regent_rpc::convert::common::{
    epoch, epoch_out, expect, freshness, instance_name, partition_name, service_name, text,
};
use regent_rpc::convert::topology::applied_spec;
use regent_rpc::convert::{Invalid, status};
use regent_rpc::pb::v1::topology_service_server::TopologyService;
use regent_rpc::pb::v1::{
    ApplyServiceRequest, ApplyServiceResponse, AssignPartitionRequest, AssignPartitionResponse,
    DeleteServiceRequest, DeleteServiceResponse, GetServiceRequest, GetServiceResponse,
    ListServicesRequest, ListServicesResponse, ReleaseQuarantineRequest, ReleaseQuarantineResponse,
    WatchServicesRequest, WatchServicesResponse,
};
use tonic::{Request, Response, Status};

use super::election::odd;
use super::guard::Caller;
use super::page::page;
use super::watches::WatchServicesCall;
use crate::shell::Shell;
use crate::watch::serve::WatchCall as _;
use crate::watch::service_view;

/// Serves the topology.
pub struct TopologyHandler(pub Arc<Shell>);

impl TopologyHandler {
    /// What applying `spec` would do, as far as the state at hand tells; nothing is changed.
    async fn dry_run(
        &self,
        caller: Caller,
        spec: ServiceSpec,
        expect: Expect,
    ) -> Result<ApplyServiceResponse, Status> {
        self.0.reads.linearizable(caller.until).await?;
        let state = self.0.state.read();
        let row = state.services().get(&spec.name);
        check_expect(&spec.name, row.map(|row| row.changed), expect)?;
        let changed = row.is_none_or(|row| row.spec != spec);
        let would_be = Service {
            life: row.map_or(Life::Declared, |row| row.life),
            created: row.map_or(Revision(0), |row| row.created),
            changed: row.map_or(Revision(0), |row| row.changed),
            quarantine: row.and_then(|row| row.quarantine.clone()),
            spec,
        };
        let service = Some(service_view(&state, &would_be.spec.name.clone(), &would_be));
        Ok(ApplyServiceResponse { stamp: Some(self.0.stamp(&state, 0)), changed, service })
    }
}

/// The same judgement that `apply` will make on the condition.
fn check_expect(
    name: &ServiceName,
    changed: Option<Revision>,
    expect: Expect,
) -> Result<(), Status> {
    let (what, name) = ("service".to_owned(), name.to_string());
    let rejection = match (expect, changed) {
        (Expect::Any, _) | (Expect::Absent, None) => return Ok(()),
        (Expect::Absent, Some(revision)) => Rejection::AlreadyExists { what, name, revision },
        (Expect::Revision(_), None) => Rejection::NotFound { what, name },
        (Expect::Revision(expected), Some(found)) if expected == found => return Ok(()),
        (Expect::Revision(expected), Some(found)) => {
            Rejection::Conflict { what, name, expected, found }
        }
    };
    Err(status::rejected(&rejection))
}

/// Every problem of a declaration at once, so that people fix it in one go.
fn check_spec(spec: &ServiceSpec, state: &State) -> Result<(), Status> {
    let problems = spec.validate(&state.cluster().timing);
    let Some(first) = problems.first() else { return Ok(()) };
    let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
    Err(status::Refused {
        field: format!("spec.{}", first.field),
        hint: first.fix.clone(),
        ..status::Refused::of("invalid")
    }
    .into_status(tonic::Code::InvalidArgument, all.join("\n")))
}

#[tonic::async_trait]
impl TopologyService for TopologyHandler {
    type WatchServicesStream = BoxStream<'static, Result<WatchServicesResponse, Status>>;

    async fn apply_service(
        &self,
        request: Request<ApplyServiceRequest>,
    ) -> Result<Response<ApplyServiceResponse>, Status> {
        let resource = request.get_ref().spec.as_ref().map_or("", |spec| spec.name.as_str());
        let caller = self.0.admit(&request, Verb::ServicesWrite, resource)?;
        let request = request.into_inner();
        let spec = applied_spec(request.spec)?;
        let expect = expect("expect", request.expect)?;
        check_spec(&spec, &self.0.state.read())?;
        if request.dry_run {
            return self.dry_run(caller, spec, expect).await.map(Response::new);
        }
        let (name, until) = (spec.name.clone(), caller.until);
        let command = Command::PutService { spec: Box::new(spec), expect };
        let reply = self.0.write(caller, request.request, &command).await?;
        let Some(revision) = reply.revision() else { return Err(odd(&reply)) };
        let changed = !matches!(reply, Reply::Unchanged { .. });
        // This node may have forwarded and not applied it yet; the answer shows the row it made.
        self.0.reads.applied(revision, until).await?;
        let state = self.0.state.read();
        let row = state.services().get(&name);
        Ok(Response::new(ApplyServiceResponse {
            stamp: Some(self.0.stamp(&state, 0)),
            changed,
            service: row.map(|row| service_view(&state, &name, row)),
        }))
    }

    async fn get_service(
        &self,
        request: Request<GetServiceRequest>,
    ) -> Result<Response<GetServiceResponse>, Status> {
        let resource = &request.get_ref().name;
        let caller = self.0.admit(&request, Verb::ServicesRead, resource)?;
        let GetServiceRequest { name, read } = request.into_inner();
        let name = service_name("name", &name)?;
        let age_ms = self.0.reads.fresh(freshness(read), caller.until).await?;
        let state = self.0.state.read();
        let Some(row) = state.services().get(&name) else {
            return Err(status::not_found("service", name.as_str()));
        };
        let service = Some(service_view(&state, &name, row));
        Ok(Response::new(GetServiceResponse { stamp: Some(self.0.stamp(&state, age_ms)), service }))
    }

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        let caller = self.0.admit(&request, Verb::ServicesRead, "services")?;
        let ListServicesRequest { read, after } = request.into_inner();
        let age_ms = self.0.reads.fresh(freshness(read), caller.until).await?;
        let state = self.0.state.read();
        let above = (Bound::Excluded(after.as_str()), Bound::Unbounded);
        let rows = state.services().range::<str, _>(above);
        let (services, more) = page(rows.map(|(name, row)| service_view(&state, name, row)));
        let stamp = Some(self.0.stamp(&state, age_ms));
        Ok(Response::new(ListServicesResponse { stamp, services, more }))
    }

    async fn delete_service(
        &self,
        request: Request<DeleteServiceRequest>,
    ) -> Result<Response<DeleteServiceResponse>, Status> {
        let resource = &request.get_ref().name;
        let caller = self.0.admit(&request, Verb::ServicesWrite, resource)?;
        let request = request.into_inner();
        let command = Command::DeleteService {
            service: service_name("name", &request.name)?,
            expect: expect("expect", request.expect)?,
        };
        let reply = self.0.write(caller, request.request, &command).await?;
        Ok(Response::new(DeleteServiceResponse { stamp: Some(self.0.stamp_at(reply.revision())) }))
    }

    /// Only reached around [`super::watches`]; the same, decoded.
    async fn watch_services(
        &self,
        request: Request<WatchServicesRequest>,
    ) -> Result<Response<Self::WatchServicesStream>, Status> {
        let watch = WatchServicesCall(self.0.clone()).watch(request).await?;
        Ok(Response::new(watch.decoded().boxed()))
    }

    async fn release_quarantine(
        &self,
        request: Request<ReleaseQuarantineRequest>,
    ) -> Result<Response<ReleaseQuarantineResponse>, Status> {
        let resource = &request.get_ref().service;
        let caller = self.0.admit(&request, Verb::ServicesWrite, resource)?;
        let request = request.into_inner();
        let reason = text("reason", &request.reason)?;
        if reason.trim().is_empty() {
            let fix = "say why it is safe to go on; it is kept in the audit chain";
            return Err(Invalid::new("reason", "it is empty", fix).into());
        }
        let service = service_name("service", &request.service)?;
        let command = Command::ReleaseQuarantine { service, reason };
        let reply = self.0.write(caller, request.request, &command).await?;
        let stamp = Some(self.0.stamp_at(reply.revision()));
        Ok(Response::new(ReleaseQuarantineResponse { stamp }))
    }

    async fn assign_partition(
        &self,
        request: Request<AssignPartitionRequest>,
    ) -> Result<Response<AssignPartitionResponse>, Status> {
        let resource = &request.get_ref().service;
        let caller = self.0.admit(&request, Verb::ServicesWrite, resource)?;
        let request = request.into_inner();
        let to = match request.to.as_str() {
            "" => None,
            to => Some(instance_name("to", to)?),
        };
        let command = Command::AssignPartition {
            service: service_name("service", &request.service)?,
            partition: partition_name("partition", &request.partition)?,
            to,
            seen: epoch("seen", request.seen)?,
        };
        let reply = self.0.write(caller, request.request, &command).await?;
        let Reply::Granted { epoch, revision } = reply else { return Err(odd(&reply)) };
        Ok(Response::new(AssignPartitionResponse {
            stamp: Some(self.0.stamp_at(Some(revision))),
            epoch: Some(epoch_out(epoch)),
        }))
    }
}
