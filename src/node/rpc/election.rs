//! `regent.v1.ElectionService`: sessions, elections, values.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use regent_core::authz::Verb;
use regent_core::command::Command;
use regent_core::limits::RHO_PPM;
use regent_core::reply::Reply;
use regent_core::state::election::Election;
use regent_rpc::convert::common::{election_name, epoch_out, freshness};
use regent_rpc::convert::{election as convert, status};
use regent_rpc::pb::v1::election_service_server::ElectionService;
use regent_rpc::pb::v1::{
    CampaignRequest, CampaignResponse, CloseSessionRequest, CloseSessionResponse,
    DeleteElectionRequest, DeleteElectionResponse, KeepAliveRequest, KeepAliveResponse,
    LeaderRequest, LeaderResponse, ListElectionsRequest, ListElectionsResponse, ObserveRequest,
    ObserveResponse, OpenSessionRequest, OpenSessionResponse, ProclaimRequest, ProclaimResponse,
    PutElectionRequest, PutElectionResponse, ResignRequest, ResignResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::page::page;
use super::watches::ObserveCall;
use crate::shell::Shell;
use crate::watch::election_view;
use crate::watch::serve::WatchCall as _;

/// Serves elections.
pub struct ElectionHandler(pub Arc<Shell>);

#[tonic::async_trait]
impl ElectionService for ElectionHandler {
    type KeepAliveStream = BoxStream<'static, Result<KeepAliveResponse, Status>>;
    type ObserveStream = BoxStream<'static, Result<ObserveResponse, Status>>;

    async fn open_session(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        let caller = self.0.admit(&request, Verb::Sessions, "session")?;
        let request = request.into_inner();
        let command = convert::open_session(&request)?;
        let Command::OpenSession { ttl_ms, renew_interval_ms, fence_budget_ms, .. } = command
        else {
            return Err(Status::internal("open_session made another command"));
        };
        let until = caller.until;
        let reply = self.0.write(caller, request.request, &command).await?;
        let Reply::SessionOpened { session, revision } = reply else {
            return Err(odd(&reply));
        };
        Ok(Response::new(OpenSessionResponse {
            stamp: Some(self.0.stamp_applied(revision, until).await?),
            session: session.0,
            ttl_ms,
            renew_interval_ms,
            fence_budget_ms,
            rho_ppm: RHO_PPM,
        }))
    }

    async fn close_session(
        &self,
        request: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionResponse>, Status> {
        let caller = self.0.admit(&request, Verb::Sessions, "session")?;
        let request = request.into_inner();
        let command = convert::close_session(&request)?;
        let reply = self.0.write(caller, request.request, &command).await?;
        Ok(Response::new(CloseSessionResponse { stamp: Some(self.0.stamp_at(reply.revision())) }))
    }

    async fn keep_alive(
        &self,
        request: Request<Streaming<KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        let caller = self.0.authorize(&request, Verb::Sessions, "session")?;
        let stream = self.0.keeper.handle_stream(caller, request.into_inner());
        Ok(Response::new(stream.boxed()))
    }

    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let resource = &request.get_ref().election;
        let caller = self.0.admit(&request, Verb::ElectionsLead, resource)?;
        let request = request.into_inner();
        let command = convert::campaign(&request)?;
        let reply = self.0.write(caller, request.request, &command).await?;
        let (epoch, ahead) = match reply {
            Reply::Granted { epoch, .. } => (Some(epoch_out(epoch)), 0),
            Reply::Queued { ahead, .. } => (None, ahead),
            _ => return Err(odd(&reply)),
        };
        let stamp = Some(self.0.stamp_at(reply.revision()));
        Ok(Response::new(CampaignResponse { stamp, epoch, ahead }))
    }

    async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        let resource = &request.get_ref().election;
        let caller = self.0.admit(&request, Verb::ElectionsLead, resource)?;
        let request = request.into_inner();
        let command = convert::resign(&request)?;
        let reply = self.0.write(caller, request.request, &command).await?;
        Ok(Response::new(ResignResponse { stamp: Some(self.0.stamp_at(reply.revision())) }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let resource = &request.get_ref().election;
        let caller = self.0.admit(&request, Verb::ElectionsLead, resource)?;
        let request = request.into_inner();
        let command = convert::proclaim(&request)?;
        let reply = self.0.write(caller, request.request, &command).await?;
        Ok(Response::new(ProclaimResponse { stamp: Some(self.0.stamp_at(reply.revision())) }))
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        let resource = &request.get_ref().election;
        let caller = self.0.admit(&request, Verb::ElectionsRead, resource)?;
        let request = request.into_inner();
        let name = election_name("election", &request.election)?;
        let age_ms = self.0.reads.fresh(freshness(request.read), caller.until).await?;
        let state = self.0.state.read();
        let Some(row) = state.elections().get(&name) else {
            return Err(status::not_found("election", name.as_str()));
        };
        let live = row.holder.as_ref().is_some_and(|h| self.0.clocks.believed_live(h.session));
        let election = Some(election_view(&state, &name, row, live));
        Ok(Response::new(LeaderResponse { stamp: Some(self.0.stamp(&state, age_ms)), election }))
    }

    async fn list_elections(
        &self,
        request: Request<ListElectionsRequest>,
    ) -> Result<Response<ListElectionsResponse>, Status> {
        let resource = &request.get_ref().prefix;
        let caller = self.0.admit(&request, Verb::ElectionsRead, resource)?;
        let ListElectionsRequest { prefix, read, after } = request.into_inner();
        let age_ms = self.0.reads.fresh(freshness(read), caller.until).await?;
        let state = self.0.state.read();
        let view = |(name, row): (_, &Election)| {
            let live = row.holder.as_ref().is_some_and(|h| self.0.clocks.believed_live(h.session));
            election_view(&state, name, row, live)
        };
        let (elections, more) = page(state.elections_named(&prefix, &after).map(view));
        let stamp = Some(self.0.stamp(&state, age_ms));
        Ok(Response::new(ListElectionsResponse { stamp, elections, more }))
    }

    /// Only reached around [`super::watches`]; the same, decoded.
    async fn observe(
        &self,
        request: Request<ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let watch = ObserveCall(self.0.clone()).watch(request).await?;
        Ok(Response::new(watch.decoded().boxed()))
    }

    async fn put_election(
        &self,
        request: Request<PutElectionRequest>,
    ) -> Result<Response<PutElectionResponse>, Status> {
        let resource = &request.get_ref().election;
        let caller = self.0.admit(&request, Verb::ElectionsWrite, resource)?;
        let request = request.into_inner();
        let command = convert::put_election(&request)?;
        let reply = self.0.write(caller, request.request, &command).await?;
        Ok(Response::new(PutElectionResponse { stamp: Some(self.0.stamp_at(reply.revision())) }))
    }

    async fn delete_election(
        &self,
        request: Request<DeleteElectionRequest>,
    ) -> Result<Response<DeleteElectionResponse>, Status> {
        let resource = &request.get_ref().election;
        let caller = self.0.admit(&request, Verb::ElectionsWrite, resource)?;
        let request = request.into_inner();
        let command = convert::delete_election(&request)?;
        let reply = self.0.write(caller, request.request, &command).await?;
        Ok(Response::new(DeleteElectionResponse { stamp: Some(self.0.stamp_at(reply.revision())) }))
    }
}

/// A reply that does not belong to its command: a bug of ours, never the caller's.
pub fn odd(reply: &Reply) -> Status {
    tracing::error!(?reply, "a command was answered with an odd reply");
    Status::internal("the cluster gave an odd reply")
}
