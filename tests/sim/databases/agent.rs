//! A simulated agent: `src/agent/run.rs` and `link.rs`, in the same order and by the same rules, over
//! the real notebook, right and `next`. What differs is said where it does.

use std::collections::BTreeMap;
use std::rc::Rc;

use regent_core::agent::notebook::Taken;
use regent_core::agent::{Data, Notebook, OnDisk, Right, Step, may_stay_shut, next};
use regent_core::authz::{Principal, Role};
use regent_core::command::Command;
use regent_core::id::{Epoch, Nonce, RenewalNumber, Revision, SessionId};
use regent_core::lease::HolderClock;
use regent_core::lease::holder::{Answer, HolderSession, Standing, VoidReason};
use regent_core::mutant::{Mutant, leaves_out};
use regent_core::reply::Reply;
use regent_core::role::observe::{Run, Sight};
use regent_core::role::{AgentStart, Armed, DataIdentity, Order, Receipt};
use regent_core::spec::Policy;
use regent_core::time::{Micros, Reading};
use regent_fencer::Arm;

use super::host::{FENCE_BUDGET_MS, News, is_proven};
use super::local::{Local, Seen, Told};
use super::net::End;
use super::plan::{index_of, instance_name, service_name};
use super::postgres::Waiter;
use super::steps::{Change, Job};
use super::streams::{Ask, FromNode, Instruction, Outcome};
use super::wal::Kind;
use super::world::{Place, World};
use crate::agents::machine::{MS, SECOND, Time};

const CLOSE_LEAD: Micros = Micros::from_ms(400);
const TRY_AGAIN: Time = 100 * MS;
const REPORT_EVERY: Time = 200 * MS;
const ASK_AGAIN: Time = 2 * SECOND;
const HELLO: u64 = 0;
const RESTART: u64 = u64::MAX;

/// An open session.
pub struct Open {
    clock: HolderClock,
    id: SessionId,
    ttl_ms: u64,
    /// The renewal whose acknowledgement extended it last.
    extended: u64,
    /// Since when no renewal was answered.
    unanswered: Option<Time>,
}

struct Tried {
    answered: Option<Time>,
    refused: bool,
    tried: Time,
}

/// One start of an agent.
pub struct Agent {
    pub life: u64,
    pub frozen_until: Time,
    pub book: Notebook,
    pub local: Local,
    pub told: Told,
    nonce: Nonce,
    node: usize,
    session: Option<Open>,
    stream: Option<u64>,
    mark: Revision,
    pub instruction: Option<Rc<Instruction>>,
    pub right: Right,
    arms: u64,
    armed_until: Option<Reading>,
    crashed_at: Option<RenewalNumber>,
    pub busy: Option<(u64, Step)>,
    not_before: Time,
    asked: BTreeMap<&'static str, (Ask, Time)>,
    asks: u64,
    reported: Option<Time>,
    sights: BTreeMap<usize, Tried>,
    looks: bool,
    canary: Option<Revision>,
    certifying: bool,
    pub commits: BTreeMap<u64, Job>,
    renewals: u64,
    linking: u64,
}

impl World {
    fn agent(&mut self, i: usize) -> &mut Agent {
        self.hosts[i].agent.as_mut().expect("only an agent that lives does anything")
    }

    pub fn agent_place(&self, i: usize) -> Place {
        Place::Agent(i, self.hosts[i].agent.as_ref().map_or(0, |agent| agent.life))
    }

    /// Changes the notebook: on disk before anything else is done.
    fn note<T>(&mut self, i: usize, change: impl FnOnce(&mut Notebook) -> T) -> T {
        let agent = self.agent(i);
        let result = change(&mut agent.book);
        let book = agent.book.clone();
        self.judge_notebook(i, &book);
        if !leaves_out(Mutant::PledgeSynced) || book.pledge.is_none() {
            self.hosts[i].book = Some(book);
        }
        result
    }

