//! The hub: takes what was applied, hands it to the watchers it concerns.
//!
//! Locks, in the order in which they may be taken: state, feed; index, feed. `publish` runs with
//! the state locked and takes the feed alone, for an append; whatever walks over watchers runs in
//! the pump, a task of its own, with the index locked.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use regent_core::effect::Applied;
use regent_core::id::{Incarnation, NodeId, Revision};
use regent_core::limits::MAX_ELECTIONS;
use regent_core::state::State;
use regent_rpc::convert::common::{From, service_name, stamp_out, watch_from};
use regent_rpc::convert::election::ObserveScope;
use regent_rpc::convert::status;
use regent_rpc::pb::v1;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;

use super::belief::{Beliefs, Flip};
use super::change::{Shown, mark};
use super::feed::{Feed, Group, RingBounds, Work};
use super::head::Unread;
use super::index::Index;
use super::mailbox::{Ending, MailboxBounds, Watcher};
use super::stream::WatchStream;
use super::{Believes, Filter, Topic};
use crate::duties::Duties;
use crate::http::metrics::{Kind, Metrics};

/// Bounds and paces of a hub, each with its reason.
#[derive(Clone, Copy, Debug)]
pub struct HubConfig {
    /// This node, for stamps.
    pub node: NodeId,
    /// Changes kept for resuming: minutes of a busy cluster's elections.
    pub ring_events: usize,
    /// Bytes of them: a share of a node's 300 MiB that hurts nobody.
    pub ring_bytes: usize,
    /// Messages one watcher may be behind: what 12,000 changes a second make in a third of a
    /// second of somebody else's pause.
    pub mailbox_messages: usize,
    /// Bytes one watcher may be behind.
    pub mailbox_bytes: usize,
    /// Watchers of one node: twenty times what fan-out is measured with.
    pub max_watchers: usize,
    /// Rows of snapshots that wait to be read, of all watchers together: a snapshot of everything
    /// and half as much again. A row takes some hundred bytes.
    pub unread_rows: usize,
    /// How often a watcher that hears nothing is told how far it is.
    pub bookmark_interval: Duration,
    /// How often belief in watched holders is looked at again: a tenth of the smallest ttl that
    /// C6 allows, or less.
    pub belief_interval: Duration,
}

impl HubConfig {
    /// The product's figures.
    pub fn for_node(node: NodeId) -> Self {
        Self {
            node,
            ring_events: 65_536,
            ring_bytes: 16 * 1024 * 1024,
            mailbox_messages: 4_096,
            mailbox_bytes: 4 * 1024 * 1024,
            max_watchers: 20_000,
            unread_rows: MAX_ELECTIONS + MAX_ELECTIONS / 2,
            bookmark_interval: Duration::from_secs(10),
            belief_interval: Duration::from_millis(100),
        }
    }

    fn mailbox(&self) -> MailboxBounds {
        MailboxBounds { messages: self.mailbox_messages, bytes: self.mailbox_bytes }
    }
}

/// The watch hub of a node; cheap to clone.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub config: HubConfig,
    pub believes: Arc<dyn Believes>,
    metrics: Arc<Metrics>,
    pub feed: Mutex<Feed>,
    pub inner: Mutex<Inner>,
    pub wake: Notify,
    pub unread: Unread,
    next_id: AtomicU64,
}

/// What the pump and whoever joins or leaves share.
#[derive(Default)]
pub(super) struct Inner {
    index: Index,
    pub beliefs: Beliefs,
    incarnation: Incarnation,
    /// Everything up to here was handed out.
    pub position: Revision,
    /// Watches of earlier generations of the feed were ended.
    pub generation: u64,
    /// Ask for a sweep or bookmarks out of turn.
    sweep_now: bool,
    bookmark_now: bool,
    pub closed: bool,
}

