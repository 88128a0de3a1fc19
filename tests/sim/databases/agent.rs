//! A simulated agent: `src/agent/run.rs` and `link.rs`, in the same order and by the same rules, over
//! the real notebook, right and `next`. What differs is said where it does.

use std::collections::BTreeMap;
use std::rc::Rc;

use regent_core::agent::{
    Data, Local, Naming, Notebook, OnDisk, Reports, Right, Step, Told, may_stay_shut, next,
};
use regent_core::authz::{Principal, Role};
use regent_core::command::Command;
use regent_core::id::{Epoch, Nonce, RenewalNumber, Revision, SessionId};
use regent_core::lease::HolderClock;
use regent_core::lease::holder::Standing;
use regent_core::mutant::{Mutant, leaves_out};
use regent_core::role::observe::{Run, Sight};
use regent_core::role::{Order, Receipt};
use regent_core::spec::Policy;
use regent_core::time::Reading;
use regent_fencer::Arm;

use super::host::{FENCE_BUDGET_MS, News, Status};
use super::net::End;
use super::plan::{index_of, instance_name};
use super::senses::found;
use super::steps::{Change, Job};
use super::streams::{Ask, Instruction};
use super::world::{Place, World};
use crate::agents::machine::{MS, SECOND, Time};

/// A disarming that the fencer has not confirmed is asked for again after this long.
pub(super) const DISARM_AGAIN: Time = SECOND;
pub(super) const TRY_AGAIN: Time = 100 * MS;
pub(super) const REPORT_EVERY: Time = 200 * MS;
pub(super) const ASK_AGAIN: Time = 2 * SECOND;
pub(super) const HELLO: u64 = 0;
pub(super) const RESTART: u64 = u64::MAX;

/// An open session.
pub struct Open {
    pub(super) clock: HolderClock,
    pub(super) id: SessionId,
    pub(super) ttl_ms: u64,
    /// The renewal whose acknowledgement extended it last.
    pub(super) extended: u64,
    /// Since when no renewal was answered.
    pub(super) unanswered: Option<Time>,
    /// What its renewals say.
    pub(super) reports: Reports,
}

impl Open {
    /// Whether nothing is held by this session any more: it ended, or its right ran out, which no
    /// renewal brings back (C1).
    pub(super) fn is_over(&mut self, mark: Revision, now: Reading) -> bool {
        let epoch = Epoch { incarnation: 1, revision: mark };
        self.clock.void_reason().is_some()
            || mark.0 > 0 && self.clock.standing(now, epoch) == Standing::Over
    }
}

pub struct Tried {
    pub(super) answered: Option<Time>,
    pub(super) refused: bool,
    pub(super) tried: Time,
}

/// One start of an agent.
pub struct Agent {
    pub life: u64,
    /// Its loop does nothing until then: it waits for a disk, or the whole process stands still.
    pub frozen_until: Time,
    /// Nobody answers who asks it until then, either.
    pub silent_until: Time,
    pub book: Notebook,
    pub local: Local,
    pub told: Told,
    pub(super) nonce: Nonce,
    pub(super) node: usize,
    pub(super) session: Option<Open>,
    pub(super) stream: Option<u64>,
    pub(super) mark: Revision,
    pub instruction: Option<Rc<Instruction>>,
    pub right: Right,
    /// For how long the last turn would have it named.
    pub(super) naming: Naming,
    /// What its page tells from, as of the end of that turn (S8): that, and under which epoch.
    pub(super) page: (Naming, Epoch),
    /// What its fencer said last.
    pub fencer: Status,
    /// When a disarming was asked for, and for which pause.
    pub(super) disarmed: Option<(Time, Revision)>,
    pub(super) arms: u64,
    pub(super) armed_until: Option<Reading>,
    pub(super) crashed_at: Option<RenewalNumber>,
    pub busy: Option<(u64, Step)>,
    pub(super) not_before: Time,
    pub(super) asked: BTreeMap<&'static str, (Ask, Time)>,
    pub(super) asks: u64,
    pub(super) reported: Option<Time>,
    pub(super) sights: BTreeMap<usize, Tried>,
    pub(super) looks: bool,
    pub(super) canary: Option<Revision>,
    pub(super) certifying: bool,
    pub commits: BTreeMap<u64, Job>,
    pub(super) renewals: u64,
    pub(super) linking: u64,
    /// The session that is being opened.
    pub(super) opening: u64,
}

impl Agent {
    /// E4: what ended is started again by a renewal of after that only.
    fn renounce(&mut self) {
        self.right = Right::default();
        let known = self.session.as_ref().filter(|it| it.clock.valid_until().is_some());
        self.crashed_at = known.map(|open| RenewalNumber(open.extended));
    }

