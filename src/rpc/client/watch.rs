//! Watches that outlive connections: a snapshot, then every change in order, once (S12).
//!
//! When a stream breaks, the watch goes on at another node after the last revision it was told.
//! When that is no longer possible (compacted, restored), it begins anew with a snapshot and says
//! so with [`Seen::Restart`]: the consumer must then forget rows the new snapshot does not name.

use std::future::Future;
use std::time::Duration;

use regent_core::id::{Revision, ServiceName};
use tonic::{Code, Status, Streaming};

use super::{CallError, Client, election, topology};
use crate::calls::Calls;
use crate::convert::common::{From, stamp_in, watch_from_out};
use crate::convert::election::ObserveScope;
use crate::pb::v1;

/// Longest pause between attempts to go on.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Nodes send bookmarks while nothing changes. A stream that is silent for longer is broken: a
/// frozen node keeps its connections open.
const SILENCE: Duration = Duration::from_secs(25);

/// What a watch tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen<C> {
    /// A snapshot begins; what was seen before is void. The first event of a watch from a snapshot,
    /// and again whenever it could not go on where it was.
    Restart,
    /// A row as it is (in a snapshot) or as it became.
    Change(C),
    /// The snapshot is complete.
    SnapshotEnd(Revision),
    /// Nothing else changed up to here.
    Bookmark(Revision),
}

/// One kind of watch.
pub trait Events: Send + Sync + 'static {
    /// The messages of its stream.
    type Message: Send + 'static;
    /// A changed row.
    type Change: Clone + PartialEq + Send;
    /// Begins the stream.
    fn begin(
        &self,
        calls: Calls,
        from: From,
    ) -> impl Future<Output = Result<Streaming<Self::Message>, Status>> + Send;
    /// What a message says; `None` for one that this version does not know.
    fn read(message: Self::Message) -> Option<Told<Self::Change>>;
    /// The row a change is about.
    fn name(change: &Self::Change) -> &str;
}

/// What one message of a stream says.
#[derive(Clone, Debug, PartialEq)]
pub enum Told<C> {
    /// A row at a revision.
    Change(Revision, C),
    /// The snapshot is complete.
    SnapshotEnd(v1::Stamp),
    /// Nothing changed up to here.
    Bookmark(v1::Stamp),
}

/// Changes of services.
#[derive(Clone, Debug)]
pub struct ServiceEvents {
    pub(super) name: Option<ServiceName>,
}

impl Events for ServiceEvents {
    type Message = v1::WatchServicesResponse;
    type Change = v1::ServiceChange;
    async fn begin(&self, calls: Calls, from: From) -> Result<Streaming<Self::Message>, Status> {
        let name = self.name.as_ref().map(ToString::to_string).unwrap_or_default();
        let request = v1::WatchServicesRequest { name, from: watch_from_out(from) };
        Ok(topology::api(&calls).watch_services(request).await?.into_inner())
    }
    fn read(message: Self::Message) -> Option<Told<Self::Change>> {
        use v1::watch_services_response::Event;
        Some(match message.event? {
            Event::Change(change) => Told::Change(Revision(change.revision), change),
            Event::SnapshotEnd(stamp) => Told::SnapshotEnd(stamp),
            Event::Bookmark(stamp) => Told::Bookmark(stamp),
        })
    }
    fn name(change: &Self::Change) -> &str {
        &change.name
    }
}

/// Changes of elections.
#[derive(Clone, Debug)]
pub struct ElectionEvents {
    pub(super) scope: ObserveScope,
}

impl Events for ElectionEvents {
    type Message = v1::ObserveResponse;
    type Change = v1::ElectionChange;
    async fn begin(&self, calls: Calls, from: From) -> Result<Streaming<Self::Message>, Status> {
        let request = v1::ObserveRequest { from: watch_from_out(from), ..self.scope.request() };
        Ok(election::api(&calls).observe(request).await?.into_inner())
    }
    fn read(message: Self::Message) -> Option<Told<Self::Change>> {
        use v1::observe_response::Event;
        Some(match message.event? {
            Event::Change(change) => Told::Change(Revision(change.revision), change),
            Event::SnapshotEnd(stamp) => Told::SnapshotEnd(stamp),
            Event::Bookmark(stamp) => Told::Bookmark(stamp),
        })
    }
    fn name(change: &Self::Change) -> &str {
        &change.name
    }
}

/// A watch. Ask it again and again; dropping it ends it.
pub struct Watch<E: Events> {
    client: Client,
    events: E,
    stream: Option<Streaming<E::Message>>,
    /// Where the next stream goes on.
    from: From,
    /// A snapshot is being read: a stream that breaks inside it has told nothing that a resume
    /// could build on.
    in_snapshot: bool,
    /// Revision of the newest change or stamp.
    newest: Revision,
    /// What was told of the newest entry since the last stamp: a resumed stream tells the whole
    /// entry again. Rows of one entry carry its revision or, while more follow, the one before.
    told: Vec<(Revision, E::Change)>,
    announce: bool,
    pause: Duration,
}

