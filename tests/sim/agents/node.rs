//! A coordinator: collects renewals, forwards, applies, keeps its lease clocks, and as the leader
//! merges, proposes and decides.

use std::collections::BTreeMap;

use regent_core::authz::{Principal, Role};
use regent_core::command::{Command, Entry as Encoded, Request};
use regent_core::decide::Expiry;
use regent_core::decide::expiry::View;
use regent_core::id::{ClientId, NodeId, Nonce, Revision, Serial};
use regent_core::lease::gate::{Verdict, too_old};
use regent_core::lease::holder::Answer;
use regent_core::lease::skew::{Exchange, SkewVerdict};
use regent_core::lease::{Gate, NodeClock, Skew};
use regent_core::reply::{RenewalOutcome, Reply};
use regent_core::state::State;
use regent_core::time::{Reading, WallMs};

use super::Mutant;
use super::log::{Entry, Tag};
use super::machine::{MS, Machine, SECOND};
use super::queue::{Answered, CallId, Event, Flight, ToClient, ToNode};
use super::world::World;

/// Renewals are collected, and merged, for this long.
const COMMIT_TICK: u64 = 20 * MS;
/// Entries between two snapshots on a node's disk.
const SNAPSHOT_EVERY: u64 = 300;

/// Who leads, as far as a node knows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lead {
    pub term: u64,
    pub leader: usize,
    /// Index of the term's first entry.
    pub opened: u64,
}

/// One coordinator.
pub struct Node {
    pub machine: Machine,
    pub up: bool,
    /// Which start of it.
    pub boot: u64,
    /// Not connected to the other nodes.
    pub cut: bool,
    pub state: State,
    pub clock: NodeClock,
    expiry: Expiry,
    skew: Skew,
    pub lead: Lead,
    gates: BTreeMap<(usize, u64), Gate>,
    collected: Vec<(Flight, Reading)>,
    merged: Vec<(usize, Flight, Reading)>,
    /// What a restart finds.
    pub disk: State,
}

impl Node {
    pub fn new(machine: Machine, world: &World) -> Self {
        Self {
            machine,
            up: true,
            boot: 0,
            cut: false,
            state: State::default(),
            clock: NodeClock::new(world.rules),
            expiry: Expiry::new(),
            skew: Skew::new(),
            lead: Lead::default(),
            gates: BTreeMap::new(),
            collected: Vec::new(),
            merged: Vec::new(),
            disk: State::default(),
        }
    }
}

impl World {
    /// Whether a node can take part in a majority now.
    pub fn available(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        node.up && !node.cut && node.machine.runs(self.now)
    }

    /// Whether what `leader` proposes can be committed now.
    pub fn can_commit(&self, leader: usize) -> bool {
        let available = (0..self.nodes.len()).filter(|node| self.available(*node)).count();
        self.available(leader) && 2 * available > self.nodes.len()
    }

    pub fn node_event(&mut self, n: usize, message: ToNode) {
        let now = self.nodes[n].machine.read(self.now);
        match message {
            ToNode::Renew(flight) => {
                let node = &mut self.nodes[n];
                node.collected.push((flight, now));
                if node.collected.len() == 1 {
                    let boot = node.boot;
                    self.queue.push(self.now + COMMIT_TICK, Event::Flush { node: n, boot });
                }
            }
            ToNode::Command { call, command } => self.forward(n, call, &command),
            ToNode::LeaderRenew { from, flights } => self.merge(n, from, flights),
            ToNode::LeaderCommand { from, call, entry } => {
                self.propose(n, entry, Tag::Call(from, call));
            }
            ToNode::ReadIndex { from, sent } => self.answer_read_index(n, from, sent),
            ToNode::ReadIndexAnswer { sent, answer } => {
                self.nodes[n].clock.read_index_answered(sent, answer);
            }
            ToNode::Renewed { answers } => {
                for answered in answers {
                    if let Some(gate) =
                        self.nodes[n].gates.get_mut(&(answered.client, answered.stream))
                    {
                        match answered.answer {
                            Answer::Outcome(RenewalOutcome::Extended { number, .. }) => {
                                gate.ack_sent(number, now);
                            }
                            _ => gate.resend_sent(now),
                        }
                    }
                    self.send_client(answered.client, ToClient::Answer(answered));
                }
            }
            ToNode::Done { call, reply } => {
                self.send_client(call.client, ToClient::Reply { call, reply });
            }
            ToNode::Leads { term, leader, opened } => {
                let node = &mut self.nodes[n];
                if term > node.lead.term {
                    node.lead = Lead { term, leader, opened };
                    node.merged.clear();
                    if leader == n {
                        self.tick(n);
                    }
                }
            }
        }
    }

