//! Following the routes of a service at whichever node answers, never back.

use std::time::Duration;

use regent_rpc::pb::v1;
use regent_rpc::pb::v1::routing_service_client::RoutingServiceClient;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::connect::Cluster;
use crate::error::Outcome;

/// A node that ends each watch at once must not be asked in a hot loop.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The same where no node can prove anything.
const LEAVE_AFTER: Duration = Duration::from_millis(300);

/// What a router calls itself unless told otherwise: two with one certificate are two.
pub fn own_name(verb: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{verb}-{}@{}", std::process::id(), host.trim())
}

/// Which of two tables is newer: the life of the cluster, and the revision in it.
type Place = (u64, u64);

/// What is followed.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The service.
    pub service: String,
    /// Where the client is.
    pub client: Option<v1::Locality>,
    /// What the router calls itself; it acknowledges what it applied.
    pub router: Option<String>,
}

/// A watch of routes that goes on at another node when one breaks.
pub struct Follower<'a> {
    cluster: &'a Cluster,
    wanted: Wanted,
    at: Option<(Streaming<v1::WatchRoutesResponse>, RoutingServiceClient<Channel>)>,
    last: Option<v1::Routes>,
    reached: Place,
    /// Nothing has come over this stream: the node knows nothing of what was acknowledged elsewhere.
    is_fresh: bool,
}

impl<'a> Follower<'a> {
    /// Nothing is asked yet.
    pub fn new(cluster: &'a Cluster, wanted: Wanted) -> Self {
        Self { cluster, wanted, at: None, last: None, reached: Place::default(), is_fresh: true }
    }

    /// The next table that says something else than the one before, for a router also the first of
    /// each node; one that lags is not believed.
    ///
    /// # Errors
    /// No node answers, or the first refusal.
    pub async fn next(&mut self) -> Outcome<(v1::Stamp, v1::Routes)> {
        loop {
            if self.at.is_none() {
                self.at = Some(self.open().await?);
                self.is_fresh = true;
            }
            let Some((stream, _)) = &mut self.at else { continue };
            let Ok(Some(message)) = stream.message().await else {
                self.at = None;
                self.cluster.prefer_next();
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            };
            let Some(routes) = message.routes else { continue };
            let stamp = message.stamp.unwrap_or_default();
            let place = (stamp.incarnation, routes.revision);
            let again = self.is_fresh && self.wanted.router.is_some();
            if place >= self.reached && (again || self.last.as_ref() != Some(&routes)) {
                self.is_fresh = false;
                (self.last, self.reached) = (Some(routes.clone()), place);
                return Ok((stamp, routes));
            }
        }
    }

    async fn open(
        &self,
    ) -> Outcome<(Streaming<v1::WatchRoutesResponse>, RoutingServiceClient<Channel>)> {
        let what = format!("watch the routes of {:?}", self.wanted.service);
        let ask = |channel| {
            let Wanted { service, client, router } = self.wanted.clone();
            let router = router.unwrap_or_default();
            async move {
                let mut routing = RoutingServiceClient::new(channel);
                let stream = routing.watch(v1::WatchRoutesRequest { service, client, router });
                Ok(stream.await?.map(|stream| (stream, routing)))
            }
        };
        self.cluster.ask(&what, ask).await
    }

    /// Asks another node from now on: this one cannot prove anything.
    pub async fn leave(&mut self) {
        self.at = None;
        self.cluster.prefer_next();
        tokio::time::sleep(LEAVE_AFTER).await;
    }

    /// Says that these were applied. What is not acknowledged is only not counted.
    pub async fn applied(&mut self, routes: &v1::Routes) {
        let Some((_, routing)) = &mut self.at else { return };
        let Wanted { service, router, .. } = self.wanted.clone();
        let (router, epoch) = (router.unwrap_or_default(), routes.epoch);
        let ack = v1::AckRoutesRequest { service, router, epoch, revision: routes.revision };
        if let Err(status) = routing.ack(ack).await {
            tracing::debug!(%status, "the routes are applied, but that was not acknowledged");
        }
    }
}
