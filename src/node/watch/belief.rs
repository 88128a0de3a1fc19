//! What watchers have been told about who is believed live (C3), and when they must be told anew.
//!
//! Belief is no entry of the log: it ends by the clock on this node alone. So the hub remembers, for
//! each watched election with a holder, whether it shows the holder, and looks again every so often.
//! A watcher that has just joined was told by itself; it is compared once with what the hub shows
//! (*settled*), and from then on it hears every change of belief.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use regent_core::id::Revision;

use super::change::Event;
use super::mailbox::Watcher;
use super::{Believes, Filter, Topic};

/// Elections looked at in one go: it holds the index, and 10,000 looks take about a millisecond.
/// What is left of a sweep is looked at in the next round, which comes at once: a holder must not be
/// named past belief because many others are watched, too (C3).
const MAX_LOOKS: usize = 10_000;

struct Tracked {
    event: Arc<Event>,
    masked: bool,
    /// Of the feed when it was looked at.
    generation: u64,
}

struct Settling {
    watcher: Arc<Watcher>,
    after: Revision,
    /// Names whose holder it was not told.
    masked: HashSet<Arc<str>>,
}

/// The hub's memory of belief.
#[derive(Default)]
pub(super) struct Beliefs {
    tracked: BTreeMap<Arc<str>, Tracked>,
    /// Where the last sweep stopped.
    cursor: Option<Arc<str>>,
    settling: Vec<Settling>,
}

/// Somebody must be told that an election is shown differently.
pub(super) struct Flip {
    pub event: Arc<Event>,
    pub masked: bool,
    /// One watcher, or all who see it.
    pub only: Option<Arc<Watcher>>,
}

impl Beliefs {
    /// Whether there is anything to look at again.
    pub(super) fn is_idle(&self) -> bool {
        self.tracked.is_empty() && self.settling.is_empty()
    }

    /// A change is handed out; returns whether its holder is left out. `watched`: whether anybody
    /// sees it.
    pub(super) fn change(
        &mut self,
        event: &Arc<Event>,
        watched: bool,
        generation: u64,
        believes: &dyn Believes,
    ) -> bool {
        let Some(session) = event.holder() else {
            if event.topic() == Topic::Elections {
                self.tracked.remove(&event.name);
            }
            return false;
        };
        let masked = !believes.believed_live(session);
        if watched {
            let tracked = Tracked { event: event.clone(), masked, generation };
            self.tracked.insert(event.name.clone(), tracked);
        } else {
            self.tracked.remove(&event.name);
        }
        masked
    }

    /// A watcher has joined and was told `held` elections with these holders left out (`masked`).
    /// `changed`: names that changed after `after` and were handed out already.
    pub(super) fn join(
        &mut self,
        watcher: Arc<Watcher>,
        after: Revision,
        generation: u64,
        held: Vec<Arc<Event>>,
        masked: HashSet<Arc<str>>,
        changed: &HashSet<Arc<str>>,
    ) {
        for event in held {
            if changed.contains(&event.name) {
                continue;
            }
            let masked = masked.contains(&event.name);
            self.tracked.entry(event.name.clone()).or_insert(Tracked { event, masked, generation });
        }
        self.settling.push(Settling { watcher, after, masked });
    }

    /// Compares those who joined with what the hub shows, once the pump stands at `position`.
    pub(super) fn settle(&mut self, position: Revision) -> Vec<Flip> {
        let mut flips = Vec::new();
        let (ready, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.settling).into_iter().partition(|s| s.after <= position);
        self.settling = waiting;
        for Settling { watcher, after, masked } in ready {
            watcher.settle();
            self.each_covered(&watcher.filter, |name, tracked| {
                // What changed later it got from the mailbox, shown as the hub shows it.
                let told = masked.contains(name);
                if tracked.event.revision <= after && told != tracked.masked {
                    let event = tracked.event.clone();
                    flips.push(Flip { event, masked: tracked.masked, only: Some(watcher.clone()) });
                }
            });
        }
        flips
    }

    fn each_covered(&self, filter: &Filter, mut look: impl FnMut(&str, &Tracked)) {
        match filter {
            Filter::One(name) => {
                if let Some((name, tracked)) = self.tracked.get_key_value(name.as_str()) {
                    look(name, tracked);
                }
            }
            Filter::Prefix(prefix) => {
                let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
                let range = self.tracked.range::<str, _>(from);
                for (name, tracked) in range.take_while(|(name, _)| name.starts_with(prefix)) {
                    look(name, tracked);
                }
            }
        }
    }

    /// Whether a sweep has been begun and not finished.
    pub(super) fn is_sweeping(&self) -> bool {
        self.cursor.is_some()
    }

    /// Looks at (some of) the watched holders again.
    pub(super) fn sweep(
        &mut self,
        believes: &dyn Believes,
        is_watched: impl Fn(&str) -> bool,
    ) -> Vec<Flip> {
        let mut flips = Vec::new();
        let mut gone = Vec::new();
        let from = self.cursor.take().map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.tracked.range_mut::<Arc<str>, _>((from, Bound::Unbounded));
        for (looks, (name, tracked)) in range.enumerate() {
            if looks == MAX_LOOKS {
                break;
            }
            self.cursor = Some(name.clone());
            if !is_watched(name) {
                gone.push(name.clone());
                continue;
            }
            let live = tracked.event.holder().is_some_and(|s| believes.believed_live(s));
            if tracked.masked == live {
                tracked.masked = !live;
                let event = tracked.event.clone();
                flips.push(Flip { event, masked: !live, only: None });
            }
        }
        let last = self.tracked.last_key_value().map(|(name, _)| name);
        if self.cursor.as_ref() == last {
            self.cursor = None;
        }
        for name in gone {
            self.tracked.remove(&name);
        }
        flips
    }

    /// Everything of before `generation` is void.
    pub(super) fn forget(&mut self, generation: u64) {
        self.cursor = None;
        self.tracked.retain(|_, tracked| tracked.generation >= generation);
        self.settling.retain(|settling| !settling.watcher.is_older_than(generation));
    }
}
