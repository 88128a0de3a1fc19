//! A small world: the state, a leader that decides, and three instances that do what the core's
//! [`next`] says. Time is a number; a tick is 50 ms.
//!
//! After every tick: at most one instance is open to clients under the newest epoch, epochs rise,
//! and who is open holds everything that was ever acknowledged.

use std::collections::BTreeMap;

use crate::agent::notebook::Taken;
use crate::agent::tests::{does, standby};
use crate::agent::{Data, Notebook, OnDisk, Step, World, next};
use crate::authz::{Principal, Role};
use crate::command::{Command, Entry, Expect, FullRenewal, Renewal};
use crate::decide::Decision;
use crate::decide::facts::Facts;
use crate::decide::roles::{Roles, View, expected};
use crate::id::{
    Epoch, Incarnation, InstanceName, Locality, Nonce, RenewalNumber, Revision, ServiceName,
    SessionId,
};
use crate::lease::skew::SkewVerdict;
use crate::reply::{RenewalOutcome, Reply};
use crate::role::observe::{Observation, Probe, Receiver, Run, Sender, Sight};
use crate::role::{
    AgentStart, Armed, DataIdentity, FenceKind, HolderInstant, HolderReport, Lsn, MachineBoot,
    Order, Position, Proof, Receipt, StopInstant, Watermark,
};
use crate::spec::{Engine, InstanceSpec, Mode, Policy, ServiceSpec, TopologyKind};
use crate::state::State;
use crate::state::role::row::{Operation, ServiceRole};
use crate::state::version::FEATURE_LEVEL;
use crate::time::{Micros, Reading, WallMs};
use crate::timing::Timing;

pub const TICK: u64 = 50;

pub fn name(text: &str) -> InstanceName {
    text.parse().unwrap()
}

pub fn service() -> ServiceName {
    "s".parse().unwrap()
}

pub fn at(ms: u64) -> Reading {
    Reading::at_us(ms * 1_000)
}

pub fn spec(mode: Mode) -> ServiceSpec {
    let instance = |(at, name): (usize, &str)| InstanceSpec {
        name: self::name(name),
        locality: Locality { region: "r".into(), zone: format!("z{at}"), host: format!("h{at}") },
        address: format!("{name}:5432"),
        priority: 1,
    };
    ServiceSpec {
        name: service(),
        description: String::new(),
        engine: Engine::Postgres,
        topology: TopologyKind::ActivePassive,
        instances: ["a", "b", "c"].into_iter().enumerate().map(instance).collect(),
        partitions: Vec::new(),
        policy: Policy { failover_cooldown_ms: 0, ..Policy::default_for(mode) },
    }
}

/// One instance with its agent.
pub struct Sim {
    pub notebook: Notebook,
    pub world: World,
    pub wal: Position,
    /// Its host is cut off: nobody hears it, and it hears nobody. What runs goes on.
    pub cut: bool,
    /// Nothing arrives of what is streamed to it.
    pub starves: bool,
    session: SessionId,
    number: u64,
}

pub struct Bench {
    pub state: State,
    pub facts: Facts,
    pub agents: BTreeMap<&'static str, Sim>,
    pub now: u64,
    /// Everything that was proposed, by its variant's name.
    pub proposed: Vec<String>,
    pub lines: Vec<String>,
    pub roles: Roles,
    acked: u64,
    forked_at: u64,
    highest: Epoch,
}

impl Bench {
    /// Three instances whose agents have started; nobody is primary yet.
    pub fn new(spec: ServiceSpec) -> Self {
        Self::new_at(spec, FEATURE_LEVEL)
    }

    fn new_at(spec: ServiceSpec, level: u32) -> Self {
        let mut bench = Self {
            state: State::default(),
            facts: Facts::default(),
            agents: BTreeMap::new(),
            now: 1_000,
            proposed: Vec::new(),
            lines: Vec::new(),
            roles: Roles::default(),
            acked: 0,
            forked_at: 0,
            highest: Epoch::NONE,
        };
        let incarnation = Incarnation { counter: 1, id: 7 };
        let (cluster, timing) = ("lab".into(), Timing::LAN);
        bench.apply(Command::Bootstrap { incarnation, cluster, timing });
        bench.apply(Command::RaiseFeatureLevel { to: level });
        bench.put(spec);
        for (who, disk) in [("a", 1), ("b", 2), ("c", 3)] {
            bench.start(who, disk);
        }
        bench
    }