    /// An agent starts.
    pub fn born(&mut self, i: usize) {
        if self.hosts[i].agent.is_some() || !self.hosts[i].up {
            return;
        }
        let (life, disk, fresh) =
            (self.fresh(), self.fresh(), self.random.between(1, u64::MAX - 1));
        let book = self.hosts[i].book.clone();
        let mut book = book.unwrap_or_else(|| Notebook { disk, ..Notebook::default() });
        let nonce = book.begin(Nonce(fresh));
        self.hosts[i].book = Some(book.clone());
        self.launch_fencer(i);
        let node = self.random.index(self.coord.nodes.len());
        let host = &mut self.hosts[i];
        let mut local = Local::new(i);
        local.discovered(&host.dir);
        if host.runs_fenced() {
            local.started(0);
        } else {
            local.proven = host.fencer.receipt.as_ref().is_some_and(is_proven);
        }
        let agent = Agent {
            life,
            frozen_until: 0,
            book,
            local,
            told: Told::default(),
            nonce,
            node,
            session: None,
            stream: None,
            mark: Revision(0),
            instruction: None,
            right: Right::default(),
            arms: host.fencer.lease.view().number.0,
            armed_until: None,
            crashed_at: None,
            busy: None,
            not_before: 0,
            asked: BTreeMap::new(),
            asks: 0,
            reported: None,
            sights: BTreeMap::new(),
            looks: false,
            canary: None,
            certifying: false,
            commits: BTreeMap::new(),
            renewals: 0,
            linking: 0,
        };
        host.agent = Some(agent);
        self.say(|| format!("{i}: an agent starts, {nonce:?}"));
        if let Some(seen) = self.look_at_server(i) {
            let now = self.now;
            self.agent(i).local.observed(seen, now);
        }
        let place = self.agent_place(i);
        self.later(MS, place, move |world| world.ticks(i));
        self.later(2 * MS, place, move |world| world.observes(i));
        self.later(3 * MS, place, move |world| world.probes(i));
        self.link_after(i, MS);
    }

    /// An agent ends; what runs goes on running under the fencer. Its sockets close.
    pub fn die(&mut self, i: usize) {
        if self.hosts[i].agent.take().is_none() {
            return;
        }
        for id in self.streams_of(End::Instance(i)) {
            self.later(2 * MS, Place::World, move |world| world.end_stream(id));
        }
        let wait = self.random.between(20 * MS, 3 * SECOND);
        self.later(wait, Place::Host(i), move |world| world.born(i));
    }

    fn ticks(&mut self, i: usize) {
        let wait = self.random.between(25 * MS, 55 * MS);
        let place = self.agent_place(i);
        self.later(wait, place, move |world| world.ticks(i));
        self.turn(i);
    }

    // --- senses ---

    fn observes(&mut self, i: usize) {
        let seen = self.look_at_server(i);
        let running = self.agent(i).local.running;
        let pause = match &seen {
            None if running => 12 * MS,
            Some(seen) if seen.in_recovery => 60 * MS,
            _ => REPORT_EVERY,
        };
        let place = self.agent_place(i);
        self.later(pause, place, move |world| world.observes(i));
        self.deliver(i, seen);
    }

    /// A look is wanted now.
    pub fn look(&mut self, i: usize) {
        if std::mem::replace(&mut self.agent(i).looks, true) {
            return;
        }
        let place = self.agent_place(i);
        self.later(MS / 2, place, move |world| {
            world.agent(i).looks = false;
            let seen = world.look_at_server(i);
            world.deliver(i, seen);
        });
    }

    fn deliver(&mut self, i: usize, seen: Option<Seen>) {
        let Some(seen) = seen else { return };
        let wait = self.random.between(50, 2 * MS);
        let place = self.agent_place(i);
        self.later(wait, place, move |world| {
            let now = world.now;
            let agent = world.agent(i);
            if agent.local.running {
                let streamed = agent.local.streams();
                agent.local.observed(seen, now);
                if streamed && !agent.local.streams() {
                    agent.reported = None;
                }
            }
            world.turn(i);
        });
    }

    fn look_at_server(&self, i: usize) -> Option<Seen> {
        if !self.answers(End::Instance(i), i) {
            return None;
        }
        let host = &self.hosts[i];
        let server = host.server.as_ref()?;
        let receiver = server.receiver.and_then(|id| self.conns.get(&id));
        Some(Seen {
            in_recovery: !server.primary,
            position: host.dir.wal.position(host.dir.wal.flushed),
            receiver: receiver.map(|conn| (conn.from, self.now - conn.alive)),
            senders: server.senders.iter().map(|it| (it.to, it.flushed)).collect(),
            names: server.names,
        })
    }

