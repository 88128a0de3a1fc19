//! A simulated agent's words with the coordinators: a session that is renewed, a stream to one node at
//! a time, what arrives on it (`src/agent/link.rs`, and `hear` of `run.rs`).

use std::rc::Rc;

use regent_core::agent::notebook::Taken;
use regent_core::agent::{Reports, Step};
use regent_core::authz::{Principal, Role};
use regent_core::command::{Command, FullRenewal};
use regent_core::id::{Epoch, Nonce, RenewalNumber, Revision, SessionId};
use regent_core::lease::holder::{Answer, HolderSession};
use regent_core::lease::{HolderClock, Rules};
use regent_core::mutant::{Mutant, leaves_out};
use regent_core::reply::{RenewalOutcome, Reply};
use regent_core::role::{AgentStart, Order};
use regent_core::spec::LoweredSync;

use super::agent::{HELLO, Open, RESTART};
use super::host::FENCE_BUDGET_MS;
use super::net::End;
use super::streams::{Ask, FromNode, Instruction, Outcome};
use super::world::World;
use crate::agents::machine::{MS, SECOND, Time};

impl World {
    pub(super) fn link_after(&mut self, i: usize, wait: Time) {
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

    pub(super) fn link(&mut self, i: usize) {
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
        let now = self.hosts[i].machine.read(self.now);
        let agent = self.agent(i);
        let mark = agent.mark;
        let fits = agent
            .session
            .as_mut()
            .is_some_and(|open| !open.is_over(mark, now) && open.ttl_ms == wanted);
        if fits {
            self.attach(i);
        } else {
            self.open_session(i, wanted, |world, i| world.attach(i));
        }
    }

    pub(super) fn open_session(&mut self, i: usize, ttl_ms: u64, then: fn(&mut Self, usize)) {
        let (node, life) = (self.agent(i).node, self.agent(i).life);
        let nonce = Nonce(self.random.between(1, u64::MAX - 1));
        let opening = self.fresh();
        self.agent(i).opening = opening;
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
            let (extended, unanswered, reports) = (0, None, Reports::default());
            let open = Open { clock, id: session, ttl_ms, extended, unanswered, reports };
            let before = world.agent(i).session.replace(open);
            // Word that one whose right ran out is closed could come before the new one is bound.
            let kept = |it: &Open| it.clock.void_reason().is_none() && it.ttl_ms != ttl_ms;
            if let Some(before) = before.filter(kept) {
                world.close_session(i, &before);
            }
            let agent = world.agent(i);
            (agent.mark, agent.crashed_at) = (Revision(0), None);
            world.plan_renewal(i);
            then(world, i);
        };
        self.carry_to_node(i, node, move |world| {
            let by = Principal::new(Role::Agent, format!("s/{}", world.name_of(i)));
            let told = move |world: &mut World, reply: &Reply| {
                if let Reply::SessionOpened { session, .. } = reply {
                    let session = *session;
                    world.carry_to_instance(node, i, life, move |world| {
                        if std::mem::take(&mut world.agent(i).opening) == opening {
                            opened(world, session);
                        }
                    });
                }
            };
            world.propose(node, by, &command, Box::new(told));
        });
    }

    pub(super) fn close_session(&mut self, i: usize, open: &Open) {
        let of = open.clock.session();
        let command = Command::CloseSession { session: of.session, nonce: of.nonce };
        let node = self.agent(i).node;
        self.carry_to_node(i, node, move |world| {
            let by = Principal::new(Role::Agent, format!("s/{}", world.name_of(i)));
            world.propose(node, by, &command, Box::new(|_, _| {}));
        });
    }

    /// C1's side of the clocks.
    pub(super) fn holder_rules(&self) -> Rules {
        let mut rules = self.rules;
        if leaves_out(Mutant::HolderMargin) {
            rules.rho_ppm = 0;
        }
        rules
    }

    pub(super) fn attach(&mut self, i: usize) {
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
        self.say(|| format!("{i}: attaches to node {node}"));
        let agent = self.agent(i);
        agent.stream = Some(id);
        agent.asked.clear();
        agent.reported = None;
    }