    /// With `a` as primary, everybody streaming, no operation under way.
    pub fn established(spec: ServiceSpec) -> Self {
        Self::established_at(spec, FEATURE_LEVEL)
    }

    /// The same in a cluster that has come no further than to this level.
    pub fn established_at(spec: ServiceSpec, level: u32) -> Self {
        let mut bench = Self::new_at(spec, level);
        bench.quiesce();
        assert_eq!(bench.holder(), "a");
        bench.proposed.clear();
        bench.lines.clear();
        bench
    }

    pub fn put(&mut self, spec: ServiceSpec) {
        self.apply(Command::PutService { spec: Box::new(spec), expect: Expect::Any });
    }

    fn start(&mut self, who: &'static str, disk: u64) {
        let by = Principal::new(Role::Agent, format!("s/{who}"));
        let open = Command::OpenSession {
            ttl_ms: 3_000,
            renew_interval_ms: 300,
            fence_budget_ms: 250,
            nonce: Nonce(disk),
            label: who.into(),
        };
        let Reply::SessionOpened { session, .. } = self.apply_as(&by, open) else { panic!() };
        let wal = Position { epoch: Epoch::NONE, end: Lsn(100), timeline: 1 };
        let data = DataIdentity {
            system: 1,
            generation: disk,
            epoch: Epoch::NONE,
            position: Some(wal),
            out_of_recovery: who == "a",
        };
        let start = AgentStart {
            session,
            nonce: Nonce(disk),
            boot: 0,
            disk,
            seen: Default::default(),
            data: Some(data),
            fencer: Armed::Armed,
            run: Nonce(0),
        };
        let (start, instance) = (Box::new(start), name(who));
        let reply =
            self.apply_as(&by, Command::AcceptStart { service: service(), instance, start });
        assert!(matches!(reply, Reply::StartAccepted { .. }), "{reply:?}");
        let on_disk = if who == "a" { OnDisk::Primary } else { OnDisk::Standby(None) };
        let world = World {
            me: name(who),
            run: Run::Down,
            answers: false,
            has_receiver: false,
            replayed: false,
            data: Data::Present(on_disk),
            written: Epoch::NONE,
            ..standby()
        };
        let notebook = Notebook { boot: 1, disk, ..Notebook::default() };
        let sim = Sim { notebook, world, wal, cut: false, starves: false, session, number: 0 };
        self.agents.insert(who, sim);
    }

    pub fn apply_as(&mut self, by: &Principal, command: Command) -> Reply {
        let entry = Entry::new(WallMs(self.now), by.clone(), None, &command).encode();
        let applied = self.state.apply(self.state.revision().next(), &entry);
        self.state.check().unwrap();
        applied.reply
    }

    pub fn apply(&mut self, command: Command) -> Reply {
        self.apply_as(&Principal::new(Role::Client, "ann"), command)
    }

    pub fn role(&self) -> &ServiceRole {
        &self.state.roles()[&service()]
    }

    pub fn holder(&self) -> &str {
        self.role().holder.as_ref().map_or("", |name| name.as_str())
    }

    pub fn operation(&self) -> &Operation {
        &self.state.operations()[&(service(), self.role().operation.unwrap())]
    }

    pub fn fence(&self) -> Revision {
        self.role().fence.as_ref().unwrap().fence
    }

    pub fn switchover(&mut self, to: Option<&str>) {
        let kind = FenceKind::Switchover { to: to.map(name) };
        self.open_fence(kind);
    }

    pub fn open_fence(&mut self, kind: FenceKind) {
        let (seen, reason) = (self.role().epoch, "because".to_owned());
        let reply = self.apply(Command::OpenFence { service: service(), kind, seen, reason });
        assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
    }

