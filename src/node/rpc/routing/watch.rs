//! `/regent.v1.RoutingService/Watch`: a table is encoded once for all who follow it from one place
//! (see [`crate::watch::serve`]); a stream's own stamp goes in front.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream};
use prometheus_client::metrics::counter::Counter;
use prost::Message as _;
use regent_core::authz::{Role, Verb};
use regent_core::route::table::Routes;
use regent_rpc::convert::common::{service_name, text};
use regent_rpc::convert::status;
use regent_rpc::pb::v1;
use tokio::time::{Instant, Sleep};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Status};

use super::{client_in, no_service};
use crate::http::metrics::Kind;
use crate::routes::encoded::Audience;
use crate::routes::{Following, Told};
use crate::shell::Shell;
use crate::watch::serve::WatchCall;

/// A watch that has nothing to say tells how old that is this often.
const BOOKMARK_EVERY: Duration = Duration::from_secs(5);

/// The call.
pub struct WatchRoutesCall(pub Arc<Shell>);

/// Encoded `WatchRoutesResponse`s of a watch under way.
pub struct Watching {
    shell: Arc<Shell>,
    audience: Arc<Audience>,
    told: WatchStream<Told>,
    pushes: Counter,
    /// The first table was told, which is no news.
    began: bool,
    /// An error was the last word.
    ended: bool,
    /// When anything was said last.
    said: Instant,
    /// Comes before that is too long ago, or earlier: a timer for each message would cost more.
    bookmark: Pin<Box<Sleep>>,
    /// A router follows for as long as this is here.
    _following: Option<Following>,
}

impl WatchCall for WatchRoutesCall {
    type Ask = v1::WatchRoutesRequest;
    type Stream = Watching;

    fn watch(
        &self,
        ask: Request<v1::WatchRoutesRequest>,
    ) -> BoxFuture<'static, Result<Watching, Status>> {
        let shell = self.0.clone();
        async move { begin(shell, ask) }.boxed()
    }
}

fn begin(shell: Arc<Shell>, ask: Request<v1::WatchRoutesRequest>) -> Result<Watching, Status> {
    let caller = shell.admit(&ask, Verb::ServicesRead, &ask.get_ref().service)?;
    let ask = ask.into_inner();
    let (service, client) = (service_name("service", &ask.service)?, client_in(ask.client)?);
    let router = text("router", &ask.router)?;
    let told = {
        let state = shell.state.read();
        shell.routes.follow(&state, &service)?
    };
    if told.borrow().is_none() {
        return Err(no_service(&service));
    }
    // A person who looks on applies nothing.
    let is_router = caller.principal.role == Role::Router;
    let following = is_router
        .then(|| shell.routers.follow(&service, caller.principal.to_string(), router, "watch"));
    Ok(Watching {
        audience: shell.routes.audiences.of(service, client),
        told: WatchStream::new(told),
        pushes: shell.metrics.route_pushes.get_or_create_owned(&Kind { kind: "watch" }),
        shell,
        began: false,
        ended: false,
        said: Instant::now(),
        bookmark: Box::pin(tokio::time::sleep(BOOKMARK_EVERY)),
        _following: following,
    })
}

impl Stream for Watching {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = ready!(self.poll_message(cx));
        self.ended = next.is_err();
        Poll::Ready(Some(next))
    }
}

impl Watching {
    /// The next message; an error is the last.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        match Pin::new(&mut self.told).poll_next(cx) {
            Poll::Ready(Some(Some(routes))) => return Poll::Ready(Ok(self.tell(Some(&routes)))),
            Poll::Ready(Some(None)) => {
                return Poll::Ready(Err(no_service(self.audience.service())));
            }
            Poll::Ready(None) => {
                let (why, after) = ("this node is stopping", crate::refuse::RETRY_AFTER);
                return Poll::Ready(Err(status::unavailable(status::rule::NOT_READY, why, after)));
            }
            Poll::Pending => {}
        }
        loop {
            ready!(self.bookmark.as_mut().poll(cx));
            let (now, due) = (Instant::now(), self.said + BOOKMARK_EVERY);
            if now >= due {
                self.bookmark.as_mut().reset(now + BOOKMARK_EVERY);
                return Poll::Ready(Ok(self.tell(None)));
            }
            self.bookmark.as_mut().reset(due);
        }
    }

    fn tell(&mut self, routes: Option<&Arc<Routes>>) -> Bytes {
        self.said = Instant::now();
        let age_ms = self.shell.reads.age_ms().unwrap_or(u64::MAX);
        let stamp = self.shell.stamp(&self.shell.state.read(), age_ms);
        let front = v1::WatchRoutesResponse { stamp: Some(stamp), routes: None };
        let table = routes.map(|routes| self.audience.encoded(routes)).unwrap_or_default();
        let mut message = BytesMut::with_capacity(front.encoded_len() + table.len());
        front.encode(&mut message).expect("the room is there");
        message.extend_from_slice(&table);
        if routes.is_some() && std::mem::replace(&mut self.began, true) {
            self.pushes.inc();
            self.shell.push_took(self.audience.service());
        }
        message.freeze()
    }
}
