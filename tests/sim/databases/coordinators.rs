//! The coordinators over an abstract log: one state that is what was committed, a leader that decides
//! and proposes, entries in flight whose fate a change of leader draws by chance. Every node has a
//! lease clock of its own and rows that lag.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use regent_core::authz::{Principal, Role};
use regent_core::command::{Command, Entry as Encoded, Expect, FullRenewal};
use regent_core::decide::expiry::View as ExpiryView;
use regent_core::decide::roles::View;
use regent_core::decide::{Expiry, Facts, Roles};
use regent_core::effect::Change;
use regent_core::id::{Incarnation, Revision, SessionId};
use regent_core::lease::holder::Answer;
use regent_core::lease::skew::SkewVerdict;
use regent_core::lease::{NodeClock, Rules};
use regent_core::mutant::{Mutant, leaves_out};
use regent_core::reply::Reply;
use regent_core::state::State;
use regent_core::state::role::row::{Operation, ServiceRole};
use regent_core::state::service::Service;
use regent_core::state::session::Session;
use regent_core::state::version::FEATURE_LEVEL;
use regent_core::time::WallMs;
use regent_core::timing::Timing;

use super::net::End;
use super::plan::service_name;
use super::streams::Streams;
use super::world::{Place, World};
use crate::agents::machine::{MS, Machine, SECOND, Time};

/// What is told to whoever proposed an entry.
pub type Told = Box<dyn FnOnce(&mut World, &Reply)>;

/// An entry that is proposed and not committed.
struct Entry {
    id: u64,
    bytes: Vec<u8>,
    told: Option<Told>,
}

/// The rows of the service as a node has them.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    pub at: Revision,
    pub service: Option<Arc<Service>>,
    pub role: Option<Arc<ServiceRole>>,
    /// Its newest operation.
    pub operation: Option<(Revision, Arc<Operation>)>,
    pub feature_level: u32,
}

/// One coordinator.
pub struct Node {
    pub machine: Machine,
    pub up: bool,
    pub boot: u64,
    clock: NodeClock,
    /// Entries were committed that it did not apply then.
    stale: bool,
    pub rows: Rc<Rows>,
}

/// A renewal on its way, and who hears what becomes of it.
struct Flight {
    renewal: FullRenewal,
    instance: usize,
    life: u64,
    node: usize,
}

/// All of them.
pub struct Coordinators {
    pub state: State,
    pub nodes: Vec<Node>,
    pub leader: usize,
    pub term: u64,
    flying: VecDeque<Entry>,
    pub facts: Facts,
    roles: Roles,
    expiry: Expiry,
    /// The leader's proposal about the service that is under way, and since when.
    busy: Option<(u64, Time)>,
    rest: Time,
    renewals: Vec<Flight>,
    pub streams: Streams,
    rows: Rc<Rows>,
    leaderless: Time,
    /// Session and mark of the lease, for people.
    lease: Option<(SessionId, Revision)>,
}

impl Coordinators {
    pub fn new(machines: Vec<Machine>, rules: Rules) -> Self {
        let node = |machine| Node {
            machine,
            up: true,
            boot: 1,
            clock: NodeClock::new(rules),
            stale: false,
            rows: Rc::default(),
        };
        Self {
            state: State::default(),
            nodes: machines.into_iter().map(node).collect(),
            leader: 0,
            term: 1,
            flying: VecDeque::new(),
            facts: Facts::default(),
            roles: Roles::default(),
            expiry: Expiry::new(),
            busy: None,
            rest: 0,
            renewals: Vec::new(),
            streams: Streams::default(),
            rows: Rc::default(),
            leaderless: 0,
            lease: None,
        }
    }

    /// The role of the service, as it is committed.
    pub fn role(&self) -> Option<&ServiceRole> {
        self.state.roles().get(&service_name()).map(AsRef::as_ref)
    }
}

impl World {
    pub fn begin_coordinators(&mut self) {
        let incarnation = Incarnation { counter: 1, id: 1 };
        let (cluster, timing) = ("sim".into(), Timing::LAN);
        self.commit_now(&Command::Bootstrap { incarnation, cluster, timing });
        let (to, raised) = (self.plan.level, self.plan.raised);
        self.commit_now(&Command::RaiseFeatureLevel { to });
        if let Some(at) = raised {
            let raise = Command::RaiseFeatureLevel { to: FEATURE_LEVEL };
            self.later(at, Place::World, move |world| world.commit_now(&raise));
        }
        let spec = Box::new(self.plan.spec());
        self.commit_now(&Command::PutService { spec, expect: Expect::Any });
        self.later(MS, Place::World, Self::lead);
        self.later(20 * MS, Place::World, Self::supervise);
    }

