//! `regent.v1.OperationService`: roles, what changes them, and why.

use std::ops::Bound;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use regent_core::authz::Verb;
use regent_core::command::Command;
use regent_core::id::{Epoch, InstanceName, Revision, ServiceName};
use regent_core::role::FenceKind;
use regent_core::state::State;
use regent_core::state::role::plan;
use regent_core::state::role::row::ServiceRole;
use regent_core::state::version::PREPARE_LEVEL;
use regent_rpc::convert::common::{
    epoch_in, freshness, instance_name, positive, service_name, text,
};
use regent_rpc::convert::operation::{instance_view, operation_out, role_out, said_out};
use regent_rpc::convert::topology::life_text;
use regent_rpc::convert::{Invalid, status};
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::operation_service_server::OperationService;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::page::page;
use crate::agents::board::Rows;
use crate::refuse::RETRY_AFTER;
use crate::shell::Shell;

/// The verdict of a failover that a person asked for.
const OPERATOR: &str = "operator";

/// Serves operations.
pub struct OperationHandler(pub Arc<Shell>);

/// Why a person wants it; an audit record without a reason is worth little.
fn reason(given: &str) -> Result<String, Status> {
    let given = text("reason", given)?;
    if given.trim().is_empty() {
        let fix = "say why; it is kept in the audit chain";
        return Err(Invalid::new("reason", "it is empty", fix).into());
    }
    Ok(given)
}

/// The service named, or all.
fn one_or_all(service: &str) -> Result<Option<ServiceName>, Status> {
    match service {
        "" => Ok(None),
        one => Ok(Some(service_name("service", one)?)),
    }
}

impl OperationHandler {
    /// The role of a service, as everything acknowledged before left it.
    async fn role(
        &self,
        service: &ServiceName,
        until: Instant,
    ) -> Result<Arc<ServiceRole>, Status> {
        self.0.reads.linearizable(until).await?;
        let state = self.0.state.read();
        if let Some(role) = state.roles().get(service) {
            return Ok(role.clone());
        }
        if state.services().contains_key(service) {
            let why = format!("no agent of service {:?} was ever started", service.as_str());
            return Err(status::refused("not_adopted", why, "start its agents"));
        }
        Err(status::not_found("service", service.as_str()))
    }

    fn view(&self, state: &State, service: &ServiceName, role: &ServiceRole) -> v1::Role {
        let newest = role.operation.and_then(|id| state.operations().get(&(service.clone(), id)));
        let live = |session| self.0.clocks.believed_live(session);
        role_out(service, role, newest.map(AsRef::as_ref), live)
    }

    /// The rows of operations after `after` that `wanted` wants, in their order.
    fn operations(
        state: &State,
        service: Option<&ServiceName>,
        after: Option<(ServiceName, Revision)>,
        wanted: impl Fn(&v1::Operation) -> bool,
    ) -> (Vec<v1::Operation>, bool) {
        let from = match (after, service) {
            (Some(after), _) => Bound::Excluded(after),
            (None, Some(one)) => Bound::Included((one.clone(), Revision(0))),
            (None, None) => Bound::Unbounded,
        };
        let rows = state.operations().range((from, Bound::Unbounded));
        let rows = rows.take_while(|((of, _), _)| service.is_none_or(|one| one == of));
        let rows = rows.map(|((of, id), row)| operation_out(of, *id, row));
        page(rows.filter(wanted))
    }

    async fn set_pause<T>(
        &self,
        request: &Request<T>,
        (id, service, why): (Option<v1::RequestId>, &str, &str),
        paused: bool,
    ) -> Result<v1::Stamp, Status> {
        let caller = self.0.admit(request, Verb::OperationsRun, service)?;
        let (service, reason) = (service_name("service", service)?, reason(why)?);
        let command = Command::SetPause { service, paused, reason };
        let reply = self.0.write(caller, id, &command).await?;
        Ok(self.0.stamp_at(reply.revision()))
    }

    /// A message of a watch.
    fn watched(shell: &Shell, service: &ServiceName, rows: &Rows) -> v1::WatchOperationsResponse {
        use regent_rpc::convert::common::stamp_out;
        let newest = rows.operation.as_ref();
        let live = |session| shell.clocks.believed_live(session);
        let role = rows
            .role
            .as_ref()
            .map(|role| role_out(service, role, newest.map(|(_, row)| row.as_ref()), live));
        v1::WatchOperationsResponse {
            stamp: Some(stamp_out(rows.at.0, rows.at.1, shell.node, 0)),
            role,
            operation: newest.map(|(id, row)| operation_out(service, *id, row)),
        }
    }

