//! The routes of each coordinator, and the judge of whom they name (S8, C3): nobody whose session was
//! taken because its time was over, whatever the node has heard since, and however late it applies.
//!
//! A node applies the log in order, some of it late: its disk is slow, it was cut off, it was restarted.
//! It asks for read indexes as the product does. Nothing here changes what else happens in a run.

use std::collections::BTreeMap;
use std::rc::Rc;

use regent_core::decide;
use regent_core::effect::{Applied, ClockEffect};
use regent_core::id::{Revision, SessionId};
use regent_core::lease::{NodeClock, Rules};
use regent_core::reply::Reply;
use regent_core::route::table::{Belief, Fitnesses, Heard, Routes, Write};

use super::coordinators::Rows;
use super::net::End;
use super::plan::service_name;
use super::world::{Place, World};
use crate::agents::machine::{MS, SECOND, Time};

/// An entry, as far as clocks and routes go.
struct Entry {
    at: Revision,
    clocks: Vec<(ClockEffect, u64)>,
    /// Where they changed.
    rows: Option<Rc<Rows>>,
}

/// One node.
struct Node {
    clock: NodeClock,
    boot: u64,
    /// How many entries it has applied.
    applied: usize,
    /// Until when it applies none.
    lags: Time,
    rows: Rc<Rows>,
}

/// What the judge knows, and the nodes.
#[derive(Default)]
pub struct Routers {
    log: Vec<Entry>,
    nodes: Vec<Node>,
    /// Sessions whose time was over, and since when that is committed.
    over: BTreeMap<SessionId, Time>,
}

impl Routers {
    pub fn new(nodes: usize, rules: Rules) -> Self {
        let node = || Node {
            clock: NodeClock::new(rules),
            boot: 1,
            applied: 0,
            lags: 0,
            rows: Rc::default(),
        };
        let nodes = std::iter::repeat_with(node).take(nodes).collect();
        Self { nodes, ..Self::default() }
    }
}

impl World {
    /// An entry is committed.
    pub(super) fn routes_committed(&mut self, applied: &Applied, rows: Option<Rc<Rows>>) {
        let sessions = self.coord.state.sessions();
        let ttl = |effect: &ClockEffect| match effect {
            ClockEffect::Renewed(session) => sessions.get(session).map_or(0, |row| row.ttl_ms),
            _ => 0,
        };
        let clocks = applied.clocks.iter().map(|effect| (*effect, ttl(effect))).collect();
        self.routers.log.push(Entry { at: applied.revision, clocks, rows });
        if matches!(applied.reply, Reply::Expired { .. }) {
            for effect in &applied.clocks {
                if let ClockEffect::Ended(session) = effect {
                    self.routers.over.entry(*session).or_insert(self.now);
                }
            }
        }
    }

    /// A node applies what it has heard of, and is asked for its routes.
    pub(super) fn follow_routes(&mut self, n: usize) {
        let wait = self.beside.between(10 * MS, 150 * MS);
        self.later(wait, Place::World, move |world| world.follow_routes(n));
        if !self.is_node_awake(n) {
            return;
        }
        let boot = self.coord.nodes[n].boot;
        if self.routers.nodes[n].boot != boot {
            // It goes on from its disk: what it applied is there, what it knew of time is not.
            let clock = NodeClock::new(self.rules);
            let node = &mut self.routers.nodes[n];
            (node.clock, node.boot) = (clock, boot);
        }
        if self.beside.chance(10) {
            self.routers.nodes[n].lags = self.now + self.beside.between(100 * MS, 12 * SECOND);
        }
        let hears = self.net.joins(End::Node(self.coord.leader), End::Node(n));
        if hears {
            self.ask_read_index(n, boot);
        }
        if hears && self.routers.nodes[n].lags <= self.now {
            self.apply_routes(n);
        }
        self.judge_routes(n);
    }

    fn apply_routes(&mut self, n: usize) {
        let now = self.coord.nodes[n].machine.read(self.now);
        let Routers { log, nodes, .. } = &mut self.routers;
        let node = &mut nodes[n];
        for entry in &log[node.applied..] {
            let effects: Vec<ClockEffect> =
                entry.clocks.iter().map(|(effect, _)| *effect).collect();
            let ttl = |id| {
                let renews =
                    |(effect, _): &&(ClockEffect, u64)| *effect == ClockEffect::Renewed(id);
                entry.clocks.iter().find(renews).map(|(_, ttl_ms)| *ttl_ms)
            };
            node.clock.apply(entry.at, &effects, now, ttl);
            if let Some(rows) = &entry.rows {
                node.rows = Rc::clone(rows);
            }
        }
        node.applied = log.len();
    }

    /// To the leader and back: either way may take its time.
    fn ask_read_index(&mut self, n: usize, boot: u64) {
        let sent = self.coord.nodes[n].machine.read(self.now);
        let mut way = || match self.beside.chance(10) {
            true => self.beside.between(MS, 1_500 * MS),
            false => self.beside.between(MS / 10, 2 * MS),
        };
        let (there, back) = (way(), way());
        self.later(there, Place::World, move |world| {
            let leader = world.coord.leader;
            if !world.can_commit(leader) || !world.net.joins(End::Node(leader), End::Node(n)) {
                return;
            }
            let answer = world.coord.state.revision();
            world.later(back, Place::Node(n, boot), move |world| {
                let node = &mut world.routers.nodes[n];
                if node.boot == boot {
                    node.clock.read_index_answered(sent, answer);
                }
            });
        });
    }

    /// One router follows at each node, and applies what it is told at once: what the leader hears of them.
    pub(super) fn hear_routers(&mut self) {
        if !self.plan.awaits {
            return;
        }
        let leader = self.coord.leader;
        let (hears, silent): (Vec<usize>, Vec<usize>) =
            (0..self.routers.nodes.len()).partition(|n| {
                self.is_node_awake(*n) && self.net.joins(End::Node(leader), End::Node(*n))
            });
        let applied = hears.into_iter().map(|n| self.routers.nodes[n].rows.at).collect();
        let routers = decide::facts::Routers { applied, silent_nodes: silent.len() };
        self.coord.facts.followed(&service_name(), routers);
    }

    /// S8, at this instant.
    fn judge_routes(&mut self, n: usize) {
        let node = &self.routers.nodes[n];
        let Rows { service, role, operation, .. } = &*node.rows;
        let (Some(service), Some(role)) = (service, role) else { return };
        let Some(lease) = &role.lease else { return };
        self.check.stats.routed += 1;
        // Only whom it must not name is looked for: a table costs more than all the rest.
        let Some(over) = self.routers.over.get(&lease.session).copied() else { return };
        self.check.stats.routed_late += 1;
        let now = self.coord.nodes[n].machine.read(self.now);
        let believes = |session| match node.clock.believed_live(session, now) {
            true => Belief::Live,
            false => Belief::Over,
        };
        let (rows, at) = (Fitnesses::new(), self.coord.state.incarnation());
        let heard = Heard { rows: &rows, settled: true };
        let newest = operation.as_ref().map(|(_, row)| row.as_ref());
        let routes = Routes::of((at, node.rows.at), service, Some(role), newest, heard, believes);
        if let (Write::To(to), true) = (&routes.write, self.options.pages) {
            let at = format!("at {}.{:06} s", self.now / SECOND, self.now % SECOND);
            let (name, late) = (&to.instance, (self.now - over) / MS);
            let text =
                format!("S8: {at} node {n} sends to {name}, {late} ms after its session was taken");
            self.check.broken_within(text);
        }
    }
}
