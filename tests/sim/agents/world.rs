//! One run: the queue of events, the log, and who gets what.

use regent_core::authz::Principal;
use regent_core::command::{Command, Entry as Encoded, Lapsed};
use regent_core::id::Incarnation;
use regent_core::lease::Rules;
use regent_core::time::WallMs;
use regent_core::timing::Timing;

use super::check::Check;
use super::client::Client;
use super::log::{Entry, Log, Tag};
use super::machine::{MS, Machine, SECOND, Time};
use super::node::Node;
use super::queue::{Event, Queue, ToClient, ToNode};
use super::random::Random;
use super::resource::Resources;
use super::{Class, Mutant, Options, Outcome};

/// Everything there is in a run.
pub struct World {
    pub now: Time,
    end: Time,
    pub class: Class,
    pub mutant: Option<Mutant>,
    prints: bool,
    pub rules: Rules,
    pub queue: Queue,
    pub random: Random,
    pub log: Log,
    pub nodes: Vec<Node>,
    pub clients: Vec<Client>,
    pub check: Check,
    pub resources: Resources,
    /// Since when nobody can commit, and how long that is borne.
    leaderless: Option<(Time, Time)>,
    hash: u64,
}

impl World {
    pub fn new(seed: u64, options: &Options) -> Self {
        let rho_ppm = if options.mutant == Some(Mutant::NoRho) { 0 } else { Rules::LAW.rho_ppm };
        let pause_margin_ms = match options.mutant {
            Some(Mutant::NoPauseMargin) => 0,
            _ => Rules::LAW.pause_margin_ms,
        };
        let mut world = Self {
            now: 0,
            end: options.duration_ms * MS,
            class: options.class,
            mutant: options.mutant,
            prints: options.trace,
            rules: Rules { rho_ppm, pause_margin_ms },
            queue: Queue::default(),
            random: Random::new(seed),
            log: Log::new(),
            nodes: Vec::new(),
            clients: Vec::new(),
            check: Check::new(options.class),
            resources: Resources::new(seed),
            leaderless: None,
            hash: seed,
        };
        for _ in 0..options.nodes.max(1) {
            let machine = Machine::new(options.class, &mut world.random);
            let node = Node::new(machine, &world);
            world.nodes.push(node);
        }
        for _ in 0..options.clients.max(1) {
            let machine = Machine::new(options.class, &mut world.random);
            let node = world.random.index(world.nodes.len());
            world.clients.push(Client::new(machine, node));
        }
        world.begin_cluster();
        world
    }

    fn begin_cluster(&mut self) {
        self.append(Entry { bytes: Vec::new(), tag: Tag::None, by: (0, 0) });
        let command = Command::Bootstrap {
            incarnation: Incarnation { counter: 1, id: 1 },
            cluster: "sim".into(),
            timing: Timing::LAN,
        };
        let bytes = Encoded::new(WallMs(0), Principal::cluster(), None, &command).encode();
        self.append(Entry { bytes, tag: Tag::None, by: (0, 0) });
        let message = ToNode::Leads { term: 1, leader: 0, opened: 1 };
        for n in 0..self.nodes.len() {
            self.queue.push(1, Event::Node { to: n, from: None, message: message.clone() });
            self.queue.push(MS * (n as u64 + 1), Event::Tick { node: n });
            self.queue.push(SECOND * (n as u64 + 1), Event::Compare { node: n });
        }
        for c in 0..self.clients.len() {
            self.queue.push(SECOND, Event::Wake { client: c, generation: 0 });
        }
        self.queue.push(SECOND, Event::Supervise);
        self.queue.push(2 * SECOND, Event::Look);
        self.queue.push(10 * SECOND, Event::Fault);
    }

    pub fn run(mut self) -> Outcome {
        while let Some((at, event)) = self.queue.pop() {
            if at > self.end {
                break;
            }
            self.now = at;
            self.check.now = at;
            self.check.stats.events += 1;
            self.handle(event);
        }
        if let Err(broken) = self.check.state.check() {
            self.check.broken(format!("the state's own check: {broken:?}"));
        }
        Outcome {
            trace_hash: self.hash,
            sim_ms: self.now / MS,
            class: self.class,
            violations: self.check.violations,
            stats: self.check.stats,
        }
    }