    fn forward(&mut self, n: usize, call: CallId, command: &Command) {
        let by = Principal::new(Role::Client, format!("c{}", call.client));
        let request =
            Request { client: ClientId(call.client as u64 + 1), serial: Serial(call.serial) };
        let request = (self.mutant != Some(Mutant::NoDeduplication)).then_some(request);
        let entry = Encoded::new(WallMs(self.now / MS), by, request, command).encode();
        let leader = self.nodes[n].lead.leader;
        self.send_node(n, leader, ToNode::LeaderCommand { from: n, call, entry });
    }

    /// A commit tick on the node that has the clients' streams: C5, then on to the leader.
    pub fn flush(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let now = node.machine.read(self.now);
        let mut flights = Vec::new();
        let mut answers = Vec::new();
        for (flight, received) in std::mem::take(&mut node.collected) {
            let Flight { renewal, client, stream } = flight;
            let verdict = match node.state.sessions().get(&renewal.session) {
                Some(row) => {
                    if !node.gates.contains_key(&(client, stream)) {
                        // A new stream ends the client's old ones.
                        node.gates.retain(|(other, _), _| *other != client);
                    }
                    let gate = node
                        .gates
                        .entry((client, stream))
                        .or_insert_with(|| Gate::new(row.ttl_ms, row.renew_interval_ms));
                    let verdict = gate.judge(renewal.acked, received, now);
                    if verdict != Verdict::Pass {
                        gate.resend_sent(now);
                    }
                    verdict
                }
                None => Verdict::Pass,
            };
            if verdict == Verdict::Pass {
                flights.push(flight);
            } else {
                answers.push(answered(&flight, Answer::Resend));
            }
        }
        self.check.stats.resends += answers.len() as u64;
        for answered in answers {
            self.send_client(answered.client, ToClient::Answer(answered));
        }
        if !flights.is_empty() {
            let leader = self.nodes[n].lead.leader;
            self.send_node(n, leader, ToNode::LeaderRenew { from: n, flights });
        }
    }

    fn merge(&mut self, n: usize, from: usize, flights: Vec<Flight>) {
        let node = &mut self.nodes[n];
        if node.lead.leader != n || node.lead.term == 0 {
            return;
        }
        let now = node.machine.read(self.now);
        if node.merged.is_empty() {
            let boot = node.boot;
            self.queue.push(self.now + COMMIT_TICK, Event::Propose { node: n, boot });
        }
        node.merged.extend(flights.into_iter().map(|flight| (from, flight, now)));
    }

    /// A commit tick of the leader: one entry for all renewals.
    pub fn propose_renewals(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let now = node.machine.read(self.now);
        let (mut kept, mut early, mut late) = (Vec::new(), Vec::new(), Vec::new());
        for (from, flight, received) in std::mem::take(&mut node.merged) {
            let row = node.state.sessions().get(&flight.renewal.session);
            if row.is_some_and(|row| too_old(received, now, row.ttl_ms)) {
                late.push((from, answered(&flight, Answer::Resend)));
                continue;
            }
            if let (Some(Mutant::AnswerBeforeCommit), Some(row)) = (self.mutant, row) {
                let grant = row.grant;
                let outcome = RenewalOutcome::Extended { number: flight.renewal.number, grant };
                early.push((from, answered(&flight, Answer::Outcome(outcome))));
            }
            kept.push((from, flight));
        }
        for (from, answered) in early.into_iter().chain(late) {
            self.send_node(n, from, ToNode::Renewed { answers: vec![answered] });
        }
        if kept.is_empty() {
            return;
        }
        let renewals = kept.iter().map(|(_, flight)| flight.renewal).collect();
        self.propose_own(n, &Command::RenewSessions { renewals }, Tag::Renewals(kept));
    }