    /// Fresh connections: to its own server, and to the neighbours.
    fn probes(&mut self, i: usize) {
        let place = self.agent_place(i);
        self.later(REPORT_EVERY, place, move |world| world.probes(i));
        let answered = self.answers(End::Instance(i), i);
        let now = self.now;
        let mut tried = Vec::new();
        if self.agent(i).instruction.is_some() {
            for other in (0..self.hosts.len()).filter(|other| *other != i) {
                let host = &self.hosts[other];
                let reached = host.up
                    && host.machine.runs(now)
                    && self.net.joins(End::Instance(i), End::Instance(other));
                let listens = host.server.as_ref().is_some_and(|it| it.fenced && it.up);
                tried.push((other, self.answers(End::Instance(i), other), reached && !listens));
            }
        }
        let agent = self.agent(i);
        if agent.local.running {
            agent.local.probed(answered, now);
        }
        for (other, answers, refused) in tried {
            let before = agent.sights.get(&other).and_then(|it| it.answered);
            let answered = if answers { Some(now) } else { before };
            agent.sights.insert(other, Tried { answered, refused, tried: now });
        }
    }

    /// Own commits while there is a set to certify.
    fn certifies(&mut self, i: usize) {
        let Some(set) = self.agent(i).canary else {
            self.agent(i).certifying = false;
            return;
        };
        let begun = self.hosts[i].machine.read(self.now);
        let place = self.agent_place(i);
        let since = self.now;
        let returned = move |world: &mut World, returned: bool| {
            let agent = world.agent(i);
            let same = agent.canary == Some(set);
            agent.local.canary = Some((since, Some(returned)));
            let sound = returned && agent.local.has_its_names() && same;
            if sound {
                agent.right.certified(begun, set);
                world.check.stats.certificates += 1;
            }
            world.later(300 * MS, place, move |world| world.certifies(i));
            world.turn(i);
        };
        self.own_commit(i, Kind::Write, 5 * SECOND, Box::new(returned));
    }

    /// A commit of the agent's own; `told` whether it returned in time.
    pub fn own_commit(
        &mut self,
        i: usize,
        kind: Kind,
        within: Time,
        told: Box<dyn FnOnce(&mut Self, bool)>,
    ) -> u64 {
        let number = self.fresh();
        let place = self.agent_place(i);
        let life = self.agent(i).life;
        let written = match self.answers(End::Instance(i), i) {
            true => self.commit_write(i, kind, Waiter::Agent(life, number)),
            false => None,
        };
        self.agent(i).commits.insert(number, told);
        let wait = if written.is_some() { within } else { MS };
        self.later(wait, place, move |world| {
            if let Some(told) = world.agent(i).commits.remove(&number) {
                world.give_up(i, |who| matches!(who, Waiter::Agent(_, of) if *of == number));
                told(world, false);
            }
        });
        number
    }

    /// An own commit returned.
    pub fn returned(&mut self, i: usize, number: u64) {
        if let Some(told) = self.agent(i).commits.remove(&number) {
            told(self, true);
        }
    }

    // --- the link ---

    fn link_after(&mut self, i: usize, wait: Time) {
        self.agent(i).linking += 1;
        let linking = self.agent(i).linking;
        let place = self.agent_place(i);
        self.later(wait, place, move |world| {
            if world.agent(i).linking == linking {
                world.link(i);
            }
        });
        // Whatever is under way and never answered is tried again.
        self.later(wait + 2 * SECOND, place, move |world| {
            if world.agent(i).linking == linking && world.agent(i).stream.is_none() {
                world.link_after(i, 50 * MS);
            }
        });
    }

    fn link(&mut self, i: usize) {
        let n = self.random.index(self.coord.nodes.len());
        self.agent(i).node = n;
        let node = &self.coord.nodes[n];
        let joins = self.net.joins(End::Instance(i), End::Node(n)) && node.up;
        let Some(service) =
            node.rows.service.clone().filter(|_| joins && node.machine.runs(self.now))
        else {
            return self.link_after(i, 60 * MS);
        };
        let wanted = service.spec.policy.ttl_ms;
        let agent = self.agent(i);
        let fits = agent
            .session
            .as_ref()
            .is_some_and(|open| open.clock.void_reason().is_none() && open.ttl_ms == wanted);
        if fits {
            self.attach(i);
        } else {
            self.open_session(i, wanted, |world, i| world.attach(i));
        }
    }