    /// A receipt as the agent would send it, from a test that drives no agents.
    pub fn receipt(&mut self, who: &str, proof: Proof, end: Option<u64>, is_proven: bool) {
        let row = &self.role().instances[&name(who)];
        let epoch = self.role().epoch;
        let receipt = Receipt {
            instance: name(who),
            fence: self.fence(),
            proof,
            position: end.map(|end| Position { epoch, end: Lsn(end), timeline: 1 }),
            boot: row.boot,
            nonce: row.nonce,
            generation: row.disk,
            is_proven,
        };
        let by = Principal::new(Role::Agent, format!("s/{who}"));
        let command = self.ends(who, receipt);
        let reply = self.apply_as(&by, command);
        assert!(matches!(reply, Reply::Done { .. } | Reply::Unchanged { .. }), "{reply:?}");
    }

    pub fn decide(&mut self) -> Decision {
        let view = View {
            state: &self.state,
            facts: &self.facts,
            term: Some(1),
            skew: SkewVerdict::Agrees,
            now: at(self.now),
            wall: WallMs(self.now),
        };
        let decision = self.roles.decide(&view);
        for command in &decision.commands {
            let text = format!("{command:?}");
            self.proposed.push(text.split([' ', '{']).next().unwrap().to_owned());
        }
        self.lines.extend(decision.report.iter().map(ToString::to_string));
        decision
    }

    /// Decides for `ms` without agents: `fresh` say again what they said last.
    pub fn decide_for(&mut self, fresh: &[&str], ms: u64) {
        let until = self.now + ms;
        while self.now < until {
            self.now += TICK;
            for who in fresh {
                self.says(who, |_| {});
            }
            self.decide_and_apply();
        }
    }

    /// What an agent says now, other than before.
    pub fn says(&mut self, who: &str, change: impl FnOnce(&mut Observation)) {
        let fact = self.facts.of(&service(), &name(who)).unwrap();
        let mut observation = fact.observation.clone();
        change(&mut observation);
        self.facts.observed(&service(), &name(who), observation, Micros(0), at(self.now));
    }

    /// The proposals since the last call.
    pub fn proposals(&mut self) -> Vec<String> {
        std::mem::take(&mut self.proposed)
    }

    fn decide_and_apply(&mut self) {
        for command in self.decide().commands {
            let text = format!("{command:?}");
            let reply = self.apply_as(&Principal::cluster(), command);
            assert!(!matches!(reply, Reply::Rejected(_)), "{text}: {reply:?}");
        }
    }

    pub fn run(&mut self, ms: u64) {
        let until = self.now + ms;
        while self.now < until {
            self.tick();
        }
    }

    /// Until nothing is proposed and nobody does anything for a second.
    pub fn quiesce(&mut self) {
        for _ in 0..600 {
            let before = (self.proposed.len(), self.state.roles()[&service()].changed);
            self.run(1_000);
            if before == (self.proposed.len(), self.role().changed) && self.now > 4_000 {
                return;
            }
        }
        panic!("it never comes to rest: {:#?}", self.lines);
    }

    pub fn tick(&mut self) {
        self.now += TICK;
        for who in ["a", "b", "c"] {
            self.hear(who);
            self.renew(who);
            for _ in 0..3 {
                self.step(who);
            }
        }
        self.stream();
        for who in ["a", "b", "c"] {
            self.report(who);
        }
        self.decide_and_apply();
        self.check();
    }

    fn hear(&mut self, who: &str) {
        let role = self.state.roles()[&service()].clone();
        let sim = self.agents.get_mut(who).unwrap();
        if sim.cut {
            return;
        }
        let directive = &role.instances[&name(who)].directive;
        if sim.notebook.take(directive) == Taken::New {
            (sim.world.diverged, sim.world.replayed, sim.world.committed) = (None, false, None);
        }
        sim.world.timeline = role.timeline;
        let spec = &self.state.services()[&service()].spec;
        sim.world.expected = expected(spec, &role) == Some(&name(who));
        sim.world.promoted = role.promoted.map_or(Epoch::NONE, |_| role.epoch);
        let covered = role.set.as_ref().filter(|_| role.is_covered());
        sim.world.covered = covered.map(|set| set.revision);
    }

