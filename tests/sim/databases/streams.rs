//! The streams of agents to nodes, as `src/node/agents/stream.rs` serves them: asks go into the log
//! one after the other, observations to the leader, and an accepted start is told its instruction
//! whenever that changes.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use regent_core::authz::{Principal, Role};
use regent_core::command::Command;
use regent_core::decide::roles::expected;
use regent_core::id::{Epoch, InstanceName, Nonce, Revision, SessionId};
use regent_core::reply::{Rejection, Reply};
use regent_core::role::observe::Observation;
use regent_core::role::{AgentStart, Directive, Lsn, Proof, Receipt, StopInstant, SyncSet};
use regent_core::spec::ServiceSpec;
use regent_core::state::role::plan::is_prepared;
use regent_core::state::version::REPORTS_LEVEL;
use regent_core::time::Micros;

use super::net::End;
use super::plan::{instance_name, service_name};
use super::world::{Place, World};
use crate::agents::machine::{MS, Time};

/// What an agent asks to have committed.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    Start(Box<AgentStart>),
    Receipt(Box<Receipt>, Option<StopInstant>),
    Covered { epoch: Epoch, set: Revision },
    Promoted { epoch: Epoch, timeline: u32, switch: Lsn },
}

/// What became of it.
#[derive(Clone, Debug)]
pub enum Outcome {
    Accepted { boot: u64, mark: Revision },
    Committed { receipt: Option<(Revision, Proof)> },
    Refused { quarantined: bool, transient: bool },
}

/// Its row, and what an agent needs to obey it.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    pub directive: Directive,
    pub epoch: Epoch,
    pub set: Option<SyncSet>,
    pub covered: bool,
    pub mark: Revision,
    pub promoted: bool,
    pub unrouted: bool,
    pub timeline: u32,
    pub spec: ServiceSpec,
    /// Revision of the declaration.
    pub policy: Revision,
    pub paused: Option<Revision>,
    /// The switchover that is announced to its primary.
    pub prepare: Option<Revision>,
    /// It is likely to be the next primary.
    pub expected: bool,
    pub upstream: Option<InstanceName>,
}

/// What a node says.
#[derive(Clone, Debug)]
pub enum FromNode {
    /// To the ask with this number; 0 is the hello.
    Answer(u64, Outcome),
    Instruction(Rc<Instruction>),
}

struct Accepted {
    session: SessionId,
    nonce: Nonce,
    since: Revision,
}

struct Stream {
    instance: usize,
    life: u64,
    node: usize,
    accepted: Option<Accepted>,
    told: Option<Rc<Instruction>>,
    asks: VecDeque<(u64, Ask)>,
    under_way: bool,
    /// What is sent arrives in the order in which it was sent.
    up: Time,
    down: Time,
}

/// All of them.
#[derive(Default)]
pub struct Streams {
    open: BTreeMap<u64, Stream>,
    /// Which stream said the newest of each instance.
    sources: BTreeMap<usize, u64>,
}

impl World {
    /// An agent opens a stream with its hello; returns its number.
    pub fn connect(&mut self, i: usize, life: u64, node: usize, start: AgentStart) -> u64 {
        let id = self.fresh();
        let stream = Stream {
            instance: i,
            life,
            node,
            accepted: None,
            told: None,
            asks: VecDeque::new(),
            under_way: false,
            up: self.now,
            down: self.now,
        };
        self.coord.streams.open.insert(id, stream);
        self.ask(id, 0, Ask::Start(Box::new(start)));
        id
    }

    /// An ask on its way up.
    pub fn ask(&mut self, id: u64, number: u64, ask: Ask) {
        self.up(id, move |world| {
            let Some(stream) = world.coord.streams.open.get_mut(&id) else { return };
            stream.asks.push_back((number, ask));
            world.serve_ask(id);
        });
    }

    /// An observation on its way up, and on to the leader.
    pub fn observe(&mut self, id: u64, seen: Observation) {
        self.up(id, move |world| {
            let Some(stream) = world.coord.streams.open.get(&id) else { return };
            let (i, node) = (stream.instance, stream.node);
            let leader = world.coord.leader;
            if stream.accepted.is_none() || !world.net.joins(End::Node(node), End::Node(leader)) {
                return;
            }
            let now = world.coord.nodes[leader].machine.read(world.now);
            let (service, name) = (service_name(), world.name_of(i));
            world.coord.facts.observed(&service, &name, seen, Micros(0), now);
            world.coord.streams.sources.insert(world.hosts[i].name, id);
        });
    }