    fn entry(&self, by: Principal, command: &Command) -> Vec<u8> {
        Encoded::new(WallMs(self.now / MS), by, None, command).encode()
    }

    fn commit_now(&mut self, command: &Command) {
        let bytes = self.entry(Principal::new(Role::Admin, "ann"), command);
        let reply = self.apply(&bytes);
        assert!(!matches!(reply, Reply::Rejected(_)), "{reply:?}");
    }

    pub(super) fn is_node_awake(&self, n: usize) -> bool {
        let node = &self.coord.nodes[n];
        node.up && node.machine.runs(self.now)
    }

    /// Whether a node that leads reaches a majority.
    pub(super) fn can_commit(&self, n: usize) -> bool {
        let reached = (0..self.coord.nodes.len()).filter(|other| {
            self.is_node_awake(*other) && self.net.joins(End::Node(n), End::Node(*other))
        });
        self.is_node_awake(n) && reached.count() * 2 > self.coord.nodes.len()
    }

    /// An entry is proposed by node `from`'s leave; `told` hears what was replied, if the entry is
    /// committed and the word gets back to that node.
    pub fn propose(&mut self, from: usize, by: Principal, command: &Command, told: Told) -> u64 {
        let id = self.fresh();
        let leader = self.coord.leader;
        if !self.is_node_awake(leader) || !self.net.joins(End::Node(from), End::Node(leader)) {
            return id;
        }
        let bytes = self.entry(by, command);
        let told = Some(told);
        self.coord.flying.push_back(Entry { id, bytes, told });
        let slow = self.random.chance(15);
        let delay = if slow {
            self.random.between(MS, 3 * SECOND)
        } else {
            self.random.between(MS, 8 * MS)
        };
        self.later(delay, Place::World, move |world| world.commit(id));
        id
    }

    fn commit(&mut self, id: u64) {
        if !self.coord.flying.iter().any(|entry| entry.id == id) {
            return;
        }
        if !self.can_commit(self.coord.leader) {
            self.later(50 * MS, Place::World, move |world| world.commit(id));
            return;
        }
        while let Some(entry) = self.coord.flying.pop_front() {
            let reply = self.apply(&entry.bytes);
            // The leader hears of the end of its own proposal.
            if self.coord.busy.is_some_and(|(busy, _)| busy == entry.id) {
                self.coord.busy = None;
                if let Reply::Rejected(why) = &reply {
                    self.say(|| format!("a proposal of the leader was rejected: {why}"));
                    self.coord.rest = self.now + 100 * MS;
                }
            }
            if let Some(told) = entry.told {
                told(self, &reply);
            }
            // A retry of the same request, as a client makes one whose answer was lost.
            if self.random.chance(5) {
                self.apply(&entry.bytes);
            }
            if entry.id == id {
                break;
            }
        }
    }

