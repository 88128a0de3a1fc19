//! xDS from this node: whoever may read services may follow their routes, as with
//! `RoutingService.Watch`.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use regent_core::authz::{Role, Verb};
use regent_core::id::ServiceName;
use regent_xds::client::Client;
use regent_xds::serve::{Routed, Source};
use regent_xds::session::Note;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Status};

use crate::http::metrics::Kind;
use crate::routes::Following;
use crate::shell::Shell;

/// Serves the routes of this node.
#[derive(Clone)]
pub struct AdsSource(pub Arc<Shell>);

/// A stream of a router.
pub struct AdsCaller {
    principal: String,
    is_router: bool,
    following: Mutex<BTreeMap<ServiceName, Following>>,
}

impl Source for AdsSource {
    type Caller = AdsCaller;

    fn judge(&self, said: &MetadataMap, extensions: &Extensions) -> Result<AdsCaller, Status> {
        let request = Request::from_parts(said.clone(), extensions.clone(), ());
        let caller = self.0.admit(&request, Verb::ServicesRead, "routes")?;
        let is_router = caller.principal.role == Role::Router;
        let following = Mutex::default();
        Ok(AdsCaller { principal: caller.principal.to_string(), is_router, following })
    }

    fn follow(&self, caller: &AdsCaller, service: &ServiceName) -> Result<Routed, Status> {
        let routed = {
            let state = self.0.state.read();
            self.0.routes.follow(&state, service)?
        };
        if caller.is_router {
            let (principal, name) = (caller.principal.clone(), String::new());
            let following = self.0.routers.follow(service, principal, name, "ads");
            caller.following.lock().insert(service.clone(), following);
        }
        Ok(routed)
    }

    fn unfollow(&self, caller: &AdsCaller, service: &ServiceName) {
        caller.following.lock().remove(service);
    }

    fn sent(&self, _: &AdsCaller, service: &ServiceName, answers: usize) {
        self.0.pushed("ads", service, answers);
    }

    fn noted(&self, caller: &AdsCaller, client: &Client, note: Note) {
        let following = caller.following.lock();
        match note {
            Note::Applied { kind, reached, .. } => {
                for following in following.values() {
                    following.accepted(kind.as_str());
                }
                for one in reached {
                    if let Some(following) = following.get(&one.name.service) {
                        following.named(&client.id);
                        following.applied((one.epoch, one.revision));
                    }
                }
            }
            Note::Refused { kind, version, why, .. } => {
                let (who, id) = (&caller.principal, &client.id);
                tracing::warn!(%who, id, ?kind, version, why, "a router refused what it was sent");
                self.0.metrics.route_refusals.get_or_create(&Kind { kind: kind.as_str() }).inc();
                for following in following.values() {
                    following.named(&client.id);
                    following.refused(kind.as_str(), why.clone());
                }
            }
            Note::UnknownKind { type_url } => {
                tracing::debug!(who = %caller.principal, type_url, "asked for what there is not");
            }
            Note::LeftOut { name, unroutable } => {
                for one in unroutable {
                    tracing::warn!(resource = %name, "{one}");
                }
            }
        }
    }
}