    fn up(&mut self, id: u64, act: impl FnOnce(&mut Self) + 'static) {
        let delay = self.delay();
        let Some(stream) = self.coord.streams.open.get_mut(&id) else { return };
        stream.up = stream.up.max(self.now + delay);
        let (i, node, wait) = (stream.instance, stream.node, stream.up - self.now);
        let place = Place::Node(node, self.coord.nodes[node].boot);
        self.later(wait, place, move |world| {
            if world.net.passes(End::Instance(i), End::Node(node)) {
                act(world);
            } else {
                world.break_stream(id);
            }
        });
    }

    fn down(&mut self, id: u64, message: FromNode) {
        let delay = self.delay();
        let Some(stream) = self.coord.streams.open.get_mut(&id) else { return };
        stream.down = stream.down.max(self.now + delay);
        let (i, node, life) = (stream.instance, stream.node, stream.life);
        let wait = stream.down - self.now;
        self.later(wait, Place::Agent(i, life), move |world| {
            if world.net.passes(End::Node(node), End::Instance(i)) {
                world.hears(i, id, message);
            } else {
                world.break_stream(id);
            }
        });
    }

    /// A stream is broken: both ends notice in their own time.
    pub fn break_stream(&mut self, id: u64) {
        let Some(stream) = self.coord.streams.open.get(&id) else { return };
        let (i, life) = (stream.instance, stream.life);
        let (one, other) = (self.random.between(MS, 900 * MS), self.random.between(MS, 900 * MS));
        self.later(one, Place::World, move |world| world.end_stream(id));
        self.later(other, Place::Agent(i, life), move |world| world.detached(i, id));
    }

    /// The node's end of a stream is gone: the leader hears of it.
    pub fn end_stream(&mut self, id: u64) {
        let Some(stream) = self.coord.streams.open.remove(&id) else { return };
        let leader = self.coord.leader;
        let name = self.hosts[stream.instance].name;
        let newest = self.coord.streams.sources.get(&name) == Some(&id);
        if newest && self.net.joins(End::Node(stream.node), End::Node(leader)) {
            let now = self.coord.nodes[leader].machine.read(self.now);
            let name = self.name_of(stream.instance);
            self.coord.facts.lost(&service_name(), &name, now);
        }
    }

    /// The streams of an instance's agent, or of a node.
    pub fn streams_of(&self, end: End) -> Vec<u64> {
        let of = |stream: &Stream| match end {
            End::Instance(i) => stream.instance == i,
            End::Node(n) => stream.node == n,
        };
        self.coord.streams.open.iter().filter(|(_, it)| of(it)).map(|(id, _)| *id).collect()
    }

    fn serve_ask(&mut self, id: u64) {
        let Some(stream) = self.coord.streams.open.get_mut(&id).filter(|it| !it.under_way) else {
            return;
        };
        let Some((number, ask)) = stream.asks.pop_front() else { return };
        let (i, node) = (stream.instance, stream.node);
        let (service, instance) = (service_name(), instance_name(self.hosts[i].name));
        let by = Principal::new(Role::Agent, format!("s/{instance}"));
        let command = match ask.clone() {
            Ask::Start(start) => Command::AcceptStart { service, instance, start },
            _ if stream.accepted.is_none() => {
                let refused = Outcome::Refused { quarantined: false, transient: false };
                return self.down(id, FromNode::Answer(number, refused));
            }
            Ask::Receipt(receipt, stopped) => {
                let level = self.coord.state.cluster().feature_level;
                match stopped.filter(|_| level >= REPORTS_LEVEL) {
                    Some(stopped) => Command::RecordStop { service, receipt, stopped },
                    None => Command::RecordReceipt { service, receipt },
                }
            }
            Ask::Covered { epoch, set } => Command::ConfirmCovered { service, epoch, set },
            Ask::Promoted { epoch, timeline, switch } => {
                Command::RecordPromotion { service, epoch, timeline, switch }
            }
        };
        stream.under_way = true;
        self.propose(
            node,
            by,
            &command,
            Box::new(move |world, reply| {
                let reply = reply.clone();
                let place = Place::Node(node, world.coord.nodes[node].boot);
                let delay = world.random.between(0, 2 * MS);
                world.later(delay, place, move |world| world.asked(id, number, &ask, &reply));
            }),
        );
        // What the log does not answer in time is refused as not known.
        self.later(5_000 * MS, Place::World, move |world| {
            let stuck = world.coord.streams.open.get(&id).is_some_and(|it| it.under_way);
            if stuck {
                world.break_stream(id);
            }
        });
    }