    fn renew(&mut self, who: &str) {
        let sim = self.agents.get_mut(who).unwrap();
        sim.world.holds_lease = false;
        let leads = sim
            .notebook
            .directive
            .as_ref()
            .is_some_and(|directive| matches!(directive.order, Order::Lead { .. }));
        if sim.cut {
            // F: an unlatched certificate lasts as long as commits return; here that is never.
            sim.world.may_serve = false;
            return;
        }
        sim.number += 1;
        let (session, nonce) = (sim.session, Nonce(sim.notebook.disk));
        let number = RenewalNumber(sim.number);
        let lease = self.state.roles()[&service()].lease.clone();
        let mark = lease.filter(|lease| lease.session == session).map(|lease| lease.mark);
        let known_grant = mark.unwrap_or_default();
        let acked = RenewalNumber(number.0 - 1);
        let renewal = Renewal { session, nonce, number, acked, known_grant };
        let report = mark.map(|_| Box::new(self.report_of(who)));
        let command = Command::renew(&[FullRenewal { renewal, report }], FEATURE_LEVEL);
        let reply = self.apply_as(&Principal::cluster(), command);
        let Reply::Renewed { outcomes, .. } = reply else { panic!("{reply:?}") };
        let extended = matches!(outcomes[0], RenewalOutcome::Extended { .. });
        let sim = self.agents.get_mut(who).unwrap();
        sim.world.holds_lease = extended && leads && mark.is_some();
        sim.world.may_serve = sim.world.holds_lease;
        if outcomes[0] == RenewalOutcome::SessionGone && self.role().fence.is_none() {
            self.reopen(who);
        }
    }

    /// What its renewal says of a holder; a machine's clock is that of the world.
    fn report_of(&self, who: &str) -> HolderReport {
        let sim = &self.agents[who];
        let sent = HolderInstant(self.now * 1_000);
        HolderReport {
            armed: Armed::Armed,
            boot: MachineBoot(sim.notebook.disk),
            sent,
            watermark: Some(Watermark { at: sim.wal, sampled: sent }),
            pause: None,
            policy: self.state.services()[&service()].changed,
            set: sim.world.in_force,
        }
    }

    /// As [`Command::RecordReceipt`], with the instant at which all had ended.
    fn ends(&self, who: &str, receipt: Receipt) -> Command {
        let (service, receipt) = (service(), Box::new(receipt));
        if receipt.proof < Proof::Stopped {
            return Command::RecordReceipt { service, receipt };
        }
        let boot = MachineBoot(self.agents[who].notebook.disk);
        let stopped = StopInstant { boot, at: HolderInstant(self.now * 1_000) };
        Command::RecordStop { service, receipt, stopped }
    }

    /// A new session of the same start, after a fence ended the old one.
    fn reopen(&mut self, who: &str) {
        let by = Principal::new(Role::Agent, format!("s/{who}"));
        let sim = &self.agents[who];
        let nonce = Nonce(sim.notebook.disk);
        let row = &self.role().instances[&name(who)];
        let mut start = AgentStart {
            session: SessionId(0),
            nonce,
            boot: row.boot,
            disk: row.disk,
            seen: sim.notebook.seen(),
            data: row.data,
            fencer: Armed::Armed,
            run: Nonce(0),
        };
        let open = Command::OpenSession {
            ttl_ms: 3_000,
            renew_interval_ms: 300,
            fence_budget_ms: 250,
            nonce,
            label: who.into(),
        };
        let Reply::SessionOpened { session, .. } = self.apply_as(&by, open) else { panic!() };
        start.session = session;
        let (start, instance) = (Box::new(start), name(who));
        let reply =
            self.apply_as(&by, Command::AcceptStart { service: service(), instance, start });
        assert!(matches!(reply, Reply::StartAccepted { .. }), "{reply:?}");
        let sim = self.agents.get_mut(who).unwrap();
        (sim.session, sim.number) = (session, 0);
    }

