//! The hub: takes what was applied, hands it to the watchers it concerns.
//!
//! Locks, in the order in which they may be taken: state, feed; index, feed. `publish` runs with
//! the state locked and takes the feed alone, for an append; whatever walks over watchers runs in
//! the pump, a task of its own, with the index locked.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use regent_core::effect::Applied;
use regent_core::id::{ElectionName, Incarnation, NodeId, Revision, ServiceName};
use regent_core::state::State;
use regent_rpc::convert::common::{From, service_name, stamp_out, watch_from};
use regent_rpc::convert::election::ObserveScope;
use regent_rpc::convert::status;
use regent_rpc::pb::v1;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::belief::{Beliefs, Flip};
use super::change::{Event, Row, Shown, mark};
use super::feed::{Feed, Group, RingBounds, Unresumable, Work};
use super::index::Index;
use super::mailbox::{Ending, MailboxBounds, Watcher};
use super::stream::{Head, WatchStream};
use super::{Believes, Filter, Topic};
use crate::http::metrics::{Kind, Metrics};

/// Rows whose sessions are looked up under one lock of the state.
const FACTS_CHUNK: usize = 1_000;

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
    config: HubConfig,
    believes: Arc<dyn Believes>,
    metrics: Arc<Metrics>,
    feed: Mutex<Feed>,
    inner: Mutex<Inner>,
    wake: Notify,
    next_id: AtomicU64,
}

#[derive(Default)]
struct Inner {
    index: Index,
    beliefs: Beliefs,
    incarnation: Incarnation,
    /// Everything up to here was handed out.
    position: Revision,
    /// Watches of earlier generations of the feed were ended.
    generation: u64,
    /// Ask for a sweep or bookmarks out of turn.
    sweep_now: bool,
    bookmark_now: bool,
    closed: bool,
}

impl Hub {
    /// Starts the pump on the current tokio runtime. It ends when the last handle and the last
    /// stream are gone.
    pub fn start(config: HubConfig, believes: Arc<dyn Believes>, metrics: Arc<Metrics>) -> Self {
        let shared = Arc::new(Shared {
            config,
            believes,
            metrics,
            feed: Mutex::default(),
            inner: Mutex::default(),
            wake: Notify::new(),
            next_id: AtomicU64::new(1),
        });
        tokio::spawn(pump(Arc::downgrade(&shared)));
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
            From::Snapshot => self.shared.snapshot(state, &watcher),
            From::After(incarnation, revision) => {
                self.shared.resume(state, &watcher, incarnation, revision)?
            }
        };
        Ok(stream.with_head(self.shared.join(&watcher, joined)))
    }
}

/// What a watcher is served before its mailbox.
struct Joined {
    /// Everything up to here is in `rows`, or was seen before.
    at: Revision,
    incarnation: Incarnation,
    generation: u64,
    /// Changes since the watcher left, each with whether more of its entry follow.
    replay: Vec<(Arc<Event>, bool)>,
    /// Rows as they are: of a snapshot, or those whose holder a resumed watcher must be told about
    /// because another node told it last.
    rows: Vec<Arc<Event>>,
    is_snapshot: bool,
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

    fn snapshot(&self, state: &RwLock<State>, watcher: &Watcher) -> Joined {
        let (at, incarnation, generation, rows) = {
            let state = state.read();
            let rows = Rows::collect(&state, watcher, None);
            (state.revision(), state.incarnation(), self.feed.lock().generation(), rows)
        };
        let rows = rows.into_events(state);
        Joined { at, incarnation, generation, replay: Vec::new(), rows, is_snapshot: true }
    }