    /// Mixes what happened into the trace hash.
    pub fn trace(&mut self, words: &[u64]) {
        for word in [self.now].iter().chain(words) {
            self.hash = (self.hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        }
    }

    /// Whether the machine that `event` needs is asleep: then the event waits, as in a socket's
    /// buffer or a timer that fires late.
    fn sleeps_until(&self, event: &Event) -> Option<Time> {
        let machine = match event {
            Event::Node { to: n, .. }
            | Event::Apply { node: n, .. }
            | Event::Flush { node: n, .. }
            | Event::Propose { node: n, .. }
            | Event::Tick { node: n }
            | Event::Compare { node: n } => &self.nodes[*n].machine,
            Event::Client { to: c, .. } | Event::Wake { client: c, .. } => {
                &self.clients[*c].machine
            }
            _ => return None,
        };
        (!machine.runs(self.now)).then_some(machine.asleep_until)
    }

    fn handle(&mut self, event: Event) {
        if let Some(until) = self.sleeps_until(&event) {
            self.queue.push(until, event);
            return;
        }
        if self.prints {
            println!("{:>12} {event:?}", self.now);
        }
        match event {
            Event::Node { to, from, message } => {
                let cut = from
                    .is_some_and(|from| from != to && (self.nodes[from].cut || self.nodes[to].cut));
                if self.nodes[to].up && !cut {
                    self.node_event(to, message);
                }
            }
            Event::Client { to, message } => {
                if !self.clients[to].deaf {
                    self.client_event(to, message);
                }
            }
            Event::Apply { node, upto } => {
                if self.nodes[node].up && !self.nodes[node].cut {
                    self.apply(node, upto);
                }
            }
            Event::Commit { term } => {
                if term == self.log.term && self.can_commit(self.log.leader) {
                    self.commit_all();
                }
            }
            Event::Flush { node, boot } => {
                if self.nodes[node].up && self.nodes[node].boot == boot {
                    self.flush(node);
                }
            }
            Event::Propose { node, boot } => {
                if self.nodes[node].up && self.nodes[node].boot == boot {
                    self.propose_renewals(node);
                }
            }
            Event::Tick { node } => {
                if self.nodes[node].up {
                    self.tick(node);
                }
                let again = self.now + self.random.about(250 * MS);
                self.queue.push(again, Event::Tick { node });
            }
            Event::Compare { node } => self.compare(node),
            Event::Wake { client, generation } => {
                if self.is_current_wake(client, generation) {
                    self.wake(client);
                }
            }
            Event::Supervise => self.supervise(),
            Event::Look => {
                let n = self.random.index(self.nodes.len());
                if self.nodes[n].up && self.nodes[n].machine.runs(self.now) {
                    self.look(n);
                }
                let again = self.now + self.random.about(SECOND);
                self.queue.push(again, Event::Look);
            }
            Event::Fault => self.fault(),
            Event::Pause { client } => {
                let class = self.class;
                self.clients[client].machine.pause(self.now, class, &mut self.random);
            }
            Event::Restart { node } => self.restart(node),
            Event::Reconnect { node } => self.reconnect(node),
            Event::Hear { client } => self.clients[client].deaf = false,
            Event::Write { election, epoch } => self.write_arrives(&election, epoch),
        }
    }

    /// Commits everything in flight.
    fn commit_all(&mut self) {
        for entry in std::mem::take(&mut self.log.flying) {
            self.append(entry);
        }
    }

    /// Commits one entry, lets the judge see it, and tells the nodes that there is something.
    fn append(&mut self, mut entry: Entry) {
        if self.mutant == Some(Mutant::ExpireFromOldState) {
            self.force_expiry(&mut entry);
        }
        let call = match entry.tag {
            Tag::Call(_, call) => Some(call),
            _ => None,
        };
        let bytes = std::mem::take(&mut entry.bytes);
        let index = self.log.last() + 1;
        let ended = self.check.committed(index, &bytes, call);
        entry.bytes = bytes;
        self.log.append(entry);
        self.trace(&[1, index, ended.len() as u64]);
        for (session, why) in ended {
            let acting = self.clients.iter().position(|client| {
                client.open.as_ref().is_some_and(|open| open.session == session)
                    && !client.acts(self.now, self.mutant).is_empty()
            });
            if let Some(client) = acting {
                self.check.took_from(client, session, why);
            }
        }
        for n in 0..self.nodes.len() {
            if !self.nodes[n].cut {
                let slow = self.random.chance(10);
                let most = if slow { 5 * SECOND } else { 15 * MS };
                let at = self.now + self.random.between(MS / 10, most);
                self.queue.push(at, Event::Apply { node: n, upto: index });
            }
        }
    }

    fn force_expiry(&self, entry: &mut Entry) {
        let Ok(encoded) = Encoded::decode(&entry.bytes) else { return };
        let Ok(Command::ExpireSessions { lapsed }) = encoded.command() else { return };
        let sessions = self.check.state.sessions();
        let lapsed = lapsed
            .iter()
            .filter_map(|one| {
                let seen = sessions.get(&one.session)?.renewed;
                Some(Lapsed { session: one.session, seen })
            })
            .collect();
        let command = Command::ExpireSessions { lapsed };
        entry.bytes = Encoded::new(encoded.at, encoded.by, None, &command).encode();
    }

    /// Looks after the leadership, as election timeouts would.
    fn supervise(&mut self) {
        self.queue.push(self.now + 200 * MS, Event::Supervise);
        if self.can_commit(self.log.leader) {
            self.leaderless = None;
            self.commit_all();
            return;
        }
        let patience = self.random.between(300 * MS, 1_500 * MS);
        let (since, patience) = *self.leaderless.get_or_insert((self.now, patience));
        if self.now >= since + patience {
            self.elect();
        }
    }

    /// A majority elects somebody else. Of what was in flight, a prefix had reached it.
    pub fn elect(&mut self) {
        let able: Vec<_> = (0..self.nodes.len()).filter(|n| self.available(*n)).collect();
        if 2 * able.len() <= self.nodes.len() {
            return;
        }
        self.leaderless = None;
        let leader = able[self.random.index(able.len())];
        let mut flying = std::mem::take(&mut self.log.flying);
        let survive = self.random.index(flying.len() + 1);
        flying.truncate(survive);
        self.log.term += 1;
        self.log.leader = leader;
        for entry in flying {
            self.append(entry);
        }
        let boot = self.nodes[leader].boot;
        self.append(Entry { bytes: Vec::new(), tag: Tag::None, by: (leader, boot) });
        self.check.stats.leaders += 1;
        self.trace(&[2, self.log.term, leader as u64]);
        self.log.opened = self.log.last();
        let message = self.leads();
        for n in 0..self.nodes.len() {
            self.send_node(leader, n, message.clone());
        }
    }

    /// Who leads, as it is told.
    pub fn leads(&self) -> ToNode {
        ToNode::Leads { term: self.log.term, leader: self.log.leader, opened: self.log.opened }
    }

    /// From node to node.
    pub fn send_node(&mut self, from: usize, to: usize, message: ToNode) {
        if from == to {
            self.queue.push(self.now, Event::Node { to, from: None, message });
            return;
        }
        if self.nodes[from].cut || self.nodes[to].cut || self.random.chance(5) {
            return;
        }
        let at = self.now + self.delay(5 * MS);
        if self.random.chance(10) {
            let again = self.now + self.delay(5 * MS);
            let message = message.clone();
            self.queue.push(again, Event::Node { to, from: Some(from), message });
        }
        self.queue.push(at, Event::Node { to, from: Some(from), message });
    }

    /// From a client to a node. Its requests get out even while it is deaf.
    pub fn send_from(&mut self, c: usize, to: usize, message: ToNode) {
        self.trace(&[3, c as u64, to as u64]);
        if self.random.chance(10) {
            return;
        }
        if self.random.chance(10) {
            let again = self.now + self.delay(10 * MS);
            let message = message.clone();
            self.queue.push(again, Event::Node { to, from: None, message });
        }
        let at = self.now + self.delay(10 * MS);
        self.queue.push(at, Event::Node { to, from: None, message });
    }

    /// From a node to a client.
    pub fn send_client(&mut self, to: usize, message: ToClient) {
        if self.random.chance(10) {
            return;
        }
        let at = self.now + self.delay(10 * MS);
        if self.random.chance(10) {
            let again = self.now + self.delay(10 * MS);
            self.queue.push(again, Event::Client { to, message: message.clone() });
        }
        self.queue.push(at, Event::Client { to, message });
    }

    /// Mostly short, sometimes long.
    fn delay(&mut self, usual: Time) -> Time {
        let most = if self.random.chance(20) { 2 * SECOND } else { usual };
        self.random.between(MS / 10, most)
    }
}