    /// Every node that hears of it applies what is committed.
    fn apply(&mut self, bytes: &[u8]) -> Reply {
        let revision = self.coord.state.revision().next();
        let applied = match bytes {
            [] => self.coord.state.apply_blank(revision),
            bytes => self.coord.state.apply(revision, bytes),
        };
        self.check.stats.entries += 1;
        for n in 0..self.coord.nodes.len() {
            let hears = self.net.joins(End::Node(self.coord.leader), End::Node(n));
            let awake = self.is_node_awake(n);
            let (state, node) = (&self.coord.state, &mut self.coord.nodes[n]);
            if !hears || !awake {
                node.stale = true;
            }
            if !node.stale {
                let sessions = state.sessions();
                let ttl = |id| {
                    sessions.get(&id).map(|row: &Session| {
                        if leaves_out(Mutant::LaterClock) { row.ttl_ms * 3 / 4 } else { row.ttl_ms }
                    })
                };
                node.clock.apply(revision, &applied.clocks, node.machine.read(self.now), ttl);
            }
        }
        let now = self.coord.nodes[self.coord.leader].machine.read(self.now);
        self.coord.expiry.observe(&applied, now);
        let ours = |change: &Change| {
            matches!(
                change,
                Change::Role(..) | Change::Service(..) | Change::Operation(..) | Change::Cluster
            )
        };
        let changed = applied.changes.iter().any(ours);
        if changed {
            let name = service_name();
            let state = &self.coord.state;
            let role = state.roles().get(&name).cloned();
            let newest = role.as_ref().and_then(|role| role.operation);
            let operation = newest.and_then(|id| {
                Some((id, Arc::clone(state.operations().get(&(name.clone(), id))?)))
            });
            self.coord.rows = Rc::new(Rows {
                at: revision,
                service: state.services().get(&name).cloned(),
                role,
                operation,
                feature_level: state.cluster().feature_level,
            });
            for n in 0..self.coord.nodes.len() {
                self.send_rows(n);
            }
        }
        self.routes_committed(&applied, changed.then(|| Rc::clone(&self.coord.rows)));
        self.judge_entry(&applied);
        if self.options.trace {
            let lease = self.coord.role().and_then(|role| role.lease.clone());
            let lease = lease.map(|lease| (lease.session, lease.mark));
            if lease != self.coord.lease {
                self.say(|| format!("the lease is {lease:?}"));
                self.coord.lease = lease;
            }
        }
        self.covered();
        self.granted();
        applied.reply
    }

    /// A node hears of the newest rows, a little later.
    fn send_rows(&mut self, n: usize) {
        let rows = Rc::clone(&self.coord.rows);
        let lags = self.random.chance(20);
        let delay =
            if lags { self.random.between(MS, 2 * SECOND) } else { self.random.between(0, 3 * MS) };
        let place = Place::Node(n, self.coord.nodes[n].boot);
        self.later(delay, place, move |world| {
            let from = End::Node(world.coord.leader);
            if world.net.joins(from, End::Node(n)) && world.coord.nodes[n].rows.at < rows.at {
                world.coord.nodes[n].rows = rows;
                world.instruct_all(n);
            }
        });
    }

    /// The leader looks at state and facts, and proposes.
    fn lead(&mut self) {
        let wait = self.random.between(15 * MS, 45 * MS);
        self.later(wait, Place::World, Self::lead);
        let leader = self.coord.leader;
        if !self.is_node_awake(leader) {
            return;
        }
        self.flush_renewals();
        self.hear_routers();
        let coord = &mut self.coord;
        let node = &mut coord.nodes[leader];
        let now = node.machine.read(self.now);
        if node.stale {
            let sessions = coord.state.sessions().iter().map(|(id, row)| (*id, row.ttl_ms));
            let sessions: Vec<_> = sessions.collect();
            node.clock.reset(coord.state.revision(), sessions, now);
            node.stale = false;
        }
        let (term, skew) = (Some(coord.term), SkewVerdict::Agrees);
        let view = ExpiryView { state: &coord.state, term, skew, now };
        let mut commands = coord.expiry.decide(&view, &mut node.clock).commands;
        if coord.busy.is_some_and(|(_, since)| self.now > since + SECOND) {
            coord.busy = None;
        }
        let roles = coord.busy.is_none() && self.now >= coord.rest;
        let mut decided = Vec::new();
        if roles {
            let (state, facts) = (&coord.state, &coord.facts);
            let view = View { state, facts, term, skew, now, wall: WallMs(self.now / MS) };
            let decision = coord.roles.decide(&view);
            for line in decision.report {
                self.say(|| format!("leader: {line}"));
            }
            decided = decision.commands;
        }
        for command in commands.drain(..) {
            self.propose(leader, Principal::cluster(), &command, Box::new(|_, _| {}));
        }
        for command in decided {
            let id = self.propose(leader, Principal::cluster(), &command, Box::new(|_, _| {}));
            self.coord.busy = Some((id, self.now));
        }
    }

    /// A renewal reaches a node.
    pub fn renewal_arrives(
        &mut self,
        node: usize,
        instance: usize,
        life: u64,
        renewal: FullRenewal,
    ) {
        if self.net.joins(End::Node(node), End::Node(self.coord.leader)) {
            self.coord.renewals.push(Flight { renewal, instance, life, node });
        }
    }