    fn asked(&mut self, id: u64, number: u64, ask: &Ask, reply: &Reply) {
        let Some(stream) = self.coord.streams.open.get_mut(&id) else { return };
        stream.under_way = false;
        let outcome = outcome_of(ask, reply);
        if let (Ask::Start(start), Outcome::Accepted { .. }) = (ask, &outcome) {
            let (session, nonce) = (start.session, start.nonce);
            let since = reply.revision().unwrap_or_default();
            stream.accepted = Some(Accepted { session, nonce, since });
            let i = stream.instance;
            self.twin_is_accepted(i);
        }
        if matches!(outcome, Outcome::Refused { .. }) {
            self.say(|| format!("refused: {ask:?}: {reply:?}"));
        }
        self.down(id, FromNode::Answer(number, outcome));
        self.instruct(id);
        self.serve_ask(id);
    }

    /// A node has new rows.
    pub fn instruct_all(&mut self, node: usize) {
        for id in self.streams_of(End::Node(node)) {
            self.instruct(id);
        }
    }

    fn instruct(&mut self, id: u64) {
        let Some(stream) = self.coord.streams.open.get(&id) else { return };
        let Some(accepted) = &stream.accepted else { return };
        let rows = &self.coord.nodes[stream.node].rows;
        let (Some(service), Some(role)) = (&rows.service, &rows.role) else { return };
        let name = self.name_of(stream.instance);
        let Some(row) = role.instances.get(&name) else { return };
        // Rows of before that start know nothing of it. A start that changed nothing is in all rows.
        let has_it = (row.session, row.nonce) == (accepted.session, accepted.nonce);
        let knows = rows.at >= accepted.since || has_it;
        if !knows {
            return;
        }
        if row.nonce != accepted.nonce {
            return self.break_stream(id);
        }
        let lease = role.lease.as_ref().filter(|lease| lease.session == accepted.session);
        let holds = role.holder.as_ref() == Some(&name);
        let newest = rows.operation.as_ref().filter(|(_, row)| is_prepared(row, role));
        let told = Instruction {
            directive: row.directive.clone(),
            epoch: role.epoch,
            set: role.set.clone(),
            covered: role.is_covered(),
            mark: lease.filter(|_| holds).map_or(Revision(0), |lease| lease.mark),
            promoted: role.promoted.is_some(),
            unrouted: role.promoted.is_some()
                && !role.routes_open
                && role.fence.is_none()
                && newest.is_none(),
            timeline: role.timeline,
            spec: service.spec.clone(),
            policy: service.changed,
            paused: role.pause_to_obey(rows.feature_level),
            prepare: newest.filter(|_| holds).map(|(id, _)| *id),
            expected: expected(&service.spec, role) == Some(&name),
            upstream: role.holder.clone(),
        };
        if stream.told.as_deref() == Some(&told) {
            return;
        }
        let told = Rc::new(told);
        if let Some(stream) = self.coord.streams.open.get_mut(&id) {
            stream.told = Some(Rc::clone(&told));
        }
        self.down(id, FromNode::Instruction(told));
    }
}

fn outcome_of(ask: &Ask, reply: &Reply) -> Outcome {
    match (ask, reply) {
        (_, Reply::StartAccepted { boot, mark, .. }) => {
            Outcome::Accepted { boot: *boot, mark: *mark }
        }
        (_, Reply::StartQuarantined { .. })
        | (_, Reply::Rejected(Rejection::InstanceQuarantined { .. })) => {
            Outcome::Refused { quarantined: true, transient: false }
        }
        (_, Reply::Rejected(_)) => Outcome::Refused { quarantined: false, transient: false },
        (Ask::Receipt(receipt, _), _) => {
            Outcome::Committed { receipt: Some((receipt.fence, receipt.proof)) }
        }
        _ => Outcome::Committed { receipt: None },
    }
}