    fn open_session(&mut self, i: usize, ttl_ms: u64, then: fn(&mut Self, usize)) {
        let (node, life) = (self.agent(i).node, self.agent(i).life);
        let nonce = Nonce(self.random.between(1, u64::MAX - 1));
        let ask = regent_core::timing::TtlAsk::with_default_interval(ttl_ms, FENCE_BUDGET_MS);
        let command = Command::OpenSession {
            ttl_ms,
            renew_interval_ms: ask.renew_interval_ms,
            fence_budget_ms: FENCE_BUDGET_MS,
            nonce,
            label: String::new(),
        };
        let opened = move |world: &mut World, session: SessionId| {
            let of = HolderSession {
                session,
                nonce,
                incarnation: 1,
                ttl_ms,
                renew_interval_ms: ask.renew_interval_ms,
                fence_budget_ms: if leaves_out(Mutant::FenceBudget) { 0 } else { FENCE_BUDGET_MS },
            };
            let rules = world.holder_rules();
            let clock = HolderClock::new(of, rules);
            let open = Open { clock, id: session, ttl_ms, extended: 0, unanswered: None };
            let before = world.agent(i).session.replace(open);
            if let Some(before) = before.filter(|it| it.clock.void_reason().is_none()) {
                world.close_session(i, &before);
            }
            world.agent(i).right.lease = None;
            world.plan_renewal(i);
            then(world, i);
        };
        self.to_node(i, node, move |world| {
            let by = Principal::new(Role::Agent, format!("s/{}", instance_name(i)));
            let told = move |world: &mut World, reply: &Reply| {
                if let Reply::SessionOpened { session, .. } = reply {
                    let session = *session;
                    world.to_instance(node, i, life, move |world| {
                        if world.agent(i).session.as_ref().is_none_or(|open| open.id < session) {
                            opened(world, session);
                        }
                    });
                }
            };
            world.propose(node, by, &command, Box::new(told));
        });
    }

    fn close_session(&mut self, i: usize, open: &Open) {
        let of = open.clock.session();
        let command = Command::CloseSession { session: of.session, nonce: of.nonce };
        let node = self.agent(i).node;
        self.to_node(i, node, move |world| {
            let by = Principal::new(Role::Agent, format!("s/{}", instance_name(i)));
            world.propose(node, by, &command, Box::new(|_, _| {}));
        });
    }

    /// C1's side of the clocks.
    fn holder_rules(&self) -> regent_core::lease::Rules {
        let mut rules = self.rules;
        if leaves_out(Mutant::HolderMargin) {
            rules.rho_ppm = 0;
        }
        rules
    }

    fn attach(&mut self, i: usize) {
        if self.agent(i).stream.is_some() {
            return;
        }
        let start = self.start(i);
        let (life, node) = (self.agent(i).life, self.agent(i).node);
        let awake = self.coord.nodes[node].up && self.coord.nodes[node].machine.runs(self.now);
        if !awake || !self.net.joins(End::Instance(i), End::Node(node)) {
            return self.link_after(i, 300 * MS);
        }
        let id = self.connect(i, life, node, start);
        let agent = self.agent(i);
        agent.stream = Some(id);
        agent.asked.clear();
        agent.reported = None;
    }

    /// What the coordinators must know before they accept this start.
    fn start(&mut self, i: usize) -> AgentStart {
        let agent = self.agent(i);
        let id = agent.session.as_ref().map_or(SessionId(0), |open| open.id);
        if agent.mark.0 < id.0 {
            agent.mark = Revision(0);
            agent.crashed_at = None;
        }
        let (book, local) = (&agent.book, &agent.local);
        let data = matches!(local.data, Data::Present(_)).then(|| DataIdentity {
            system: 1,
            generation: local.generation,
            epoch: book.led.max(local.written),
            position: local.position().unwrap_or_default(),
            out_of_recovery: local.data == Data::Present(OnDisk::Primary),
        });
        AgentStart {
            session: id,
            nonce: agent.nonce,
            boot: book.boot,
            disk: book.disk,
            seen: book.seen(),
            data,
            fencer: Armed::Armed,
        }
    }

