//! `regent.v1.RoutingService`: where clients of a service are sent.
//!
//! Whoever may read services may follow their routes. What a router says that it applied counts for
//! its own certificate only.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use regent_core::authz::{Role, Verb};
use regent_core::id::{Epoch, Locality, Revision, ServiceName};
use regent_rpc::convert::common::{epoch_in, epoch_out, locality, service_name, text};
use regent_rpc::convert::routing::routes_out;
use regent_rpc::convert::{Invalid, status};
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::routing_service_server::RoutingService;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::http::metrics::Kind;
use crate::routes::{Following, Told};
use crate::shell::Shell;

/// A watch that has nothing to say tells how old that is this often.
const BOOKMARK_EVERY: Duration = Duration::from_secs(5);

/// Serves routes.
pub struct RoutingHandler(pub Arc<Shell>);

/// A watch under way.
struct Watching {
    shell: Arc<Shell>,
    service: ServiceName,
    client: Locality,
    told: watch::Receiver<Told>,
    /// The first table was told, which is no news.
    began: bool,
    /// A router follows for as long as this is here.
    _following: Option<Following>,
}

fn client_in(client: Option<v1::Locality>) -> Result<Locality, Invalid> {
    locality("client", client)
}

fn no_service(service: &ServiceName) -> Status {
    status::not_found("service", service.as_str())
}

impl Watching {
    fn stamp(&self) -> v1::Stamp {
        let age_ms = self.shell.reads.age_ms().unwrap_or(u64::MAX);
        self.shell.stamp(&self.shell.state.read(), age_ms)
    }

    /// The next message; `None` ends the stream.
    async fn next(&mut self) -> Option<Result<v1::WatchRoutesResponse, Status>> {
        match tokio::time::timeout(BOOKMARK_EVERY, self.told.changed()).await {
            Err(_) => Some(Ok(v1::WatchRoutesResponse { stamp: Some(self.stamp()), routes: None })),
            Ok(Err(_)) => {
                let why = "this node is stopping";
                let status =
                    status::unavailable(status::rule::NOT_READY, why, crate::refuse::RETRY_AFTER);
                Some(Err(status))
            }
            Ok(Ok(())) => {
                let told = self.told.borrow_and_update().clone();
                let Some(routes) = told else { return Some(Err(no_service(&self.service))) };
                let routes = Some(routes_out(&routes, &self.client));
                if std::mem::replace(&mut self.began, true) {
                    self.shell.pushed("watch", &self.service, 1);
                }
                Some(Ok(v1::WatchRoutesResponse { stamp: Some(self.stamp()), routes }))
            }
        }
    }
}

#[tonic::async_trait]
impl RoutingService for RoutingHandler {
    type WatchStream = BoxStream<'static, Result<v1::WatchRoutesResponse, Status>>;

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
        let caller = self.0.admit(&request, Verb::ServicesRead, &request.get_ref().service)?;
        let request = request.into_inner();
        let (service, client) =
            (service_name("service", &request.service)?, client_in(request.client)?);
        let router = text("router", &request.router)?;
        let mut told = {
            let state = self.0.state.read();
            self.0.routes.follow(&state, &service)?
        };
        if told.borrow().is_none() {
            return Err(no_service(&service));
        }
        told.mark_changed();
        // A person who looks on applies nothing.
        let is_router = caller.principal.role == Role::Router;
        let following = is_router.then(|| {
            self.0.routers.follow(&service, caller.principal.to_string(), router, "watch")
        });
        let shell = self.0.clone();
        let began = false;
        let watching = Watching { shell, service, client, told, began, _following: following };
        let messages = stream::unfold(Some(watching), |watching| async move {
            let mut watching = watching?;
            let next = watching.next().await?;
            let goes_on = next.is_ok();
            Some((next, goes_on.then_some(watching)))
        });
        Ok(Response::new(messages.boxed()))
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
        if let Some(after) = self.routes.changed_ago(service) {
            self.metrics.route_push_seconds.observe(after.as_secs_f64());
        }
    }
}