    fn resume(
        &self,
        state: &RwLock<State>,
        watcher: &Watcher,
        incarnation: Incarnation,
        revision: Revision,
    ) -> Result<Joined, Status> {
        let (groups, at, generation, rows) = {
            let state = state.read();
            let rows = Rows::collect(&state, watcher, Some(revision));
            // Under the state's lock the feed stands exactly at its revision.
            let feed = self.feed.lock();
            let (groups, at) = feed.after(incarnation, revision).map_err(unresumable)?;
            (groups, at, feed.generation(), rows)
        };
        let mut replay = Vec::new();
        for group in &groups {
            let seen = group.events.iter().filter(|event| {
                event.topic() == watcher.topic && watcher.filter.covers(&event.name)
            });
            let seen: Vec<_> = seen.cloned().collect();
            let last = seen.len().saturating_sub(1);
            replay.extend(seen.into_iter().enumerate().map(|(i, event)| (event, i < last)));
        }
        let rows = rows.into_events(state);
        Ok(Joined { at, incarnation, generation, replay, rows, is_snapshot: false })
    }

    /// Decides how everything served first is shown, and lets the mailbox begin behind it.
    fn join(&self, watcher: &Arc<Watcher>, joined: Joined) -> Head {
        let Joined { at, incarnation, generation, replay, rows, is_snapshot } = joined;
        let mut masked: HashSet<Arc<str>> = HashSet::new();
        let mut held: HashMap<Arc<str>, Arc<Event>> = HashMap::new();
        let mut messages: Vec<(Arc<Event>, HeadShown)> = Vec::with_capacity(replay.len());
        let mut show = |event: &Arc<Event>| {
            held.remove(&event.name);
            masked.remove(&event.name);
            let Some(session) = event.holder() else { return false };
            held.insert(event.name.clone(), event.clone());
            let hide = !self.believes.believed_live(session);
            if hide {
                masked.insert(event.name.clone());
            }
            hide
        };
        for (event, more) in replay {
            let masked = show(&event);
            messages.push((event, HeadShown::Change(Shown { masked, more })));
        }
        // A snapshot can be gone on from only as a whole, so its rows carry no revision.
        let label = if is_snapshot { Revision(0) } else { at };
        for event in rows {
            let masked = show(&event);
            messages.push((event, HeadShown::Row { label, masked }));
        }
        let stamp = stamp_out(incarnation, at, self.config.node, self.believes.age_ms());
        {
            let mut inner = self.inner.lock();
            watcher.join(at, generation);
            if generation < inner.generation {
                // What it was to be served has become void before it was in.
                watcher.end(if inner.closed { Ending::Closing } else { Ending::Compacted });
            }
            let changed = if inner.position > at {
                let since = self.feed.lock().after(incarnation, at);
                let groups = since.map(|(groups, _)| groups).unwrap_or_default();
                let events = groups.iter().flat_map(|group| &group.events);
                events.map(|event| event.name.clone()).collect()
            } else {
                HashSet::new()
            };
            if !watcher.has_ended() {
                let held = held.into_values().collect();
                inner.beliefs.join(watcher.clone(), at, generation, held, masked, &changed);
            }
        }
        self.wake.notify_one();
        Head::new(messages, mark(watcher.topic, stamp, is_snapshot))
    }

    /// One round of the pump; returns whether belief must be looked at again soon.
    fn round(&self, sweep: bool, bookmark: bool) -> bool {
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
            self.bookmark(&inner, asked);
        }
        let more = !inner.beliefs.is_idle();
        drop(inner);
        self.cut_off(&cut);
        more
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