    /// The stream broke.
    pub fn detached(&mut self, i: usize, id: u64) {
        if self.agent(i).stream == Some(id) {
            self.agent(i).stream = None;
            self.link_after(i, 50 * MS);
        }
    }

    fn plan_renewal(&mut self, i: usize) {
        let now = self.hosts[i].machine.read(self.now);
        let agent = self.agent(i);
        agent.renewals += 1;
        let renewals = agent.renewals;
        let Some(due) = agent.session.as_ref().and_then(|open| open.clock.due_at()) else { return };
        let wait = due.since(now).0.max(MS);
        let place = self.agent_place(i);
        self.later(wait, place, move |world| {
            if world.agent(i).renewals == renewals {
                world.renew(i);
            }
        });
    }

    fn renew(&mut self, i: usize) {
        let (now, real) = (self.hosts[i].machine.read(self.now), self.now);
        let agent = self.agent(i);
        let (mut node, life, stream) = (agent.node, agent.life, agent.stream);
        let Some(open) = &mut agent.session else { return };
        let renewal = open.clock.next(now);
        let since = *open.unanswered.get_or_insert(real);
        if real > since + open.ttl_ms * MS / 4 {
            open.unanswered = Some(real);
            let n = self.random.index(self.coord.nodes.len());
            if stream.is_none() {
                self.agent(i).node = n;
            }
            node = n;
        }
        self.to_node(i, node, move |world| world.renewal_arrives(node, i, life, renewal));
        self.plan_renewal(i);
    }

    /// The answer to a renewal.
    pub fn renewal_answered(
        &mut self,
        i: usize,
        session: SessionId,
        number: RenewalNumber,
        answer: Answer,
    ) {
        let now = self.hosts[i].machine.read(self.now);
        let agent = self.agent(i);
        let Some(open) = agent.session.as_mut().filter(|open| open.id == session) else { return };
        open.unanswered = None;
        if open.clock.answered(number, answer, now) {
            open.extended = open.extended.max(number.0);
        }
        let over = open.clock.void_reason() == Some(VoidReason::SessionGone);
        let (ttl, attached) = (open.ttl_ms, agent.stream.is_some());
        if over && attached {
            // The stream stays: only who renews is another one.
            self.open_session(i, ttl, |world, i| {
                let start = Ask::Start(Box::new(world.start(i)));
                if let Some(id) = world.agent(i).stream {
                    world.ask(id, RESTART, start);
                }
            });
            // If that is lost the stream is given up, and everything begins anew.
            let place = self.agent_place(i);
            self.later(2 * SECOND, place, move |world| {
                let agent = world.agent(i);
                let still = agent.session.as_ref().is_some_and(|open| open.id == session);
                if let Some(id) = agent.stream.filter(|_| still) {
                    world.end_stream(id);
                    world.detached(i, id);
                }
            });
        }
        self.plan_renewal(i);
        self.turn(i);
    }

    /// Something arrived on the stream.
    pub fn hears(&mut self, i: usize, id: u64, message: FromNode) {
        if self.agent(i).stream != Some(id) {
            return;
        }
        match message {
            FromNode::Answer(number, outcome) => self.answered(i, id, number, outcome),
            FromNode::Instruction(told) => self.instructed(i, told),
        }
        self.turn(i);
    }

    fn answered(&mut self, i: usize, id: u64, number: u64, outcome: Outcome) {
        match outcome {
            Outcome::Accepted { boot, mark } => {
                let nonce = self.agent(i).nonce;
                self.note(i, |book| book.accepted(nonce, boot));
                self.agent(i).told.accepted = boot > 0;
                self.take_mark(i, mark);
            }
            Outcome::Committed { receipt } => {
                let agent = self.agent(i);
                if let (Some((fence, proof)), Some(pledge)) = (receipt, agent.book.pledge.as_ref())
                {
                    let position = pledge.position.filter(|_| pledge.proof == proof);
                    agent.told.committed = Some((fence, proof, position));
                }
                agent.asked.clear();
            }
            Outcome::Refused { quarantined, transient } => {
                if number != HELLO {
                    return;
                }
                let agent = self.agent(i);
                agent.told.accepted &= transient;
                if quarantined && agent.local.running {
                    self.interrupt(i);
                    if self.agent(i).busy.is_none() {
                        self.spawn(i, Step::Kill);
                    }
                }
                self.end_stream(id);
                self.agent(i).stream = None;
                self.link_after(i, 50 * MS);
            }
        }
    }

