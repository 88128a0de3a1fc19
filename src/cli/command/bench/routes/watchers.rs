//! Watches of routes: when each was told who takes writes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::routing_service_client::RoutingServiceClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::error::{CliError, Outcome};

/// How long all of them may take to begin.
const BEGIN_WITHIN: Duration = Duration::from_secs(30);

/// What a watch was told last, and when.
#[derive(Clone, Debug, Default)]
struct Last {
    /// Who takes writes.
    write: Option<String>,
    at: Option<Instant>,
}

/// Watches that go on for as long as this is here.
pub struct Watchers {
    last: Arc<Mutex<Vec<Last>>>,
    _tasks: JoinSet<()>,
}

impl Watchers {
    /// `count` watches spread over `channels`; returns when each knows who takes writes.
    ///
    /// # Errors
    /// Some are not served.
    pub async fn begin(service: &str, channels: &[Channel], count: usize) -> Outcome<Self> {
        let last = Arc::new(Mutex::new(vec![Last::default(); count]));
        let mut tasks = JoinSet::new();
        for at in 0..count {
            let routing = RoutingServiceClient::new(channels[at % channels.len()].clone());
            tasks.spawn(watch(routing, service.to_owned(), at, last.clone()));
        }
        let watchers = Self { last, _tasks: tasks };
        let deadline = Instant::now() + BEGIN_WITHIN;
        while !watchers.all(|last| last.write.is_some()) {
            if Instant::now() >= deadline {
                return Err(CliError::unreachable("cannot begin to watch")
                    .because(format!("some of {count} watches were not served"))
                    .hint("give more --connections: each carries a bounded number of streams"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(watchers)
    }

    fn all(&self, is: impl Fn(&Last) -> bool) -> bool {
        self.last.lock().iter().all(is)
    }

    /// Whether any knows that nobody takes writes.
    pub fn any_closed(&self) -> bool {
        self.last.lock().iter().any(|last| last.write.is_none())
    }

    /// When the last one was told that somebody else than `old` takes writes; `None`: not all were.
    pub fn all_moved_from(&self, old: &str) -> Option<Instant> {
        let last = self.last.lock();
        let moved = |last: &Last| last.write.as_ref().is_some_and(|to| to != old);
        last.iter().all(moved).then(|| last.iter().filter_map(|last| last.at).max())?
    }
}

async fn watch(
    mut routing: RoutingServiceClient<Channel>,
    service: String,
    at: usize,
    last: Arc<Mutex<Vec<Last>>>,
) {
    let ask = v1::WatchRoutesRequest { service, router: String::new(), client: None };
    let Ok(opened) = routing.watch(ask).await else { return };
    let mut stream = opened.into_inner();
    while let Ok(Some(message)) = stream.message().await {
        let Some(routes) = message.routes else { continue };
        let now = Instant::now();
        let write = routes.write.map(|one| one.instance);
        let mut all = last.lock();
        if all[at].write != write {
            all[at] = Last { write, at: Some(now) };
        }
    }
}