    fn propose_own(&mut self, n: usize, command: &Command, tag: Tag) {
        let by = Principal::cluster();
        let entry = Encoded::new(WallMs(self.now / MS), by, None, command).encode();
        self.propose(n, entry, tag);
    }

    /// A node that believes it leads proposes. If it does not lead any more, or cannot reach a
    /// majority, nothing comes of it, and nobody tells.
    fn propose(&mut self, n: usize, bytes: Vec<u8>, tag: Tag) {
        let node = &self.nodes[n];
        let believes = node.lead.leader == n && node.lead.term > 0;
        if !believes || self.log.leader != n || self.log.term != node.lead.term {
            return;
        }
        if !self.can_commit(n) {
            return;
        }
        self.log.flying.push_back(Entry { bytes, tag, by: (n, node.boot) });
        let delay = self.random.between(MS, 12 * MS);
        self.queue.push(self.now + delay, Event::Commit { term: self.log.term });
    }

    fn answer_read_index(&mut self, n: usize, from: usize, sent: Reading) {
        let node = &self.nodes[n];
        if node.lead.leader != n || node.state.revision().0 < node.lead.opened {
            return;
        }
        let proven = self.log.leader == n && self.log.term == node.lead.term && self.can_commit(n);
        let answer = if proven {
            Revision(self.log.last())
        } else if self.mutant == Some(Mutant::ReadIndexWithoutQuorum) {
            node.state.revision()
        } else {
            return;
        };
        self.send_node(n, from, ToNode::ReadIndexAnswer { sent, answer });
    }

    /// A node applies what is committed, up to `upto`.
    pub fn apply(&mut self, n: usize, upto: u64) {
        while self.nodes[n].state.revision().0 < upto {
            let index = self.nodes[n].state.revision().0 + 1;
            let Some(entry) = self.log.get(index) else {
                self.install_snapshot(n);
                return;
            };
            let node = &mut self.nodes[n];
            let applied = if entry.bytes.is_empty() {
                node.state.apply_blank(Revision(index))
            } else {
                node.state.apply(Revision(index), &entry.bytes)
            };
            let now = node.machine.read(self.now);
            let sessions = node.state.sessions();
            if self.mutant == Some(Mutant::BelieveAtApply) && !applied.clocks.is_empty() {
                node.clock.read_index_answered(now, Revision(index - 1));
            }
            let eager = self.mutant == Some(Mutant::EagerExpiry);
            node.clock.apply(applied.revision, &applied.clocks, now, |id| {
                sessions.get(&id).map(|row| if eager { row.ttl_ms / 2 } else { row.ttl_ms })
            });
            node.expiry.observe(&applied, now);
            if index.is_multiple_of(SNAPSHOT_EVERY) {
                node.disk = node.state.clone();
            }
            let mine = entry.by == (n, node.boot);
            let tag = if mine { entry.tag.clone() } else { Tag::None };
            let hash = node.state.rolling_hash();
            self.check.same_hash(n, index, hash);
            self.trace(&[4, n as u64, index, u64::from_le_bytes(hash[..8].try_into().expect("8"))]);
            self.respond(n, tag, applied.reply);
        }
    }

    fn respond(&mut self, n: usize, tag: Tag, reply: Reply) {
        match (tag, reply) {
            (Tag::Renewals(flights), Reply::Renewed { outcomes, .. }) => {
                let mut by_origin: BTreeMap<usize, Vec<Answered>> = BTreeMap::new();
                for ((from, flight), outcome) in flights.into_iter().zip(outcomes) {
                    let answer = answered(&flight, Answer::Outcome(outcome));
                    by_origin.entry(from).or_default().push(answer);
                }
                if self.mutant == Some(Mutant::AnswerBeforeCommit) {
                    return;
                }
                for (from, answers) in by_origin {
                    self.send_node(n, from, ToNode::Renewed { answers });
                }
            }
            (Tag::Call(from, call), reply) => {
                self.send_node(n, from, ToNode::Done { call, reply: Box::new(reply) });
            }
            _ => {}
        }
    }

    /// Too far behind for entries.
    fn install_snapshot(&mut self, n: usize) {
        let bytes = self.check.state.encode_snapshot();
        match State::decode_snapshot(&bytes) {
            Ok(state) => self.start_from(n, state),
            Err(error) => self.check.broken(format!("a snapshot cannot be read back: {error}")),
        }
    }