    fn take_mark(&mut self, i: usize, mark: Revision) {
        let agent = self.agent(i);
        let Some(open) = &mut agent.session else { return };
        if mark.0 > open.id.0 && mark != agent.mark {
            agent.mark = mark;
            open.clock.granted(Epoch { incarnation: 1, revision: mark });
            self.plan_renewal(i);
        }
    }

    fn instructed(&mut self, i: usize, told: Rc<Instruction>) {
        let lower = leaves_out(Mutant::LowerDirectiveRefused);
        let directive = told.directive.clone();
        let taken = self.note(i, |book| match book.take(&directive) {
            Taken::Stale { .. } if lower => {
                book.directive = Some(directive.clone());
                Taken::New
            }
            taken => taken,
        });
        match taken {
            Taken::Stale { .. } => {
                self.check.stats.stale += 1;
                return;
            }
            Taken::New => {
                self.say(|| format!("{i}: told {directive}"));
                let agent = self.agent(i);
                agent.local.diverged = None;
                agent.local.replayed = None;
                agent.told.committed = None;
                agent.not_before = 0;
                self.interrupt(i);
                if matches!(directive.order, Order::Detach { .. }) {
                    self.after_detach(i);
                }
            }
            Taken::Same => {}
        }
        self.take_mark(i, told.mark);
        let agent = self.agent(i);
        agent.told.promoted = if told.promoted { told.epoch } else { Epoch::NONE };
        agent.told.covered = told.set.as_ref().filter(|_| told.covered).map(|set| set.revision);
        if let Some(set) = agent.told.covered {
            self.note(i, |book| book.covered(set));
        }
        self.agent(i).instruction = Some(told);
        self.look(i);
    }

    /// A new directive does not wait for a step of the old one that may take long.
    fn interrupt(&mut self, i: usize) {
        let long = |step: &Step| {
            matches!(
                step,
                Step::Clone(_)
                    | Step::Rewind(_)
                    | Step::SetNames(_)
                    | Step::WriteEpoch(_)
                    | Step::Replay
                    | Step::Compare(_)
            )
        };
        if self.agent(i).busy.as_ref().is_some_and(|(_, step)| long(step)) {
            let host = &mut self.hosts[i];
            let Some(agent) = host.agent.as_mut() else { return };
            let rebuilt = matches!(agent.busy, Some((_, Step::Clone(_) | Step::Rewind(_))));
            agent.busy = None;
            agent.local.rebuilding = false;
            if rebuilt {
                // What it left on disk is looked at again.
                agent.local.discovered(&host.dir);
            }
        }
    }

    /// The fencer says something.
    pub fn news(&mut self, i: usize, news: News) {
        let sequence = match news {
            News::Lost => return self.die(i),
            News::Stopped { sequence, .. } => sequence,
        };
        let host = &self.hosts[i];
        if host.runs_fenced() && host.fencer.sequence() >= sequence {
            return;
        }
        let News::Stopped { proven, in_order, .. } = news else { return };
        let agent = self.agent(i);
        agent.local.last_end = sequence;
        let asked = matches!(&agent.busy, Some((_, Step::Kill | Step::ShutDown)));
        if !asked {
            agent.local.ended(proven, in_order);
            if !leaves_out(Mutant::RenewalAfterCrash) {
                agent.right = Right::default();
                let known = agent.session.as_ref().filter(|it| it.clock.valid_until().is_some());
                agent.crashed_at = known.map(|open| RenewalNumber(open.extended));
            }
            agent.reported = None;
        }
        self.turn(i);
    }