impl Hub {
    /// Starts the pump on the current tokio runtime. It ends when the last handle and the last
    /// stream are gone.
    pub fn start(
        config: HubConfig,
        believes: Arc<dyn Believes>,
        metrics: Arc<Metrics>,
        duties: &Duties,
    ) -> Self {
        let shared = Arc::new(Shared {
            config,
            believes,
            metrics,
            feed: Mutex::default(),
            inner: Mutex::default(),
            wake: Notify::new(),
            unread: Unread::new(config.unread_rows),
            next_id: AtomicU64::new(1),
        });
        duties.spawn("watches", pump(Arc::downgrade(&shared)));
        Self { shared }
    }

    /// An entry was applied; `state` is the state after it. Called with the state locked, after the
    /// lease clocks were fed.
    pub fn publish(&self, state: &State, applied: &Applied) {
        let config = &self.shared.config;
        let bounds = RingBounds { events: config.ring_events, bytes: config.ring_bytes };
        let (more, bytes) = {
            let mut feed = self.shared.feed.lock();
            (feed.publish(state, applied, bounds), feed.bytes())
        };
        if more {
            let count = applied.changes.len() as u64;
            self.shared.metrics.watch_changes.inc_by(count);
            self.shared.metrics.watch_ring.set(i64::try_from(bytes).unwrap_or(i64::MAX));
            self.shared.wake.notify_one();
        }
    }

    /// The whole state was replaced (or read at start): watches of before are ended.
    pub fn installed(&self, state: &State) {
        self.shared.feed.lock().reset(state);
        self.shared.wake.notify_one();
    }

    /// `ElectionService.Observe`. The caller has checked the right, and has made the read as fresh
    /// as it wants it (a linearizable snapshot needs a read index first).
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a bad request, OUT_OF_RANGE where it cannot go on, UNAVAILABLE if this
    /// node is behind, RESOURCE_EXHAUSTED for too many watchers.
    pub fn observe(
        &self,
        state: &RwLock<State>,
        request: &v1::ObserveRequest,
    ) -> Result<WatchStream, Status> {
        let filter = match ObserveScope::of(request).map_err(Status::from)? {
            ObserveScope::One(name) => Filter::One(name.to_string()),
            ObserveScope::Prefix(prefix) => Filter::Prefix(prefix),
            ObserveScope::All => Filter::Prefix(String::new()),
        };
        let from = watch_from("from", request.from).map_err(Status::from)?;
        self.subscribe(state, Topic::Elections, filter, from)
    }

    /// `TopologyService.WatchServices`; as [`Hub::observe`].
    ///
    /// # Errors
    /// As [`Hub::observe`].
    pub fn watch_services(
        &self,
        state: &RwLock<State>,
        request: &v1::WatchServicesRequest,
    ) -> Result<WatchStream, Status> {
        let filter = if request.name.is_empty() {
            Filter::Prefix(String::new())
        } else {
            Filter::One(service_name("name", &request.name).map_err(Status::from)?.to_string())
        };
        let from = watch_from("from", request.from).map_err(Status::from)?;
        self.subscribe(state, Topic::Services, filter, from)
    }

    /// Belief may have changed at large (a read index round came back after a silence): look now.
    pub fn beliefs_changed(&self) {
        self.shared.inner.lock().sweep_now = true;
        self.shared.wake.notify_one();
    }

    /// Tells every watcher now how far it is.
    pub fn bookmark_now(&self) {
        self.shared.inner.lock().bookmark_now = true;
        self.shared.wake.notify_one();
    }

    /// Ends every watch because the node shuts down, and takes no new ones.
    pub fn close(&self) {
        self.shared.inner.lock().closed = true;
        self.shared.end_all(Ending::Closing, u64::MAX);
    }

    /// How many watch.
    pub fn watcher_count(&self) -> usize {
        self.shared.inner.lock().index.count()
    }

    /// Whether no belief has to be looked at again.
    #[cfg(test)]
    pub(super) fn is_belief_idle(&self) -> bool {
        self.shared.inner.lock().beliefs.is_idle()
    }

