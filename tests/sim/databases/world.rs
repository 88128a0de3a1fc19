//! One run: a queue of things that happen, each at a place that may be asleep or gone by then.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use regent_core::id::Epoch;
use regent_core::lease::Rules;
use regent_core::limits::RHO_PPM;

use super::check::Check;
use super::clients::Writer;
use super::coordinators::Coordinators;
use super::host::Host;
use super::net::Net;
use super::pages::Pages;
use super::postgres::Conn;
use super::readers::Reader;
use super::routes::Routers;
use super::{Options, Outcome, faults, plan};
use crate::agents::machine::{MS, Machine, SECOND, Time};
use crate::agents::random::Random;

/// Who read.
const READERS: usize = 2;

/// Something that is done at its time.
pub type Act = Box<dyn FnOnce(&mut World)>;

/// Where something happens: it waits while that is asleep, and does not happen once that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere in particular.
    World,
    /// A coordinator, in this start of it.
    Node(usize, u64),
    /// A host, powered.
    Host(usize),
    /// The fencer of a host.
    Fencer(usize, u64),
    /// This start of an agent.
    Agent(usize, u64),
    /// This run of a server.
    Server(usize, u64),
}

struct Due {
    at: Time,
    order: u64,
    place: Place,
    act: Act,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// What a place says of something that is to happen there.
enum Ready {
    Now,
    At(Time),
    Never,
}

/// Everything there is in a run.
pub struct World {
    pub now: Time,
    /// From here on nothing breaks any more.
    pub calm: Time,
    end: Time,
    pub options: Options,
    pub plan: plan::Plan,
    pub rules: Rules,
    pub random: Random,
    /// Chance of what changes nothing: who asks, who reads.
    pub beside: Random,
    pub net: Net,
    pub coord: Coordinators,
    pub hosts: Vec<Host>,
    pub writers: Vec<Writer>,
    pub readers: Vec<Reader>,
    pub conns: BTreeMap<u64, Conn>,
    pub check: Check,
    pub pages: Pages,
    pub routers: Routers,
    /// Primary and member of its set that are to go when the set without that member is covered, and
    /// until when.
    pub flapping: Option<(usize, usize, Time)>,
    /// The standby that is to be gone as soon as it is granted, and the epoch before that.
    pub heir: Option<(usize, Epoch)>,
    heap: BinaryHeap<Due>,
    orders: u64,
    ids: u64,
    hash: u64,
}

impl World {
    pub fn new(seed: u64, options: &Options) -> Self {
        let mut random = Random::new(seed);
        let plan = plan::Plan::draw(options, &mut random);
        let most = if plan.at_bound { RHO_PPM as i64 } else { 0 };
        let mut machine = |ppm: i64| match ppm {
            0 => Machine::new(options.class, &mut random),
            _ => Machine::at_rate(ppm, &mut random),
        };
        let nodes = (0..3).map(|_| machine(most)).collect();
        let machines: Vec<_> = (0..plan.instances).map(|_| machine(-most)).collect();
        let hosts: Vec<Host> =
            machines.into_iter().enumerate().map(|(i, it)| Host::new(i, it)).collect();
        let calm = options.duration_ms * MS;
        let mut world = Self {
            now: 0,
            calm,
            end: calm + super::LIVENESS_MS * MS,
            options: *options,
            rules: Rules::LAW,
            random,
            // Any other seed than that of the world.
            beside: Random::new(!seed),
            net: Net::default(),
            coord: Coordinators::new(nodes, Rules::LAW),
            hosts,
            writers: (0..plan.writers).map(|_| Writer::default()).collect(),
            readers: (0..READERS).map(|_| Reader::default()).collect(),
            conns: BTreeMap::new(),
            check: Check::new(options.class),
            pages: Pages::default(),
            routers: Routers::new(3, Rules::LAW),
            flapping: None,
            heir: None,
            heap: BinaryHeap::new(),
            orders: 0,
            ids: 1,
            hash: seed,
            plan,
        };
        world.begin_coordinators();
        for i in 0..world.hosts.len() {
            world.born(i);
        }
        for w in 0..world.writers.len() {
            world.later(SECOND, Place::World, move |world| world.write(w));
        }
        for r in 0..READERS {
            world.later(SECOND, Place::World, move |world| world.read(r));
        }
        world.later(SECOND, Place::World, Self::keep_connections);
        world.later(4 * SECOND, Place::World, faults::next);
        world.later(2 * SECOND, Place::World, Self::people);
        world.later(SECOND, Place::World, Self::ask_pages);
        for n in 0..3 {
            world.later(SECOND, Place::World, move |world| world.follow_routes(n));
        }
        world
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Outcome {
        while let Some(due) = self.heap.pop() {
            if due.at > self.end || !self.check.violations.is_empty() {
                break;
            }
            self.now = due.at;
            match self.ready(due.place) {
                Ready::Now => {
                    self.check.stats.events += 1;
                    self.trace(&[due.order]);
                    (due.act)(&mut self);
                }
                Ready::At(at) => self.push(at, due.place, due.act),
                Ready::Never => {}
            }
        }
        self.judge_the_end();
        Outcome {
            hash: self.hash,
            sim_ms: self.now / MS,
            violations: self.check.violations,
            stats: self.check.stats,
        }
    }

    fn ready(&self, place: Place) -> Ready {
        let until = match place {
            Place::World => return Ready::Now,
            Place::Node(n, boot) => {
                let node = &self.coord.nodes[n];
                if node.boot != boot || !node.up {
                    return Ready::Never;
                }
                node.machine.asleep_until
            }
            Place::Host(i) | Place::Fencer(i, _) | Place::Agent(i, _) | Place::Server(i, _) => {
                let host = &self.hosts[i];
                let (is_there, until) = match place {
                    Place::Fencer(_, life) => (host.fencer.life == life && host.fencer.up, 0),
                    Place::Agent(_, life) => {
                        let agent = host.agent.as_ref().filter(|agent| agent.life == life);
                        (agent.is_some(), agent.map_or(0, |agent| agent.frozen_until))
                    }
                    Place::Server(_, run) => {
                        let server = host.server.as_ref().filter(|server| server.run == run);
                        (server.is_some(), server.map_or(0, |server| server.frozen_until))
                    }
                    _ => (true, 0),
                };
                if !host.up || !is_there {
                    return Ready::Never;
                }
                // After a sleep of the host the fencer is the first to look at a clock: it has
                // nothing else to do, and is in memory.
                let late = u64::from(!matches!(place, Place::Fencer(..)));
                match host.machine.asleep_until {
                    asleep if asleep > self.now => asleep.max(until) + late,
                    _ => until,
                }
            }
        };
        if until > self.now { Ready::At(until) } else { Ready::Now }
    }

    /// `act` is done after `wait`, at `place`.
    pub fn later(&mut self, wait: Time, place: Place, act: impl FnOnce(&mut Self) + 'static) {
        self.push(self.now + wait, place, Box::new(act));
    }

    fn push(&mut self, at: Time, place: Place, act: Act) {
        self.orders += 1;
        self.heap.push(Due { at, order: self.orders, place, act });
    }

    /// The run ends here.
    pub fn finish(&mut self) {
        self.end = self.now;
    }

    /// A number that nothing else in the run has.
    pub fn fresh(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// Mixes what happened into the trace hash.
    pub fn trace(&mut self, words: &[u64]) {
        for word in [self.now].iter().chain(words) {
            self.hash = (self.hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        }
    }

    /// Says what happens, if somebody reads it.
    pub fn say(&self, text: impl FnOnce() -> String) {
        if self.options.trace {
            println!("{:>4}.{:06} {}", self.now / SECOND, self.now % SECOND, text());
        }
    }
}