    fn step(&mut self, who: &str) {
        let forked_at = self.forked_at;
        let end = self.wal_of_primary();
        let sim = self.agents.get_mut(who).unwrap();
        sim.world.position = match sim.world.run {
            Run::Down => sim.world.shut_down.then_some(sim.wal),
            Run::Standby => sim.world.replayed.then_some(sim.wal),
            _ => Some(sim.wal),
        };
        sim.world.received = Some(sim.wal);
        let step = next(&sim.notebook, &sim.world);
        // What nobody hears is not sent, and who is not reached is not followed.
        let needs_others = matches!(
            step,
            Step::SendReceipt
                | Step::ReportCovered(_)
                | Step::ReportPromoted(_)
                | Step::Compare(_)
                | Step::Rewind(_)
                | Step::Clone(_)
        );
        if sim.cut && needs_others {
            return;
        }
        does(&step, &mut sim.notebook, &mut sim.world);
        match &step {
            Step::Kill | Step::ShutDown => {
                (sim.world.names, sim.world.in_force) = (None, None);
                sim.world.open = false;
            }
            Step::StartStandby(_) | Step::StartPrimary => sim.world.shut_down = false,
            Step::Promote(timeline) => {
                sim.wal.timeline = *timeline;
                self.forked_at = sim.wal.end.0;
            }
            Step::WriteEpoch(epoch) => {
                sim.wal.epoch = *epoch;
                sim.wal.end.0 += 1;
            }
            Step::Compare(_) => {
                let left =
                    sim.wal.end.0 > forked_at && Some(sim.wal.epoch) < end.map(|at| at.epoch);
                sim.world.diverged = Some(left);
            }
            Step::Rewind(_) | Step::Clone(_) => {
                sim.wal.end.0 = forked_at;
                sim.world.written = sim.wal.epoch;
            }
            Step::SendReceipt => self.send_receipt(who),
            Step::ReportCovered(set) => {
                let (epoch, set) = (sim.notebook.led, *set);
                self.say(who, Command::ConfirmCovered { service: service(), epoch, set });
            }
            Step::ReportPromoted(epoch) => {
                let (timeline, switch) = (sim.wal.timeline, Lsn(forked_at));
                let epoch = *epoch;
                let service = service();
                self.say(who, Command::RecordPromotion { service, epoch, timeline, switch });
            }
            _ => {}
        }
    }

    fn say(&mut self, who: &str, command: Command) -> Reply {
        let by = Principal::new(Role::Agent, format!("s/{who}"));
        let reply = self.apply_as(&by, command);
        assert!(!matches!(reply, Reply::Rejected(_)), "{who}: {reply:?}");
        reply
    }

    fn send_receipt(&mut self, who: &str) {
        let pledge = self.agents[who].notebook.pledge.clone().unwrap();
        let row = &self.role().instances[&name(who)];
        let receipt = Receipt {
            instance: name(who),
            fence: pledge.fence,
            proof: pledge.proof,
            position: pledge.position,
            boot: row.boot,
            nonce: row.nonce,
            generation: row.disk,
            is_proven: pledge.is_proven,
        };
        let command = self.ends(who, receipt);
        self.say(who, command);
    }

    /// The primary that standbys can stream from: it runs, and is not cut off.
    fn wal_of_primary(&self) -> Option<Position> {
        let runs = |sim: &&Sim| sim.world.run == Run::Primary && !sim.cut;
        self.agents.values().filter(runs).map(|sim| sim.wal).max()
    }

