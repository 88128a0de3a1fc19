//! `regent.v1.RoutingService`: where clients of a service are sent.
//!
//! Whoever may read services may follow their routes. What a router says that it applied counts for
//! its own certificate only.

pub mod watch;

use std::sync::Arc;

use regent_core::authz::Verb;
use regent_core::id::{Epoch, Locality, Revision, ServiceName};
use regent_rpc::convert::common::{epoch_in, epoch_out, locality, service_name, text};
use regent_rpc::convert::routing::routes_out;
use regent_rpc::convert::{Invalid, status};
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::routing_service_server::RoutingService;
use tonic::{Request, Response, Status};

use self::watch::{WatchRoutesCall, Watching};
use crate::http::metrics::Kind;
use crate::shell::Shell;
use crate::watch::serve::WatchCall as _;
use crate::watch::stream::Decoded;

/// Serves routes.
pub struct RoutingHandler(pub Arc<Shell>);

fn client_in(client: Option<v1::Locality>) -> Result<Locality, Invalid> {
    locality("client", client)
}

fn no_service(service: &ServiceName) -> Status {
    status::not_found("service", service.as_str())
}

#[tonic::async_trait]
impl RoutingService for RoutingHandler {
    type WatchStream = Decoded<v1::WatchRoutesResponse, Watching>;

    async fn resolve(
        &self,
        request: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::ResolveResponse>, Status> {
        self.0.admit(&request, Verb::ServicesRead, &request.get_ref().service)?;
        let request = request.into_inner();
        let (service, client) =
            (service_name("service", &request.service)?, client_in(request.client)?);
        // No read index: a node that is cut off answers too, and names nobody beyond its belief.
        let age_ms = self.0.reads.age_ms().unwrap_or(u64::MAX);
        let state = self.0.state.read();
        let routes = self.0.routes.resolve(&state, &service).ok_or_else(|| no_service(&service))?;
        let stamp = Some(self.0.stamp(&state, age_ms));
        Ok(Response::new(v1::ResolveResponse { stamp, routes: Some(routes_out(&routes, &client)) }))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(Decoded::of(WatchRoutesCall(self.0.clone()).watch(request).await?)))
    }

    async fn ack(
        &self,
        request: Request<v1::AckRoutesRequest>,
    ) -> Result<Response<v1::AckRoutesResponse>, Status> {
        let caller = self.0.admit(&request, Verb::ServicesRead, &request.get_ref().service)?;
        let request = request.into_inner();
        let service = service_name("service", &request.service)?;
        let epoch = request.epoch.map(epoch_in).unwrap_or_default();
        let applied = (epoch, Revision(request.revision));
        let who = (caller.principal.to_string(), text("router", &request.router)?);
        let state = self.0.state.read();
        let newest = state.roles().get(&service).map_or(Epoch::NONE, |role| role.epoch);
        if epoch > newest || applied.1 > state.revision() {
            let fix = "acknowledge what this node sent";
            return Err(Invalid::new("revision", "this node has not seen it", fix).into());
        }
        if !self.0.routers.applied(&service, (&who.0, &who.1), applied) {
            let why = format!("{} {:?} does not follow {service} at this node", who.0, who.1);
            let hint = "acknowledge at the node that the routes came from, under the watch's name";
            return Err(status::refused("not_following", why, hint));
        }
        Ok(Response::new(v1::AckRoutesResponse { stamp: Some(self.0.stamp(&state, 0)) }))
    }

    async fn list_routers(
        &self,
        request: Request<v1::ListRoutersRequest>,
    ) -> Result<Response<v1::ListRoutersResponse>, Status> {
        self.0.admit(&request, Verb::ServicesRead, &request.get_ref().service)?;
        let service = service_name("service", &request.get_ref().service)?;
        let (routers, silent_nodes) = self.0.list_routers(&service).await;
        // Before the state is locked: the age is read from it, too.
        let age_ms = self.0.reads.age_ms().unwrap_or(u64::MAX);
        let state = self.0.state.read();
        let role = state.roles().get(&service);
        Ok(Response::new(v1::ListRoutersResponse {
            stamp: Some(self.0.stamp(&state, age_ms)),
            epoch: role.map(|role| epoch_out(role.epoch)),
            routers,
            silent_nodes,
        }))
    }
}

impl Shell {
    /// News of `service` is on its way to somebody who follows it by this protocol.
    pub fn pushed(&self, protocol: &'static str, service: &ServiceName, answers: usize) {
        let pushes = self.metrics.route_pushes.get_or_create_owned(&Kind { kind: protocol });
        pushes.inc_by(answers as u64);
        self.push_took(service);
    }

    fn push_took(&self, service: &ServiceName) {
        if let Some(after) = self.routes.changed_ago(service) {
            self.metrics.route_push_seconds.observe(after.as_secs_f64());
        }
    }
}