    /// The log judges what a candidate of a failover must be; that one is there at all, it cannot
    /// know. And once a fence is open, the wish is whose it is.
    fn can_be_wished_for(&self, role: &ServiceRole, to: &InstanceName) -> Result<(), Status> {
        if let Some(open) = role.fence.as_ref().filter(|open| open.kind.wanted() != Some(to)) {
            let why = format!("operation {} is open, and not for {to}", open.operation);
            let hint = "leave --to out, or `regent operations abort` it first";
            return Err(status::refused("fence_open", why, hint));
        }
        let row = role.instances.get(to);
        if row.is_some_and(|row| !self.0.clocks.believed_live(row.session)) {
            let why = format!("the agent of {to} is not heard: it could not take over");
            let hint = "start its agent, or leave --to out: the best of the others is promoted";
            return Err(status::refused("not_free", why, hint));
        }
        Ok(())
    }

    /// What a person's role change is refused or begun with: the epoch that must be in force.
    fn seen(role: &ServiceRole, given: Option<v1::Epoch>) -> Epoch {
        given.map_or(role.epoch, epoch_in)
    }
}

#[tonic::async_trait]
impl OperationService for OperationHandler {
    type WatchOperationsStream = BoxStream<'static, Result<v1::WatchOperationsResponse, Status>>;

    async fn switchover(
        &self,
        request: Request<v1::SwitchoverRequest>,
    ) -> Result<Response<v1::SwitchoverResponse>, Status> {
        let caller = self.0.admit(&request, Verb::OperationsRun, &request.get_ref().service)?;
        let request = request.into_inner();
        let (service, reason) =
            (service_name("service", &request.service)?, reason(&request.reason)?);
        let to = match request.to.as_str() {
            "" => None,
            to => Some(instance_name("to", to)?),
        };
        let role = self.role(&service, caller.until).await?;
        let seen = Self::seen(&role, request.seen);
        let command = match self.0.state.read().cluster().feature_level < PREPARE_LEVEL {
            false => Command::PlanSwitchover { service, to, seen, reason },
            true => {
                let kind = FenceKind::Switchover { to };
                Command::OpenFence { service, kind, seen, reason }
            }
        };
        let reply = self.0.write(caller, request.request, &command).await?;
        Ok(Response::new(v1::SwitchoverResponse {
            stamp: Some(self.0.stamp_at(reply.revision())),
            operation: reply.revision().map_or(0, |revision| revision.0),
        }))
    }

    async fn failover(
        &self,
        request: Request<v1::FailoverRequest>,
    ) -> Result<Response<v1::FailoverResponse>, Status> {
        let caller = self.0.admit(&request, Verb::OperationsRun, &request.get_ref().service)?;
        let request = request.into_inner();
        let to = match request.to.as_str() {
            "" => None,
            to => Some(instance_name("to", to)?),
        };
        let (service, reason) =
            (service_name("service", &request.service)?, reason(&request.reason)?);
        let role = self.role(&service, caller.until).await?;
        if let Some(to) = &to {
            self.can_be_wished_for(&role, to)?;
        }
        let verdict = OPERATOR.to_owned();
        let planned = role.fence.as_ref().filter(|fence| fence.kind.is_planned());
        let (command, operation) = match planned {
            Some(open) => {
                let fence = open.fence;
                let command = Command::TakeOverFence { service, fence, verdict, reason };
                (command, Some(open.operation))
            }
            None => {
                let kind = FenceKind::Failover { verdict, to };
                let seen = Self::seen(&role, request.seen);
                (Command::OpenFence { service, kind, seen, reason }, None)
            }
        };
        let reply = self.0.write(caller, request.request, &command).await?;
        let operation = operation.or(reply.revision());
        Ok(Response::new(v1::FailoverResponse {
            stamp: Some(self.0.stamp_at(reply.revision())),
            operation: operation.map_or(0, |revision| revision.0),
        }))
    }