    fn is_streaming(&self, who: &str) -> Option<&'static str> {
        let sim = &self.agents[who];
        let from = sim.world.upstream()?.as_ref().filter(|_| sim.world.has_receiver)?;
        let (from, up) = self.agents.iter().find(|(name, _)| **name == from.as_str())?;
        let order = sim.notebook.directive.as_ref().map(|directive| &directive.order);
        let fetches = matches!(order, Some(Order::Fetch { .. })) && up.world.run == Run::Standby;
        let runs = (up.world.run == Run::Primary || fetches) && up.cut == sim.cut;
        (sim.world.run == Run::Standby && runs && !sim.starves).then_some(*from)
    }

    /// Clients write, standbys follow, commits are acknowledged as the names in force say.
    fn stream(&mut self) {
        for sim in self.agents.values_mut() {
            if sim.world.run == Run::Primary && sim.world.open {
                sim.wal.end.0 += 10;
            }
        }
        for who in ["a", "b", "c"] {
            let Some(from) = self.is_streaming(who) else { continue };
            let wal = self.agents[from].wal;
            let sim = self.agents.get_mut(who).unwrap();
            sim.wal = wal;
            sim.world.written = wal.epoch;
        }
        let mut acked = self.acked;
        for (who, sim) in &self.agents {
            let set = sim.notebook.directive.as_ref().and_then(|it| match &it.order {
                Order::Lead { set } => Some(set),
                _ => None,
            });
            let Some(set) = set.filter(|set| sim.world.in_force == Some(set.revision)) else {
                continue;
            };
            let streams = |other: &&InstanceName| self.is_streaming(other.as_str()) == Some(*who);
            let have = set.members.iter().filter(streams).count();
            if sim.world.run == Run::Primary && sim.world.open && have >= set.k as usize {
                acked = acked.max(sim.wal.end.0);
            }
        }
        self.acked = acked;
    }

    /// What an agent reports, every 200 ms.
    fn report(&mut self, who: &str) {
        let sim = &self.agents[who];
        if sim.cut || !self.now.is_multiple_of(200) {
            return;
        }
        let others = self.agents.iter().filter(|(other, _)| **other != who);
        let senders =
            others.clone().filter(|(other, _)| self.is_streaming(other) == Some(static_name(who)));
        let receiver = sim.world.upstream().cloned().flatten().filter(|_| sim.world.has_receiver);
        let streams = self.is_streaming(who).is_some();
        let observation = Observation {
            run: sim.world.run,
            position: (sim.world.run != Run::Down).then_some(sim.wal),
            receiver: receiver.map(|from| Receiver {
                from: Some(from),
                streams,
                silent_ms: if streams { 0 } else { 10_000 },
            }),
            senders: senders
                .map(|(to, sim)| Sender {
                    to: name(to),
                    streams: true,
                    is_sync: true,
                    flushed: sim.wal.end,
                })
                .collect(),
            probe: Probe::Answered(1),
            set_in_force: sim.world.in_force,
            sights: others
                .map(|(other, sim)| Sight {
                    instance: name(other),
                    answered_ms: Some(if sim.cut { 10_000 } else { 0 }),
                    refused: !sim.cut && sim.world.run == Run::Down,
                    tried_ms: 0,
                })
                .collect(),
            ..Observation::default()
        };
        self.facts.observed(&service(), &name(who), observation, Micros(0), at(self.now));
    }

    fn check(&mut self) {
        let epoch = self.role().epoch;
        assert!(epoch >= self.highest, "S3: {epoch} after {}", self.highest);
        self.highest = epoch;
        let open: Vec<_> = self
            .agents
            .iter()
            .filter(|(_, sim)| sim.world.run == Run::Primary && sim.world.open)
            .filter(|(_, sim)| sim.notebook.led == epoch)
            .collect();
        assert!(open.len() <= 1, "S1: two are open under {epoch}");
        for (who, sim) in open {
            assert!(sim.wal.end.0 >= self.acked, "S2: {who} lacks {}", self.acked);
        }
    }

    /// Who is open to clients under the newest epoch.
    pub fn open(&self) -> Vec<&'static str> {
        let open = self.agents.iter().filter(|(_, sim)| {
            sim.world.run == Run::Primary && sim.world.open && sim.notebook.led == self.role().epoch
        });
        open.map(|(name, _)| *name).collect()
    }

    /// Who streams from the holder.
    pub fn streaming(&self) -> Vec<&'static str> {
        let all = ["a", "b", "c"].into_iter();
        all.filter(|who| self.is_streaming(who).is_some()).collect()
    }
}

fn static_name(who: &str) -> &'static str {
    ["a", "b", "c"].into_iter().find(|name| *name == who).unwrap()
}
