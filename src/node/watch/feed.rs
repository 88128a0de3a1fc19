//! The side of the hub that `apply` touches: a ring of recent changes, bounded by count and bytes.
//!
//! Called with the state locked, so everything here is an append. What falls out of the ring can no
//! longer be resumed from: such a watch is told OUT_OF_RANGE and begins anew with a snapshot.

use std::collections::VecDeque;
use std::sync::Arc;

use regent_core::effect::{Applied, Change};
use regent_core::id::{Incarnation, Revision, ServiceName};
use regent_core::state::State;

use super::change::{Event, Row};
use super::mailbox::Ending;

/// Everything one entry changed that somebody may watch.
#[derive(Debug)]
pub(super) struct Group {
    pub revision: Revision,
    pub events: Vec<Arc<Event>>,
    weight: usize,
}

/// What the pump has to do.
#[derive(Debug)]
pub(super) enum Work {
    /// Hand these out.
    Deliver(Arc<Group>),
    /// End every watch of an earlier generation: what came between cannot be told.
    End(Ending, u64),
}

/// Why a watch cannot go on where it wants to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unresumable {
    /// Another life of the cluster.
    Incarnation,
    /// The ring begins after it.
    Compacted { oldest: Revision },
    /// This node has not applied that far.
    Ahead { applied: Revision },
}

/// The ring and what the pump has not seen yet.
#[derive(Debug, Default)]
pub(super) struct Feed {
    incarnation: Incarnation,
    applied: Revision,
    /// Rises whenever the watches of before cannot go on.
    generation: u64,
    /// Everything after this revision is in the ring.
    floor: Revision,
    ring: VecDeque<Arc<Group>>,
    ring_events: usize,
    ring_bytes: usize,
    pending: Vec<Work>,
    pending_events: usize,
}

/// Bounds of the ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingBounds {
    pub events: usize,
    pub bytes: usize,
}

impl Feed {
    /// The state was replaced as a whole: what lies between is not known.
    pub(super) fn reset(&mut self, state: &State) {
        self.end(state.incarnation(), state.revision(), Ending::Compacted);
    }

    fn end(&mut self, incarnation: Incarnation, revision: Revision, why: Ending) {
        self.incarnation = incarnation;
        self.applied = revision;
        self.floor = revision;
        self.ring.clear();
        self.ring_events = 0;
        self.ring_bytes = 0;
        self.pending.clear();
        self.pending_events = 0;
        self.generation += 1;
        self.pending.push(Work::End(why, self.generation));
    }

    /// Takes what an entry did; returns whether the pump has something to do.
    pub(super) fn publish(&mut self, state: &State, applied: &Applied, bounds: RingBounds) -> bool {
        self.applied = applied.revision;
        // Set by the first entry of a cluster's life, when there is nothing to be void yet.
        self.incarnation = state.incarnation();
        if applied.changes.is_empty() {
            return false;
        }
        if applied.changes.contains(&Change::Incarnation) {
            self.end(state.incarnation(), applied.revision, Ending::Incarnation);
            return true;
        }
        let events = events_of(state, applied);
        if events.is_empty() {
            return false;
        }
        let weight = events.iter().map(|event| event.weight()).sum();
        let group = Arc::new(Group { revision: applied.revision, events, weight });
        self.ring_events += group.events.len();
        self.ring_bytes += weight;
        self.pending_events += group.events.len();
        self.ring.push_back(group.clone());
        self.pending.push(Work::Deliver(group));
        while self.ring_events > bounds.events || self.ring_bytes > bounds.bytes {
            let Some(gone) = self.ring.pop_front() else { break };
            self.ring_events -= gone.events.len();
            self.ring_bytes -= gone.weight;
            self.floor = gone.revision;
        }
        if self.pending_events > bounds.events {
            // The pump was not run for as long as it takes to fill the ring: what waits for it must
            // not grow without bound, so the watchers begin anew.
            self.end(self.incarnation, self.applied, Ending::Compacted);
        }
        true
    }

    /// What waits, and the revision up to which that is everything.
    pub(super) fn take(&mut self) -> (Vec<Work>, Incarnation, Revision) {
        self.pending_events = 0;
        (std::mem::take(&mut self.pending), self.incarnation, self.applied)
    }

    /// Everything after `revision`, and the revision up to which that is everything.
    pub(super) fn after(
        &self,
        incarnation: Incarnation,
        revision: Revision,
    ) -> Result<(Vec<Arc<Group>>, Revision), Unresumable> {
        if incarnation != self.incarnation {
            return Err(Unresumable::Incarnation);
        }
        if revision < self.floor {
            return Err(Unresumable::Compacted { oldest: self.floor });
        }
        if revision > self.applied {
            return Err(Unresumable::Ahead { applied: self.applied });
        }
        let first = self.ring.partition_point(|group| group.revision <= revision);
        Ok((self.ring.range(first..).cloned().collect(), self.applied))
    }

    /// Under the state's lock: to which generation a watch belongs that begins with this state.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn bytes(&self) -> usize {
        self.ring_bytes
    }
}

/// One event per row; a service and its partitions are one row to a watcher.
fn events_of(state: &State, applied: &Applied) -> Vec<Arc<Event>> {
    let revision = applied.revision;
    let mut events: Vec<Arc<Event>> = Vec::with_capacity(applied.changes.len());
    let mut services: Vec<&ServiceName> = Vec::new();
    for change in &applied.changes {
        match change {
            Change::Election(name, row) => {
                let row = match row {
                    Some(row) => Row::election(state, name, row.clone()),
                    None => Row::Election(None),
                };
                events.push(Arc::new(Event::new(name.as_str().into(), revision, row)));
            }
            Change::Service(name, _) | Change::Partition(name, _, _) => {
                if services.contains(&name) {
                    continue;
                }
                services.push(name);
                let row = match state.services().get(name) {
                    Some(row) => Row::service(state, name, row.clone()),
                    None => Row::Service(None),
                };
                events.push(Arc::new(Event::new(name.as_str().into(), revision, row)));
            }
            Change::Role(..) | Change::Operation(..) | Change::Cluster | Change::Incarnation => {}
        }
    }
    events
}