    async fn abort_operation(
        &self,
        request: Request<v1::AbortOperationRequest>,
    ) -> Result<Response<v1::AbortOperationResponse>, Status> {
        let caller = self.0.admit(&request, Verb::OperationsRun, &request.get_ref().service)?;
        let request = request.into_inner();
        let (service, reason) =
            (service_name("service", &request.service)?, reason(&request.reason)?);
        let role = self.role(&service, caller.until).await?;
        let wanted = |operation: Revision| [0, operation.0].contains(&request.operation);
        let open = role.fence.as_ref().map(|open| (open.operation, open.fence));
        // One that is announced has no fence yet: its own number stands for it.
        let open = open.or_else(|| {
            let state = self.0.state.read();
            plan::of(&state, &service, &role).map(|(id, _)| (id, id))
        });
        let Some((_, fence)) = open.filter(|(operation, _)| wanted(*operation)) else {
            let why = format!("no such role change of {:?} is open", service.as_str());
            let hint = "see `regent operations list`; after the grant only a new one leads back";
            return Err(status::refused("fence_not_open", why, hint));
        };
        let command = Command::CloseFence { service, fence, reason };
        let reply = self.0.write(caller, request.request, &command).await?;
        let stamp = Some(self.0.stamp_at(reply.revision()));
        Ok(Response::new(v1::AbortOperationResponse { stamp }))
    }

    async fn list_operations(
        &self,
        request: Request<v1::ListOperationsRequest>,
    ) -> Result<Response<v1::ListOperationsResponse>, Status> {
        let caller = self.0.admit(&request, Verb::OperationsRead, &request.get_ref().service)?;
        let request = request.into_inner();
        let service = one_or_all(&request.service)?;
        let after = match one_or_all(&request.after_service)? {
            None => None,
            Some(at) => Some((at, Revision(request.after))),
        };
        let age_ms = self.0.reads.fresh(freshness(request.read), caller.until).await?;
        let state = self.0.state.read();
        let (operations, more) = Self::operations(&state, service.as_ref(), after, |_| true);
        let stamp = Some(self.0.stamp(&state, age_ms));
        Ok(Response::new(v1::ListOperationsResponse { stamp, operations, more }))
    }

    async fn show_operation(
        &self,
        request: Request<v1::ShowOperationRequest>,
    ) -> Result<Response<v1::ShowOperationResponse>, Status> {
        let caller = self.0.admit(&request, Verb::OperationsRead, &request.get_ref().service)?;
        let request = request.into_inner();
        let service = service_name("service", &request.service)?;
        let age_ms = self.0.reads.fresh(freshness(request.read), caller.until).await?;
        let state = self.0.state.read();
        let id = match request.operation {
            0 => state.roles().get(&service).and_then(|role| role.operation),
            id => Some(Revision(id)),
        };
        let found = id.and_then(|id| {
            let row = state.operations().get(&(service.clone(), id))?;
            Some(operation_out(&service, id, row))
        });
        let Some(operation) = found else {
            let name = id.map_or_else(|| service.to_string(), |id| format!("{service} {id}"));
            return Err(status::not_found("operation", &name));
        };
        let (stamp, operation) = (Some(self.0.stamp(&state, age_ms)), Some(operation));
        Ok(Response::new(v1::ShowOperationResponse { stamp, operation }))
    }

    async fn watch_operations(
        &self,
        request: Request<v1::WatchOperationsRequest>,
    ) -> Result<Response<Self::WatchOperationsStream>, Status> {
        let caller = self.0.admit(&request, Verb::OperationsRead, &request.get_ref().service)?;
        let service = service_name("service", &request.get_ref().service)?;
        // Whoever begins to watch must see at least what was acknowledged before (S11).
        self.0.reads.linearizable(caller.until).await?;
        let mut rows = {
            let state = self.0.state.read();
            if !state.services().contains_key(&service) {
                return Err(status::not_found("service", service.as_str()));
            }
            self.0.board.follow(&state, &service)?
        };
        rows.mark_changed();
        let begun = (self.0.clone(), service, rows);
        let changes = futures::stream::unfold(begun, |(shell, service, mut rows)| async move {
            if rows.changed().await.is_err() {
                return None;
            }
            let message = Self::watched(&shell, &service, &rows.borrow_and_update());
            Some((Ok(message), (shell, service, rows)))
        });
        Ok(Response::new(changes.boxed()))
    }