    /// For people who look for what it waits for.
    pub fn told(&self) -> String {
        let session = self.session.as_ref().map(|open| {
            let (void, due) = (open.clock.void_reason(), open.clock.due_at());
            (open.id, void, due, open.clock.valid_until(), open.extended)
        });
        let (stream, mark, busy) = (self.stream, self.mark, &self.busy);
        let (run, told, frozen) = (self.local.run(), &self.told, self.frozen_until);
        format!(
            "session {session:?} stream {stream:?} mark {mark:?} busy {busy:?} {run:?} {told:?} \
             reported {:?} not before {} frozen until {frozen}",
            self.reported, self.not_before
        )
    }
}

impl World {
    pub(super) fn agent(&mut self, i: usize) -> &mut Agent {
        self.hosts[i].agent.as_mut().expect("only an agent that lives does anything")
    }

    pub fn agent_place(&self, i: usize) -> Place {
        Place::Agent(i, self.hosts[i].agent.as_ref().map_or(0, |agent| agent.life))
    }

    /// Changes the notebook: on disk before anything else is done.
    pub(super) fn note<T>(&mut self, i: usize, change: impl FnOnce(&mut Notebook) -> T) -> T {
        let agent = self.agent(i);
        let result = change(&mut agent.book);
        let book = agent.book.clone();
        self.judge_notebook(i, &book);
        let pledges = book.directive.as_ref().is_some_and(|it| it.order.fence().is_some());
        if !leaves_out(Mutant::PledgeSynced) || !pledges {
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
        let mut local = Local::new(instance_name(host.name));
        local.discovered(found(&host.dir));
        if host.runs_fenced() {
            local.started(0);
            local.shut = false;
        } else {
            local.proven = host.is_proven();
        }
        let agent = Agent {
            life,
            frozen_until: 0,
            silent_until: 0,
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
            naming: Naming::Never,
            page: (Naming::Never, Epoch::NONE),
            fencer: host.status(),
            disarmed: None,
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
            opening: 0,
        };
        host.agent = Some(agent);
        self.say(|| format!("{i}: an agent starts, {nonce:?}"));
        if let Some((asked, seen)) = self.look_at_server(i) {
            self.agent(i).local.observed(asked, seen, asked);
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

    pub(super) fn ticks(&mut self, i: usize) {
        let wait = self.random.between(25 * MS, 55 * MS);
        let place = self.agent_place(i);
        self.later(wait, place, move |world| world.ticks(i));
        self.turn(i);
    }

    /// A new directive does not wait for a step of the old one that may take long.
    pub(super) fn interrupt(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        let Some(agent) = host.agent.as_mut() else { return };
        let run = agent.local.run();
        if let Some((_, step)) = agent.busy.take_if(|(_, step)| step.is_interrupted(run)) {
            agent.local.rebuilding = false;
            if step.rebuilds() {
                // What it left on disk is looked at again.
                agent.local.discovered(found(&host.dir));
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
        let asked = agent.busy.as_ref().map(|(_, step)| step);
        if asked == Some(&Step::ShutReaders) {
            // Of a standby, and the step tells of it.
        } else if !asked.is_some_and(Step::ends) {
            agent.local.ended(proven, in_order);
            if !leaves_out(Mutant::RenewalAfterCrash) {
                agent.renounce();
            }
            agent.reported = None;
        } else if !leaves_out(Mutant::RenewalAfterStop) {
            agent.renounce();
        }
        self.turn(i);
    }

    /// A step is over.
    pub fn done(&mut self, i: usize, id: u64, outcome: Result<Change, &'static str>) {
        let fencer_runs = self.hosts[i].runs_fenced();
        let now = self.now;
        let agent = self.agent(i);
        let Some((_, step)) = agent.busy.take_if(|(busy, _)| *busy == id) else { return };
        agent.local.is_over(&step);
        match outcome {
            Ok(change) => {
                change(&mut agent.local);
                if step.ends() && !leaves_out(Mutant::RenewalAfterStop) {
                    agent.renounce();
                }
                let may_hold = agent.book.may_hold();
                let policy = agent.instruction.as_ref().map(|told| told.spec.policy);
                let stays = policy.is_some_and(|policy| may_stay_shut(&policy, may_hold));
                if matches!(step, Step::Close) && stays {
                    agent.armed_until = None;
                    self.post_disarm(i, None);
                }
            }
            Err(why) => {
                agent.local.failed(&step, fencer_runs);
                agent.not_before = now + TRY_AGAIN;
                self.say(|| format!("{i}: {step:?} failed: {why}"));
            }
        }
        self.agent(i).reported = None;
        self.look(i);
        self.turn(i);
    }

    // --- one turn ---

    pub(super) fn policy(&mut self, i: usize) -> Option<Policy> {
        self.agent(i).instruction.as_ref().map(|told| told.spec.policy)
    }

    pub(super) fn leads(book: &Notebook) -> bool {
        book.directive.as_ref().is_some_and(|it| matches!(it.order, Order::Lead { .. }))
    }

    pub(super) fn rights(&mut self, i: usize) {
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
        let held = held && newer && agent.book.is_of_grant(agent.mark);
        agent.right.lease = deadline.filter(|_| held).map(|(until, _)| until);
        let set = agent.local.in_force;
        let unprotected = agent.book.unprotected;
        let until = policy
            .and_then(|policy| agent.right.until(&policy, set, unprotected, FENCE_BUDGET_MS, now));
        agent.told.holds_lease = held;
        if held {
            self.unlatch(i);
        }
        let pausing = self.pausing(i);
        let agent = self.agent(i);
        agent.naming = match leads {
            true => Naming::decide(until, pausing.is_free(), now),
            false => Naming::Never,
        };
        agent.told.may_serve = agent.naming.may_serve();
        if let Some(pause) = pausing.may_disarm().filter(|_| leads) {
            return self.disarm_for(i, pause, pausing.unbounded);
        }
        // What is shut, and may stay so, has lost its deadline and gets the next one with the right to
        // serve.
        let may_hold = agent.book.may_hold();
        let stays = policy.is_some_and(|policy| may_stay_shut(&policy, may_hold));
        let shut = stays && agent.armed_until.is_none() && !agent.told.may_serve;
        let Some(until) = until.filter(|_| leads && !shut) else { return };
        let primary = agent.local.running && agent.local.data == Data::Present(OnDisk::Primary);
        let later = agent.armed_until.is_none_or(|at| at.is_before(until));
        if primary && later {
            agent.armed_until = Some(until);
            let arm = Self::next_arm(agent, until);
            self.post_arm(i, arm);
        }
    }

    pub(super) fn next_arm(agent: &mut Agent, until: Reading) -> Arm {
        agent.arms += 1;
        let epoch = agent.book.directive.as_ref().map_or(Epoch::NONE, |it| it.epoch);
        Arm { epoch, number: RenewalNumber(agent.arms), until }
    }

    /// Rights, the next step, words to the coordinators.
    pub fn turn(&mut self, i: usize) {
        self.note_refusal(i);
        self.rights(i);
        self.carry(i);
        let (now, read) = (self.now, self.hosts[i].machine.read(self.now));
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
            let world = agent.local.world(&agent.told, read);
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
        self.prepare(i);
        self.report(i);
        self.publish(i);
    }

    pub(super) fn take(&mut self, i: usize, step: Step) {
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
                let (timeline, mut switch) = (at.timeline, at.end);
                if let Some((Ask::Promoted { epoch: of, timeline: on, switch: said }, _)) =
                    self.agent(i).asked.get("promoted")
                    && (*of, *on) == (epoch, timeline)
                {
                    switch = *said;
                }
                self.ask_once(i, "promoted", Ask::Promoted { epoch, timeline, switch });
            }
            step => self.spawn(i, step),
        }
    }

    pub(super) fn spawn(&mut self, i: usize, step: Step) {
        let id = self.fresh();
        let agent = self.agent(i);
        agent.local.begins(&step);
        let arm = match step {
            Step::StartPrimary | Step::Promote(_) => {
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

    pub(super) fn send_receipt(&mut self, i: usize) {
        let instance = self.name_of(i);
        let agent = self.agent(i);
        let Some(pledge) = agent.book.pledge.clone() else { return };
        let receipt = Receipt {
            instance,
            fence: pledge.fence,
            proof: pledge.proof,
            position: pledge.position,
            boot: agent.book.boot,
            nonce: agent.nonce,
            generation: agent.local.generation,
            is_proven: pledge.is_proven,
        };
        let stopped = self.stopped(i);
        self.ask_once(i, "receipt", Ask::Receipt(Box::new(receipt), stopped));
    }

    pub(super) fn ask_once(&mut self, i: usize, what: &'static str, ask: Ask) {
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
    pub(super) fn report(&mut self, i: usize) {
        let (now, read) = (self.now, self.hosts[i].machine.read(self.now));
        let agent = self.agent(i);
        let Some(stream) = agent.stream else { return };
        if agent.reported.is_some_and(|at| now - at < REPORT_EVERY) {
            return;
        }
        agent.reported = Some(now);
        let mut seen = agent.local.observation(&agent.told, &agent.book, read);
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
    }
}