    /// Joins: the watcher is put into the index *first*, so that whatever is published after the
    /// state was read lands in its mailbox; what was published before is dropped there again.
    pub(super) fn subscribe(
        &self,
        state: &RwLock<State>,
        topic: Topic,
        filter: Filter,
        from: From,
    ) -> Result<WatchStream, Status> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let watcher = Arc::new(Watcher::new(id, topic, filter));
        self.shared.enter(&watcher)?;
        // From here on dropping the stream takes the watcher out again.
        let stream = WatchStream::new(self.shared.clone(), watcher.clone());
        let joined = match from {
            From::Snapshot => self.shared.snapshot(state, &watcher)?,
            From::After(incarnation, revision) => {
                self.shared.resume(state, &watcher, incarnation, revision)?
            }
        };
        self.shared.join(&watcher, joined);
        Ok(stream)
    }
}

impl Shared {
    fn enter(&self, watcher: &Arc<Watcher>) -> Result<(), Status> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(Ending::Closing.status());
        }
        if inner.index.count() >= self.config.max_watchers {
            let text = format!("this node serves {} watchers already", self.config.max_watchers);
            return Err(status::quota("max_watchers", text));
        }
        inner.index.insert(watcher.clone());
        let kind = watcher.topic.as_str();
        self.metrics.watchers.get_or_create(&Kind { kind }).inc();
        Ok(())
    }

    /// Takes a watcher out; harmless if it is out already.
    pub(super) fn leave(&self, watcher: &Watcher) {
        if self.inner.lock().index.remove(watcher) {
            let kind = watcher.topic.as_str();
            self.metrics.watchers.get_or_create(&Kind { kind }).dec();
        }
    }

    /// Ends every watch that began before `generation`.
    fn end_all(&self, why: Ending, generation: u64) {
        let everybody = {
            let mut inner = self.inner.lock();
            inner.generation = generation;
            inner.beliefs.forget(generation);
            let closing = why == Ending::Closing;
            inner.index.drain(|watcher| closing || watcher.is_older_than(generation))
        };
        for watcher in everybody {
            watcher.end(why);
            let kind = watcher.topic.as_str();
            self.metrics.watchers.get_or_create(&Kind { kind }).dec();
            self.metrics.watchers_cut_off.get_or_create(&Kind { kind: why.as_str() }).inc();
        }
    }

    /// One round of the pump; returns when belief must be looked at again.
    fn round(&self, sweep: bool, bookmark: bool) -> Look {
        let (work, incarnation, position) = self.feed.lock().take();
        for work in work {
            match work {
                Work::Deliver(group) => self.hand_out(&group),
                Work::End(why, generation) => self.end_all(why, generation),
            }
        }
        let mut inner = self.inner.lock();
        inner.incarnation = incarnation;
        inner.position = position;
        let sweep = std::mem::take(&mut inner.sweep_now) || sweep;
        let mut flips = inner.beliefs.settle(position);
        if sweep {
            let Inner { beliefs, index, .. } = &mut *inner;
            flips.extend(beliefs.sweep(self.believes.as_ref(), |name| {
                index.seeing(Topic::Elections, name).next().is_some()
            }));
        }
        let mut cut = Vec::new();
        for flip in flips {
            self.tell_belief(&inner, &flip, &mut cut);
        }
        let asked = std::mem::take(&mut inner.bookmark_now);
        if asked || bookmark {
            self.bookmark(&inner, asked, &mut cut);
        }
        let look = match &inner.beliefs {
            beliefs if beliefs.is_sweeping() => Look::AtOnce,
            beliefs if beliefs.is_idle() => Look::Never,
            _ => Look::Later,
        };
        drop(inner);
        self.cut_off(&cut);
        look
    }

    fn hand_out(&self, group: &Group) {
        let bounds = self.config.mailbox();
        let mut cut = Vec::new();
        let mut sent = 0_u64;
        {
            let mut inner = self.inner.lock();
            let Inner { index, beliefs, generation, .. } = &mut *inner;
            // For each watched prefix the place of its last event in this group.
            let mut last_of: HashMap<&str, usize> = HashMap::new();
            if group.events.len() > 1 {
                for (at, event) in group.events.iter().enumerate() {
                    for (prefix, _) in index.prefixes(event.topic(), &event.name) {
                        last_of.insert(prefix, at);
                    }
                }
            }
            for (at, event) in group.events.iter().enumerate() {
                let topic = event.topic();
                let watched = index.seeing(topic, &event.name).next().is_some();
                let masked = beliefs.change(event, watched, *generation, self.believes.as_ref());
                if !watched {
                    continue;
                }
                let mut give = |watcher: &Arc<Watcher>, bytes: Bytes| {
                    sent += 1;
                    if !watcher.deliver(group.revision, bytes, bounds) {
                        cut.push(watcher.clone());
                    }
                };
                for watcher in index.exact(topic, &event.name) {
                    give(watcher, event.encoded(Shown { masked, more: false }));
                }
                for (prefix, watchers) in index.prefixes(topic, &event.name) {
                    let more = last_of.get(prefix).is_some_and(|last| *last > at);
                    for watcher in watchers.values() {
                        give(watcher, event.encoded(Shown { masked, more }));
                    }
                }
            }
        }
        self.metrics.watch_deliveries.inc_by(sent);
        self.cut_off(&cut);
    }

    fn tell_belief(&self, inner: &Inner, flip: &Flip, cut: &mut Vec<Arc<Watcher>>) {
        let bounds = self.config.mailbox();
        let bytes = flip.event.encode(inner.position, flip.masked);
        let mut give = |watcher: &Arc<Watcher>| {
            if !watcher.deliver_belief(bytes.clone(), bounds) {
                cut.push(watcher.clone());
            }
        };
        match &flip.only {
            Some(watcher) => give(watcher),
            None => inner.index.seeing(Topic::Elections, &flip.event.name).for_each(give),
        }
    }

    fn bookmark(&self, inner: &Inner, asked: bool, cut: &mut Vec<Arc<Watcher>>) {
        let age_ms = self.believes.age_ms();
        let stamp = stamp_out(inner.incarnation, inner.position, self.config.node, age_ms);
        for topic in Topic::ALL {
            let bytes = mark(topic, stamp, false);
            for watcher in inner.index.all(topic) {
                if !watcher.deliver_bookmark(bytes.clone(), asked) {
                    cut.push(watcher.clone());
                }
            }
        }
    }

    fn cut_off(&self, cut: &[Arc<Watcher>]) {
        for watcher in cut {
            self.leave(watcher);
            let kind = Ending::Slow.as_str();
            self.metrics.watchers_cut_off.get_or_create(&Kind { kind }).inc();
            tracing::info!(filter = ?watcher.filter, "a watcher was too slow and is cut off");
        }
    }
}