    fn flush_renewals(&mut self) {
        let flights = std::mem::take(&mut self.coord.renewals);
        if flights.is_empty() {
            return;
        }
        let batch: Vec<_> = flights.iter().map(|flight| flight.renewal.clone()).collect();
        let command = Command::renew(&batch, self.coord.state.cluster().feature_level);
        let told = move |world: &mut World, reply: &Reply| {
            let Reply::Renewed { outcomes, .. } = reply else { return };
            for (flight, outcome) in flights.iter().zip(outcomes) {
                let (renewal, i) = (flight.renewal.renewal, flight.instance);
                let (life, node) = (flight.life, flight.node);
                let answer = Answer::Outcome(*outcome);
                world.carry_to_instance(node, i, life, move |world| {
                    world.renewal_answered(i, renewal.session, renewal.number, answer);
                });
            }
        };
        self.propose(self.coord.leader, Principal::cluster(), &command, Box::new(told));
    }

    /// From a node to an agent, over a connection of its own: it may be lost, or come twice.
    pub fn carry_to_instance(
        &mut self,
        node: usize,
        i: usize,
        life: u64,
        act: impl Fn(&mut Self) + Clone + 'static,
    ) {
        let times = match self.random.below(1_000) {
            0..8 => 0,
            8..16 => 2,
            _ => 1,
        };
        for _ in 0..times {
            let delay = self.delay();
            let act = act.clone();
            self.later(delay, Place::Agent(i, life), move |world| {
                if world.net.passes(End::Node(node), End::Instance(i)) {
                    act(world);
                }
            });
        }
    }

    /// From an agent to a node.
    pub fn carry_to_node(
        &mut self,
        i: usize,
        node: usize,
        act: impl Fn(&mut Self) + Clone + 'static,
    ) {
        let times = match self.random.below(1_000) {
            0..8 => 0,
            8..16 => 2,
            _ => 1,
        };
        let place = Place::Node(node, self.coord.nodes[node].boot);
        for _ in 0..times {
            let delay = self.delay();
            let act = act.clone();
            self.later(delay, place, move |world| {
                if world.net.passes(End::Instance(i), End::Node(node)) {
                    act(world);
                }
            });
        }
    }

    /// Of a message: mostly short, sometimes long.
    pub fn delay(&mut self) -> Time {
        let most = if self.random.chance(10) { 1_500 * MS } else { 2 * MS };
        self.random.between(MS / 10, most)
    }

    /// Is there a leader that can commit?
    fn supervise(&mut self) {
        self.later(50 * MS, Place::World, Self::supervise);
        if self.can_commit(self.coord.leader) {
            self.coord.leaderless = self.now;
            return;
        }
        let patience = self.random.between(150 * MS, 600 * MS);
        if self.now > self.coord.leaderless + patience {
            self.elect();
        }
    }

    /// Another node, or the same, begins to lead.
    pub fn elect(&mut self) {
        let able: Vec<usize> =
            (0..self.coord.nodes.len()).filter(|n| self.can_commit(*n)).collect();
        if able.is_empty() {
            return;
        }
        let leader = able[self.random.index(able.len())];
        // A prefix of what was in flight got to the new leader.
        let kept = self.random.index(self.coord.flying.len() + 1);
        self.coord.flying.truncate(kept);
        self.coord.leader = leader;
        self.coord.term += 1;
        while let Some(mut entry) = self.coord.flying.pop_front() {
            let reply = self.apply(&entry.bytes);
            let hears = self.random.chance(300);
            if let Some(told) = entry.told.take().filter(|_| hears) {
                told(self, &reply);
            }
        }
        self.coord.renewals.clear();
        self.coord.facts.clear();
        (self.coord.roles, self.coord.expiry) = (Roles::default(), Expiry::new());
        self.coord.busy = None;
        self.apply(&[]);
        self.check.stats.leaders += 1;
        self.say(|| format!("node {leader} leads"));
        for n in 0..self.coord.nodes.len() {
            self.send_rows(n);
        }
    }

    /// A node is back, or connected again.
    pub fn node_back(&mut self, n: usize) {
        self.send_rows(n);
    }

    /// A node starts anew.
    pub fn restart_node(&mut self, n: usize) {
        let rules = self.rules;
        let node = &mut self.coord.nodes[n];
        node.up = true;
        node.boot += 1;
        node.clock = NodeClock::new(rules);
        node.stale = true;
        self.node_back(n);
    }
}