    fn bookmark(&self, inner: &Inner, asked: bool) {
        let age_ms = self.believes.age_ms();
        let stamp = stamp_out(inner.incarnation, inner.position, self.config.node, age_ms);
        for topic in Topic::ALL {
            let bytes = mark(topic, stamp, false);
            for watcher in inner.index.all(topic) {
                watcher.deliver_bookmark(bytes.clone(), asked);
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

/// How something served first is shown.
#[derive(Clone, Copy, Debug)]
pub(super) enum HeadShown {
    Change(Shown),
    Row { label: Revision, masked: bool },
}

/// Rows picked under the state's lock, cheaply; what else they need is looked up in small bites, so
/// that a snapshot of everything does not hold up `apply`.
enum Rows {
    Elections(Vec<(ElectionName, Arc<regent_core::state::election::Election>)>),
    Services(Vec<Arc<Event>>),
}

impl Rows {
    /// `seen`: for a resumed watch, the revision it has seen; then only held elections that have
    /// not changed since are taken: belief in their holders is all that may differ from what the
    /// watcher knows.
    fn collect(state: &State, watcher: &Watcher, seen: Option<Revision>) -> Self {
        match watcher.topic {
            Topic::Elections => {
                let rows = covered(state.elections(), &watcher.filter, ElectionName::as_str, |n| {
                    ElectionName::parse(n).ok()
                });
                let rows = rows.filter(|(_, row)| {
                    seen.is_none_or(|seen| row.changed <= seen && row.holder.is_some())
                });
                Self::Elections(rows.map(|(name, row)| (name.clone(), row.clone())).collect())
            }
            Topic::Services if seen.is_some() => Self::Services(Vec::new()),
            Topic::Services => {
                let rows = covered(state.services(), &watcher.filter, ServiceName::as_str, |n| {
                    ServiceName::parse(n).ok()
                });
                let events = rows.map(|(name, row)| {
                    let row = Row::service(state, name, row.clone());
                    Arc::new(Event::new(name.as_str().into(), state.revision(), row))
                });
                Self::Services(events.collect())
            }
        }
    }

    fn into_events(self, state: &RwLock<State>) -> Vec<Arc<Event>> {
        let rows = match self {
            Self::Services(events) => return events,
            Self::Elections(rows) => rows,
        };
        let mut events = Vec::with_capacity(rows.len());
        for chunk in rows.chunks(FACTS_CHUNK) {
            let state = state.read();
            for (name, row) in chunk {
                let changed = row.changed;
                let row = Row::election(&state, name, row.clone());
                events.push(Arc::new(Event::new(name.as_str().into(), changed, row)));
            }
        }
        events
    }
}

/// The rows of `table` that `filter` covers, found by its order.
fn covered<'a, K: Ord, V>(
    table: &'a std::collections::BTreeMap<K, V>,
    filter: &'a Filter,
    text: impl Fn(&K) -> &str + 'a,
    parse: impl Fn(&str) -> Option<K>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    let first = match filter {
        Filter::One(name) | Filter::Prefix(name) => parse(name),
    };
    let range = match first {
        Some(first) => table.range(first..),
        None => table.range(..),
    };
    // One name: the first row is it, or it is not there. A prefix: its rows stand together. No
    // prefix is no name, so the whole table is looked at.
    range.take_while(move |(name, _)| filter.covers(text(name)))
}

fn unresumable(why: Unresumable) -> Status {
    match why {
        Unresumable::Incarnation => Ending::Incarnation.status(),
        Unresumable::Compacted { oldest } => status::compacted(format!(
            "what came after this revision is no longer kept, the oldest is {oldest}: begin anew"
        )),
        Unresumable::Ahead { applied } => {
            let mut refused = status::Refused::of("node_behind");
            refused.hint = "try another node, or this one a little later".into();
            let text = format!("this node has applied only up to revision {applied}");
            refused.into_status(Code::Unavailable, text)
        }
    }
}

/// The pump: woken by a change, and by its clock while there is belief to look at.
async fn pump(hub: std::sync::Weak<Shared>) {
    let mut next_sweep = Instant::now();
    let mut next_bookmark = None;
    let mut sweeping = false;
    loop {
        let Some(shared) = hub.upgrade() else { return };
        let HubConfig { belief_interval, bookmark_interval, .. } = shared.config;
        // At least once a second, to notice that the hub is gone.
        let bookmark_at = *next_bookmark.get_or_insert_with(|| Instant::now() + bookmark_interval);
        let mut until = bookmark_at.min(Instant::now() + Duration::from_secs(1));
        if sweeping {
            until = until.min(next_sweep);
        }
        let _ = tokio::time::timeout_at(until, shared.wake.notified()).await;
        let now = Instant::now();
        let sweep = sweeping && now >= next_sweep;
        let bookmark = now >= bookmark_at;
        if sweep || !sweeping {
            next_sweep = now + belief_interval;
        }
        if bookmark {
            next_bookmark = None;
        }
        sweeping = shared.round(sweep, bookmark);
    }
}