/// When belief must be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// A sweep is not finished.
    AtOnce,
    /// After the interval.
    Later,
    /// There is nothing to look at.
    Never,
}

/// The pump: woken by a change, and by its clock while there is belief to look at.
async fn pump(hub: std::sync::Weak<Shared>) {
    let mut next_sweep = Instant::now();
    let mut next_bookmark = None;
    let mut look = Look::Never;
    loop {
        let Some(shared) = hub.upgrade() else { return };
        let HubConfig { belief_interval, bookmark_interval, .. } = shared.config;
        // At least once a second, to notice that the hub is gone.
        let bookmark_at = *next_bookmark.get_or_insert_with(|| Instant::now() + bookmark_interval);
        let mut until = bookmark_at.min(Instant::now() + Duration::from_secs(1));
        if look == Look::AtOnce {
            next_sweep = Instant::now();
        }
        if look != Look::Never {
            until = until.min(next_sweep);
        }
        let _ = tokio::time::timeout_at(until, shared.wake.notified()).await;
        // Rounds that follow each other at once let others in between.
        tokio::task::yield_now().await;
        let now = Instant::now();
        let sweep = look != Look::Never && now >= next_sweep;
        let bookmark = now >= bookmark_at;
        if sweep || look == Look::Never {
            next_sweep = now + belief_interval;
        }
        if bookmark {
            next_bookmark = None;
        }
        look = shared.round(sweep, bookmark);
    }
}
