//! Who watches what: a change finds its watchers without looking at the others.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::mailbox::Watcher;
use super::{Filter, Topic};

/// Watchers of one name or one prefix, by number so that one leaves in O(log n).
type Watchers = BTreeMap<u64, Arc<Watcher>>;

#[derive(Default)]
struct OneTopic {
    exact: HashMap<Box<str>, Watchers>,
    prefixes: HashMap<Box<str>, Watchers>,
    /// How many prefixes of each length are watched: a name is looked up once per length.
    lengths: BTreeMap<usize, usize>,
}

/// All watchers of a node.
#[derive(Default)]
pub(super) struct Index {
    elections: OneTopic,
    services: OneTopic,
    count: usize,
}

impl Index {
    fn topic(&self, topic: Topic) -> &OneTopic {
        match topic {
            Topic::Elections => &self.elections,
            Topic::Services => &self.services,
        }
    }

    fn topic_mut(&mut self, topic: Topic) -> &mut OneTopic {
        match topic {
            Topic::Elections => &mut self.elections,
            Topic::Services => &mut self.services,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn insert(&mut self, watcher: Arc<Watcher>) {
        self.count += 1;
        let topic = self.topic_mut(watcher.topic);
        let watchers = match &watcher.filter {
            Filter::One(name) => topic.exact.entry(name.as_str().into()).or_default(),
            Filter::Prefix(prefix) => {
                let watchers = topic.prefixes.entry(prefix.as_str().into()).or_default();
                if watchers.is_empty() {
                    *topic.lengths.entry(prefix.len()).or_default() += 1;
                }
                watchers
            }
        };
        watchers.insert(watcher.id, watcher);
    }

    /// Removes a watcher; returns whether it was there.
    pub(super) fn remove(&mut self, watcher: &Watcher) -> bool {
        let topic = self.topic_mut(watcher.topic);
        let removed = match &watcher.filter {
            Filter::One(name) => {
                let Some(watchers) = topic.exact.get_mut(name.as_str()) else { return false };
                let removed = watchers.remove(&watcher.id).is_some();
                if watchers.is_empty() {
                    topic.exact.remove(name.as_str());
                }
                removed
            }
            Filter::Prefix(prefix) => {
                let Some(watchers) = topic.prefixes.get_mut(prefix.as_str()) else { return false };
                let removed = watchers.remove(&watcher.id).is_some();
                if watchers.is_empty() {
                    topic.prefixes.remove(prefix.as_str());
                    if let Some(count) = topic.lengths.get_mut(&prefix.len()) {
                        *count -= 1;
                        if *count == 0 {
                            topic.lengths.remove(&prefix.len());
                        }
                    }
                }
                removed
            }
        };
        self.count -= usize::from(removed);
        removed
    }

    /// Those who watch exactly `name`.
    pub(super) fn exact(&self, topic: Topic, name: &str) -> impl Iterator<Item = &Arc<Watcher>> {
        self.topic(topic).exact.get(name).into_iter().flat_map(BTreeMap::values)
    }

    /// The watched prefixes of `name`, each with its watchers.
    pub(super) fn prefixes<'a>(
        &'a self,
        topic: Topic,
        name: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Watchers)> {
        let topic = self.topic(topic);
        let lengths = topic.lengths.range(..=name.len());
        lengths.filter_map(move |(length, _)| {
            let (prefix, watchers) = topic.prefixes.get_key_value(name.get(..*length)?)?;
            Some((prefix.as_ref(), watchers))
        })
    }

    /// Everybody who sees `name`.
    pub(super) fn seeing<'a>(
        &'a self,
        topic: Topic,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Watcher>> {
        let by_prefix = self.prefixes(topic, name).flat_map(|(_, watchers)| watchers.values());
        self.exact(topic, name).chain(by_prefix)
    }

    /// Everybody who watches `topic`.
    pub(super) fn all(&self, topic: Topic) -> impl Iterator<Item = &Arc<Watcher>> {
        let topic = self.topic(topic);
        topic.exact.values().chain(topic.prefixes.values()).flat_map(BTreeMap::values)
    }

    /// Takes out those of whom `which` says so.
    pub(super) fn drain(&mut self, which: impl Fn(&Watcher) -> bool) -> Vec<Arc<Watcher>> {
        let everybody = Topic::ALL.iter().flat_map(|topic| self.all(*topic));
        let out: Vec<Arc<Watcher>> = everybody.filter(|w| which(w)).cloned().collect();
        for watcher in &out {
            self.remove(watcher);
        }
        out
    }
}