impl<E: Events> Watch<E> {
    pub(super) fn new(client: Client, events: E, from: From) -> Self {
        let in_snapshot = from == From::Snapshot;
        Self {
            client,
            events,
            stream: None,
            from,
            in_snapshot,
            newest: Revision(0),
            told: Vec::new(),
            announce: in_snapshot,
            pause: Duration::ZERO,
        }
    }

    /// Where a new watch would go on after what this one has told.
    pub fn resume_from(&self) -> From {
        self.from
    }

    /// The next event; waits for it as long as it takes. May be cancelled without losing one.
    ///
    /// # Errors
    /// [`CallError`] when no node will ever answer this: a missing right, a wrong request.
    pub async fn next(&mut self) -> Result<Seen<E::Change>, CallError> {
        loop {
            if self.announce {
                self.announce = false;
                return Ok(Seen::Restart);
            }
            if self.stream.is_none() {
                self.begin().await?;
                continue;
            }
            let stream = self.stream.as_mut().expect("begun above");
            let told = match tokio::time::timeout(SILENCE, stream.message()).await {
                Ok(Ok(Some(message))) => E::read(message),
                Ok(Ok(None)) => {
                    self.broken(None);
                    continue;
                }
                Ok(Err(status)) => {
                    self.broken(Some(&status));
                    continue;
                }
                Err(_) => {
                    self.leave_node();
                    self.broken(None);
                    continue;
                }
            };
            self.pause = Duration::ZERO;
            if let Some(seen) = told.and_then(|told| self.note(told)) {
                return Ok(seen);
            }
        }
    }

    /// Moves the place to go on from; `None` for a change that was told before.
    fn note(&mut self, told: Told<E::Change>) -> Option<Seen<E::Change>> {
        match told {
            Told::Change(revision, change) => {
                if !self.in_snapshot
                    && let From::After(incarnation, at) = self.from
                {
                    if self.was_told(revision, &change) {
                        return None;
                    }
                    self.newest = self.newest.max(revision);
                    let newest = self.newest;
                    self.told.retain(|(told, _)| told.0 + 1 >= newest.0);
                    self.told.push((revision, change.clone()));
                    // One revision may change several rows, and the stream may break between them:
                    // only a stamp says that a revision is complete.
                    let before = Revision(revision.0.saturating_sub(1));
                    self.from = From::After(incarnation, at.max(before));
                }
                Some(Seen::Change(change))
            }
            Told::SnapshotEnd(stamp) => {
                self.in_snapshot = false;
                Some(Seen::SnapshotEnd(self.stamped(&stamp)))
            }
            Told::Bookmark(stamp) => Some(Seen::Bookmark(self.stamped(&stamp))),
        }
    }

    /// Whether the consumer knows this already. A row is shown anew under the same revision when a
    /// node's belief in its holder changes (C3), here or between two nodes, so that name and
    /// revision alone do not say so: what was told last of the row does.
    fn was_told(&self, revision: Revision, change: &E::Change) -> bool {
        if revision.0 + 1 < self.newest.0 {
            return true;
        }
        let same_row = |told: &&(Revision, E::Change)| E::name(&told.1) == E::name(change);
        self.told.iter().rev().find(same_row).is_some_and(|(_, told)| told == change)
    }

    fn stamped(&mut self, stamp: &v1::Stamp) -> Revision {
        let (incarnation, revision) = stamp_in(stamp);
        self.newest = revision;
        self.told.clear();
        self.from = From::After(incarnation, revision);
        revision
    }

    async fn begin(&mut self) -> Result<(), CallError> {
        if !self.pause.is_zero() {
            tokio::time::sleep(self.pause.mul_f64(rand::random_range(0.5..1.0))).await;
        }
        let (events, from) = (&self.events, self.from);
        let begun = self
            .client
            .read(
                |calls, _| async move { events.begin(calls, from).await.map(tonic::Response::new) },
            )
            .await;
        match begun {
            Ok(stream) => self.stream = Some(stream),
            Err(error) => match error.status.code() {
                Code::OutOfRange
                | Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Unknown
                | Code::Internal
                | Code::ResourceExhausted => self.broken(Some(&error.status)),
                _ => return Err(error),
            },
        }
        Ok(())
    }

    /// The stream is over; decides how the next one begins.
    fn broken(&mut self, status: Option<&Status>) {
        self.stream = None;
        let least = Duration::from_millis(20);
        self.pause = (self.pause * 2).clamp(least, LONGEST_PAUSE);
        let compacted = status.is_some_and(|status| status.code() == Code::OutOfRange);
        if compacted || self.in_snapshot {
            self.from = From::Snapshot;
            self.in_snapshot = true;
            self.announce = true;
        }
    }

    fn leave_node(&self) {
        let nodes = &self.client.inner.nodes;
        let (at, _) = nodes.current();
        nodes.leave(at);
    }
}