    /// A step is over.
    pub fn done(&mut self, i: usize, id: u64, outcome: Result<Change, &'static str>) {
        let fencer_runs = self.hosts[i].runs_fenced();
        let now = self.now;
        let agent = self.agent(i);
        let Some((_, step)) = agent.busy.take_if(|(busy, _)| *busy == id) else { return };
        agent.local.rebuilding = false;
        agent.local.stopping = false;
        match outcome {
            Ok(change) => {
                change(&mut agent.local);
                let may_hold = agent.book.may_hold();
                let policy = agent.instruction.as_ref().map(|told| told.spec.policy);
                let stays = policy.is_some_and(|policy| {
                    leaves_out(Mutant::ShutKeepsDeadline) || may_stay_shut(&policy, may_hold)
                });
                if matches!(step, Step::Close) && stays {
                    agent.armed_until = None;
                    self.post_disarm(i);
                }
            }
            Err(why) => {
                if matches!(step, Step::Follow(_) | Step::StartStandby(_)) {
                    agent.local.doubt_upstream();
                }
                let starts = matches!(step, Step::StartStandby(_) | Step::StartPrimary);
                if starts && !agent.local.running && fencer_runs {
                    agent.local.started(agent.local.last_end);
                }
                agent.not_before = now + TRY_AGAIN;
                self.say(|| format!("{i}: {step:?} failed: {why}"));
            }
        }
        self.agent(i).reported = None;
        self.look(i);
        self.turn(i);
    }

    // --- one turn ---

    fn policy(&mut self, i: usize) -> Option<Policy> {
        self.agent(i).instruction.as_ref().map(|told| told.spec.policy)
    }

    fn leads(book: &Notebook) -> bool {
        book.directive.as_ref().is_some_and(|it| matches!(it.order, Order::Lead { .. }))
    }

    fn rights(&mut self, i: usize) {
        let now = self.hosts[i].machine.read(self.now);
        let policy = self.policy(i);
        let agent = self.agent(i);
        let leads = Self::leads(&agent.book);
        let epoch = Epoch { incarnation: 1, revision: agent.mark };
        let confirmed = leaves_out(Mutant::GrantRenewed);
        let held = agent.session.as_mut().is_some_and(|open| {
            let standing = open.clock.standing(now, epoch);
            let bold = confirmed && standing == Standing::Unconfirmed;
            epoch.revision.0 > 0 && (standing == Standing::Held || bold)
        });
        let deadline = agent
            .session
            .as_ref()
            .and_then(|open| Some((open.clock.valid_until()?, RenewalNumber(open.extended))));
        let newer = deadline.is_some_and(|(_, number)| Some(number) > agent.crashed_at);
        let held = held && newer;
        agent.right.lease = deadline.filter(|_| held).map(|(until, _)| until);
        let set = agent.local.in_force;
        let latched = !agent.book.may_hold() && !leaves_out(Mutant::CertificatesLatched);
        let until = policy
            .and_then(|policy| agent.right.until(&policy, set, latched, FENCE_BUDGET_MS, now));
        agent.told.holds_lease = held && leads;
        agent.told.may_serve =
            leads && until.is_some_and(|until| now.plus(CLOSE_LEAD).is_before(until));
        let Some(until) = until.filter(|_| leads) else { return };
        let primary = agent.local.running && agent.local.data == Data::Present(OnDisk::Primary);
        let later = agent.armed_until.is_none_or(|at| at.is_before(until));
        if primary && later {
            agent.armed_until = Some(until);
            let arm = Self::next_arm(agent, until);
            self.post_arm(i, arm);
        }
    }

    fn next_arm(agent: &mut Agent, until: Reading) -> Arm {
        agent.arms += 1;
        let epoch = agent.book.directive.as_ref().map_or(Epoch::NONE, |it| it.epoch);
        Arm { epoch, number: RenewalNumber(agent.arms), until }
    }

    /// Rights, the next step, words to the coordinators.
    pub fn turn(&mut self, i: usize) {
        self.rights(i);
        let now = self.now;
        let agent = self.agent(i);
        let upstream = agent.book.directive.as_ref().and_then(|it| match &it.order {
            Order::Follow { upstream: from } | Order::Fetch { from, .. } => Some(index_of(from)),
            _ => None,
        });
        agent.told.upstream_answers = upstream.is_some_and(|upstream| {
            let sight = agent.sights.get(&upstream).and_then(|it| it.answered);
            sight.is_some_and(|at| now - at < SECOND)
        });
        if agent.busy.is_none() && now >= agent.not_before {
            let world = agent.local.world(&agent.told, now);
            let step = next(&agent.book, &world);
            self.take(i, step);
        }
        let agent = self.agent(i);
        let leads = Self::leads(&agent.book);
        let wants = agent.local.in_force.filter(|_| agent.local.run() == Run::Primary && leads);
        agent.canary = wants;
        if wants.is_some() && !std::mem::replace(&mut agent.certifying, true) {
            let place = self.agent_place(i);
            self.later(MS, place, move |world| world.certifies(i));
        }
        self.report(i);
    }

