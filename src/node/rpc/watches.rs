//! Watches in front of the generated services: encoded once, served to many (see
//! [`crate::watch::serve`]).

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use regent_core::authz::Verb;
use regent_rpc::pb::v1::{ObserveRequest, WatchServicesRequest};
use tonic::{Request, Status};

use crate::shell::Shell;
use crate::watch::WatchStream;
use crate::watch::serve::WatchCall;

/// `/regent.v1.ElectionService/Observe`.
pub struct ObserveCall(pub Arc<Shell>);

impl WatchCall for ObserveCall {
    type Ask = ObserveRequest;
    type Stream = WatchStream;

    fn watch(
        &self,
        ask: Request<ObserveRequest>,
    ) -> BoxFuture<'static, Result<WatchStream, Status>> {
        let shell = self.0.clone();
        async move {
            let resource = ask.get_ref().election.clone();
            let caller = shell.admit(&ask, Verb::ElectionsRead, &resource)?;
            // Whoever begins to watch must see at least what was acknowledged before (S11).
            shell.reads.linearizable(caller.until).await?;
            shell.hub.observe(&shell.state, ask.get_ref())
        }
        .boxed()
    }
}

/// `/regent.v1.TopologyService/WatchServices`.
pub struct WatchServicesCall(pub Arc<Shell>);

impl WatchCall for WatchServicesCall {
    type Ask = WatchServicesRequest;
    type Stream = WatchStream;

    fn watch(
        &self,
        ask: Request<WatchServicesRequest>,
    ) -> BoxFuture<'static, Result<WatchStream, Status>> {
        let shell = self.0.clone();
        async move {
            let resource = ask.get_ref().name.clone();
            let caller = shell.admit(&ask, Verb::ServicesRead, &resource)?;
            shell.reads.linearizable(caller.until).await?;
            shell.hub.watch_services(&shell.state, ask.get_ref())
        }
        .boxed()
    }
}