    /// A node's state is replaced: its clocks start anew (C2, C3).
    pub fn start_from(&mut self, n: usize, state: State) {
        let node = &mut self.nodes[n];
        let now = if self.mutant == Some(Mutant::TimersNotRestarted) {
            Reading::default()
        } else {
            node.machine.read(self.now)
        };
        let sessions: Vec<_> = state.sessions().iter().map(|(id, row)| (*id, row.ttl_ms)).collect();
        node.clock.reset(state.revision(), sessions, now);
        node.disk = state.clone();
        node.state = state;
        self.check.stats.restarts += 1;
    }

    /// A node starts again, with nothing but its disk.
    pub fn restart(&mut self, n: usize) {
        let rules = self.rules;
        let node = &mut self.nodes[n];
        node.up = true;
        node.boot += 1;
        node.clock = NodeClock::new(rules);
        node.expiry = Expiry::new();
        node.skew = Skew::new();
        node.lead = Lead::default();
        node.gates.clear();
        node.collected.clear();
        node.merged.clear();
        let state = node.disk.clone();
        self.start_from(n, state);
        self.catch_up(n);
    }

    /// A node hears from the leader again.
    pub fn catch_up(&mut self, n: usize) {
        let at = self.now + self.random.between(MS, 500 * MS);
        self.queue.push(at, Event::Apply { node: n, upto: self.log.last() });
        let message = self.leads();
        let from = Some(self.log.leader);
        self.queue.push(at, Event::Node { to: n, from, message });
    }

    /// A node's duties.
    pub fn tick(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let now = node.machine.read(self.now);
        let leads = node.lead.leader == n && node.lead.term > 0;
        let opened = node.state.revision().0 >= node.lead.opened
            || self.mutant == Some(Mutant::ExpireFromOldState);
        let skew = node.skew.verdict();
        let term = (leads && opened).then_some(node.lead.term);
        let view = View { state: &node.state, term, skew, now };
        let decision = node.expiry.decide(&view, &mut node.clock);
        self.check.stats.abstained += u64::from(leads && skew != SkewVerdict::Agrees);
        for command in &decision.commands {
            self.propose_own(n, command, Tag::None);
        }
        let due = self.nodes[n].clock.next_read_index_due();
        if due.is_some_and(|due| due.since(now).0 == 0) {
            let leader = self.nodes[n].lead.leader;
            self.send_node(n, leader, ToNode::ReadIndex { from: n, sent: now });
        }
    }

    /// Exchanges clock readings with the others (C9).
    pub fn compare(&mut self, n: usize) {
        let others: Vec<_> = (0..self.nodes.len()).filter(|other| *other != n).collect();
        let ids = others.iter().map(|other| NodeId(*other as u64 + 1));
        self.nodes[n].skew.set_peers(ids);
        for other in others {
            if !self.available(n) || !self.available(other) {
                continue;
            }
            let way = self.random.between(MS / 10, 10 * MS);
            let peer = &self.nodes[other];
            let exchange = Exchange {
                sent: self.nodes[n].machine.read(self.now),
                received: self.nodes[n].machine.read(self.now + 2 * way),
                peer: peer.machine.read(self.now + way),
                nonce: Nonce(peer.boot),
            };
            self.nodes[n].skew.exchanged(NodeId(other as u64 + 1), exchange);
        }
        let again = self.now + self.random.about(2 * SECOND);
        self.queue.push(again, Event::Compare { node: n });
    }

    /// Somebody asks this node who leads each election.
    pub fn look(&mut self, n: usize) {
        let always = self.mutant == Some(Mutant::BelieveForever);
        let node = &self.nodes[n];
        let now = node.machine.read(self.now);
        let named: Vec<_> = node
            .state
            .elections()
            .iter()
            .filter_map(|(name, row)| Some((name.clone(), row.holder.as_ref()?.session)))
            .filter(|(_, session)| always || node.clock.believed_live(*session, now))
            .collect();
        for (name, session) in named {
            self.check.names(n, &name, session);
        }
    }
}

fn answered(flight: &Flight, answer: Answer) -> Answered {
    Answered {
        session: flight.renewal.session,
        number: flight.renewal.number,
        answer,
        client: flight.client,
        stream: flight.stream,
    }
}