    fn take(&mut self, i: usize, step: Step) {
        match step {
            Step::Rest | Step::Stuck(_) => {}
            Step::Pledge(pledge) => {
                self.note(i, |book| book.pledge(pledge));
                self.send_receipt(i);
            }
            Step::SendReceipt => self.send_receipt(i),
            Step::NoteLead(epoch) => self.note(i, |book| book.led = epoch),
            Step::ConfirmSet(set) => {
                let local = &mut self.agent(i).local;
                local.names = local.names.filter(|names| *names != set);
            }
            Step::ReportCovered(set) => {
                let epoch = self.agent(i).book.led;
                self.ask_once(i, "covered", Ask::Covered { epoch, set });
            }
            Step::ReportPromoted(epoch) => {
                let at = self.agent(i).local.position().unwrap_or_default();
                let (timeline, switch) = (at.timeline, at.end);
                self.ask_once(i, "promoted", Ask::Promoted { epoch, timeline, switch });
            }
            step => self.spawn(i, step),
        }
    }

    fn spawn(&mut self, i: usize, step: Step) {
        let id = self.fresh();
        let agent = self.agent(i);
        match step {
            Step::Kill | Step::ShutDown => {
                agent.local.stopping = true;
                agent.local.open = false;
            }
            Step::Rewind(_) | Step::Clone(_) => agent.local.rebuilding = true,
            _ => {}
        }
        let arm = match step {
            Step::StartPrimary | Step::Promote => {
                let Some(until) = agent.right.lease else { return };
                agent.armed_until = Some(until);
                Some(Self::next_arm(agent, until))
            }
            _ => None,
        };
        agent.busy = Some((id, step.clone()));
        self.say(|| format!("{i}: {step:?}"));
        self.deed(i, id, step, arm);
    }

    fn send_receipt(&mut self, i: usize) {
        let agent = self.agent(i);
        let Some(pledge) = agent.book.pledge.clone() else { return };
        let receipt = Receipt {
            instance: instance_name(i),
            fence: pledge.fence,
            proof: pledge.proof,
            position: pledge.position,
            boot: agent.book.boot,
            nonce: agent.nonce,
            generation: agent.local.generation,
            is_proven: pledge.is_proven,
        };
        self.ask_once(i, "receipt", Ask::Receipt(Box::new(receipt)));
    }

    fn ask_once(&mut self, i: usize, what: &'static str, ask: Ask) {
        let now = self.now;
        let agent = self.agent(i);
        let Some(stream) = agent.stream else { return };
        let again =
            agent.asked.get(what).is_none_or(|(asked, at)| *asked != ask || now - at >= ASK_AGAIN);
        if !again {
            return;
        }
        agent.asks += 1;
        let number = agent.asks;
        agent.asked.insert(what, (ask.clone(), now));
        self.ask(stream, number, ask);
    }

    /// An observation, when it is time or something happened.
    fn report(&mut self, i: usize) {
        let now = self.now;
        let agent = self.agent(i);
        let Some(stream) = agent.stream else { return };
        if agent.reported.is_some_and(|at| now - at < REPORT_EVERY) {
            return;
        }
        agent.reported = Some(now);
        let mut seen = agent.local.observation(&agent.book, now);
        seen.sights = agent
            .sights
            .iter()
            .map(|(other, it)| Sight {
                instance: instance_name(*other),
                answered_ms: it.answered.map(|at| (now - at) / MS),
                refused: it.refused,
                tried_ms: (now - it.tried) / MS,
            })
            .collect();
        self.observe(stream, seen);
    }

    /// Somebody asks for a role change.
    pub fn person(&mut self, command: &Command) {
        let leader = self.coord.leader;
        let by = Principal::new(Role::Operator, "ann");
        self.propose(leader, by, command, Box::new(|_, _| {}));
        let _ = service_name();
    }
}