    /// What the coordinators must know before they accept this start.
    pub(super) fn start(&mut self, i: usize) -> AgentStart {
        let fencer = self.plan.armed();
        let agent = self.agent(i);
        let id = agent.session.as_ref().map_or(SessionId(0), |open| open.id);
        let (book, local) = (&agent.book, &agent.local);
        let data = local.identity(book.led);
        AgentStart {
            session: id,
            nonce: agent.nonce,
            boot: book.boot,
            disk: book.disk,
            seen: book.seen(),
            data,
            fencer,
            // A new run each time: a restarted agent is a stranger to it, as the simulated one is.
            run: agent.nonce,
        }
    }

    /// The stream broke.
    pub fn detached(&mut self, i: usize, id: u64) {
        if self.agent(i).stream == Some(id) {
            self.agent(i).stream = None;
            self.link_after(i, 50 * MS);
        }
    }

    pub(super) fn plan_renewal(&mut self, i: usize) {
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

    pub(super) fn renew(&mut self, i: usize) {
        let (now, real) = (self.hosts[i].machine.read(self.now), self.now);
        let agent = self.agent(i);
        let (mut node, life, stream) = (agent.node, agent.life, agent.stream);
        let Some(open) = &mut agent.session else { return };
        let renewal = open.clock.next(now);
        let report = open.reports.sent(renewal.number, now).map(Box::new);
        let (session, number) = (open.id, renewal.number);
        let full = FullRenewal { renewal, report };
        let since = *open.unanswered.get_or_insert(real);
        if real > since + open.ttl_ms * MS / 4 {
            open.unanswered = Some(real);
            let n = self.random.index(self.coord.nodes.len());
            if stream.is_none() {
                self.agent(i).node = n;
            }
            node = n;
        }
        self.pages.renewal_sent(i, session, number, real);
        self.carry_to_node(i, node, move |world| {
            world.renewal_arrives(node, i, life, full.clone());
        });
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
        let taken = open.clock.answered(number, answer, now);
        if taken {
            open.extended = open.extended.max(number.0);
        }
        let known = match answer {
            Answer::Outcome(RenewalOutcome::Extended { number, .. }) => Some(number),
            Answer::Outcome(RenewalOutcome::NumberStale { have }) => Some(have),
            _ => None,
        };
        if let Some(number) = known {
            open.reports.committed(number);
        }
        let over = open.is_over(agent.mark, now) && agent.opening == 0;
        let (ttl, attached) = (open.ttl_ms, agent.stream.is_some());
        if taken {
            self.check.heard.insert(i, self.now);
        }
        if let Some(number) = known {
            self.pages.renewal_taken(i, session, number, ttl);
        }
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

    pub(super) fn answered(&mut self, i: usize, id: u64, number: u64, outcome: Outcome) {
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

    pub(super) fn take_mark(&mut self, i: usize, mark: Revision) {
        let agent = self.agent(i);
        let Some(open) = &mut agent.session else { return };
        if mark.0 > open.id.0 && mark != agent.mark {
            agent.mark = mark;
            open.clock.granted(Epoch { incarnation: 1, revision: mark });
            self.plan_renewal(i);
        }
    }

    pub(super) fn instructed(&mut self, i: usize, told: Rc<Instruction>) {
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
        agent.told.timeline = told.timeline;
        agent.told.expected = told.expected;
        agent.told.is_strict = told.spec.policy.on_lowered_sync == LoweredSync::Strict;
        let instances = told.spec.instances.iter();
        agent.told.addresses =
            instances.map(|one| (one.address.clone(), one.name.clone())).collect();
        agent.told.unrouted = told.unrouted;
        agent.told.promoted = if told.promoted { told.epoch } else { Epoch::NONE };
        agent.told.covered = told.set.as_ref().filter(|_| told.covered).map(|set| set.revision);
        if let Some(set) = agent.told.covered {
            self.note(i, |book| book.covered(set));
        }
        self.agent(i).instruction = Some(told);
        self.look(i);
    }
}