    async fn list_roles(
        &self,
        request: Request<v1::ListRolesRequest>,
    ) -> Result<Response<v1::ListRolesResponse>, Status> {
        let caller = self.0.admit(&request, Verb::OperationsRead, &request.get_ref().service)?;
        let request = request.into_inner();
        let service = one_or_all(&request.service)?;
        let age_ms = self.0.reads.fresh(freshness(request.read), caller.until).await?;
        let state = self.0.state.read();
        let above = (Bound::Excluded(request.after.as_str()), Bound::Unbounded);
        let rows = state.roles().range::<str, _>(above);
        let rows = rows.filter(|(name, _)| service.as_ref().is_none_or(|one| one == *name));
        let (roles, more) = page(rows.map(|(name, role)| self.view(&state, name, role)));
        let stamp = Some(self.0.stamp(&state, age_ms));
        Ok(Response::new(v1::ListRolesResponse { stamp, roles, more }))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let caller = self.0.admit(&request, Verb::OperationsRead, &request.get_ref().service)?;
        let service = service_name("service", &request.get_ref().service)?;
        // Hot facts and the decider's words are the leader's alone.
        if !self.0.leadership.is_here() {
            return Err(status::not_leader(self.0.leadership.now(), RETRY_AFTER));
        }
        self.0.reads.linearizable(caller.until).await?;
        let state = self.0.state.read();
        let Some(row) = state.services().get(&service) else {
            return Err(status::not_found("service", service.as_str()));
        };
        let role = state.roles().get(&service);
        let (facts, now) = (self.0.desk.facts(), self.0.clock.now());
        let live = |session| self.0.clocks.believed_live(session);
        let instances = row.spec.instances.iter().map(|declared| {
            let row = role.and_then(|role| role.instances.get(&declared.name));
            instance_view(declared, row, facts.of(&service, &declared.name), now, live)
        });
        let instances = instances.collect();
        let newest = role.and_then(|role| role.operation);
        let operation = newest.and_then(|id| {
            let row = state.operations().get(&(service.clone(), id))?;
            Some(operation_out(&service, id, row))
        });
        let report = self.0.reports.of(&service).into_iter().map(|said| v1::ReportLine {
            at_ms: said.at.0,
            acted: said.line.acted,
            text: said.line.text,
        });
        Ok(Response::new(v1::ExplainResponse {
            stamp: Some(self.0.stamp(&state, 0)),
            role: role.map(|role| self.view(&state, &service, role)),
            operation,
            instances,
            report: report.collect(),
            life: life_text(row.life).to_owned(),
            said: state.holders().get(&service).and_then(|row| said_out(row)),
        }))
    }

    async fn pause(
        &self,
        request: Request<v1::PauseRequest>,
    ) -> Result<Response<v1::PauseResponse>, Status> {
        let v1::PauseRequest { request: id, service, reason } = request.get_ref().clone();
        let stamp = self.set_pause(&request, (id, &service, &reason), true).await?;
        Ok(Response::new(v1::PauseResponse { stamp: Some(stamp) }))
    }

    async fn resume(
        &self,
        request: Request<v1::ResumeRequest>,
    ) -> Result<Response<v1::ResumeResponse>, Status> {
        let v1::ResumeRequest { request: id, service, reason } = request.get_ref().clone();
        let stamp = self.set_pause(&request, (id, &service, &reason), false).await?;
        Ok(Response::new(v1::ResumeResponse { stamp: Some(stamp) }))
    }

    async fn list_approvals(
        &self,
        request: Request<v1::ListApprovalsRequest>,
    ) -> Result<Response<v1::ListApprovalsResponse>, Status> {
        let caller = self.0.admit(&request, Verb::OperationsRead, &request.get_ref().service)?;
        let request = request.into_inner();
        let service = one_or_all(&request.service)?;
        let age_ms = self.0.reads.fresh(freshness(request.read), caller.until).await?;
        let state = self.0.state.read();
        let wanted = |row: &v1::Operation| {
            let open = |approval: &v1::Approval| approval.answer.is_none() && !row.over;
            row.approval.as_ref().is_some_and(|approval| request.all || open(approval))
        };
        let (operations, more) = Self::operations(&state, service.as_ref(), None, wanted);
        let stamp = Some(self.0.stamp(&state, age_ms));
        Ok(Response::new(v1::ListApprovalsResponse { stamp, operations, more }))
    }

    async fn answer_approval(
        &self,
        request: Request<v1::AnswerApprovalRequest>,
    ) -> Result<Response<v1::AnswerApprovalResponse>, Status> {
        let caller = self.0.admit(&request, Verb::ApprovalsAnswer, &request.get_ref().service)?;
        let request = request.into_inner();
        let command = Command::AnswerApproval {
            service: service_name("service", &request.service)?,
            approval: Revision(positive("approval", request.approval)?),
            granted: request.granted,
            reason: reason(&request.reason)?,
        };
        let reply = self.0.write(caller, request.request, &command).await?;
        let stamp = Some(self.0.stamp_at(reply.revision()));
        Ok(Response::new(v1::AnswerApprovalResponse { stamp }))
    }
}
