//! Joining: what a watcher is served before its mailbox, and where its mailbox begins.
//!
//! A watcher is in the index before anything here runs. So whatever is published after the state
//! was read lands in its mailbox, and what was published before is dropped there again: nothing is
//! missed and nothing is told twice between a snapshot and the first change (S12).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use parking_lot::RwLock;
use regent_core::id::{ElectionName, Incarnation, Revision, ServiceName};
use regent_core::state::State;
use regent_core::state::election::Election;
use regent_rpc::convert::common::stamp_out;
use regent_rpc::convert::status;
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Code, Status};

use super::change::{Event, Row, Shown, mark};
use super::feed::Unresumable;
use super::head::Head;
use super::hub::Shared;
use super::mailbox::{Ending, Watcher};
use super::{Filter, Topic};

/// Rows whose sessions are looked up under one lock of the state.
const FACTS_CHUNK: usize = 1_000;

/// What a watcher is served before its mailbox.
pub(super) struct Joined {
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
    room: OwnedSemaphorePermit,
}

impl Shared {
    pub(super) fn snapshot(
        &self,
        state: &RwLock<State>,
        watcher: &Watcher,
    ) -> Result<Joined, Status> {
        let (at, incarnation, generation, rows) = {
            let state = state.read();
            let rows = Rows::collect(&state, watcher, None);
            (state.revision(), state.incarnation(), self.feed.lock().generation(), rows)
        };
        let room = self.unread.enter(rows.len())?;
        let rows = rows.into_events(state);
        Ok(Joined {
            at,
            incarnation,
            generation,
            replay: Vec::new(),
            rows,
            is_snapshot: true,
            room,
        })
    }

    pub(super) fn resume(
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
        let room = self.unread.enter(rows.len() + replay.len())?;
        let rows = rows.into_events(state);
        Ok(Joined { at, incarnation, generation, replay, rows, is_snapshot: false, room })
    }

    /// Decides how everything served first is shown, and lets the mailbox begin behind it.
    pub(super) fn join(&self, watcher: &Arc<Watcher>, joined: Joined) {
        let Joined { at, incarnation, generation, replay, rows, is_snapshot, room } = joined;
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
        watcher.serve(Head::new(messages, mark(watcher.topic, stamp, is_snapshot), room));
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
    Elections(Vec<(ElectionName, Arc<Election>)>),
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

    fn len(&self) -> usize {
        match self {
            Self::Elections(rows) => rows.len(),
            Self::Services(events) => events.len(),
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
    table: &'a BTreeMap<K, V>,
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
