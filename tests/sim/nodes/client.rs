//! Simulated clients: sessions, campaigns, proclamations and reads, with the core's holder clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use regent_core::authz::{Principal, Role};
use regent_core::command::{Command, Request};
use regent_core::id::{ClientId, ElectionName, Epoch, Locality, Nonce, Serial, SessionId};
use regent_core::lease::holder::{Answer as RenewalAnswer, HolderSession, Standing};
use regent_core::lease::{HolderClock, Rules};
use regent_core::reply::{Rejection, Reply};
use regent_core::state::election::Election;
use regent_raft::runtime::SimNode;

use super::leases;
use super::network::ask;
use super::node::{Handle, TIMING, entry, read_index, submit};
use super::options::Mutant;
use super::world::{Addr, Answer, World};

/// Elections the clients fight over.
const ELECTIONS: [&str; 2] = ["a", "b"];
const ASK: Duration = Duration::from_millis(700);
const ON_NODE: Duration = Duration::from_millis(500);

/// One client process.
#[derive(Clone)]
pub struct Client {
    /// Where it is.
    pub addr: Addr,
    /// Its tasks.
    pub life: SimNode,
    core: Arc<Mutex<Core>>,
    world: World,
}

struct Core {
    home: u64,
    nonce: Nonce,
    serial: u64,
    holder: Option<HolderClock>,
    grants: BTreeMap<ElectionName, Epoch>,
    /// Given up or over; never taken up again.
    over: BTreeSet<Epoch>,
    busy: bool,
}

fn election(name: &str) -> ElectionName {
    ElectionName::parse(name).expect("a fixed, valid name")
}

/// Starts a client process.
pub fn start(world: &World, addr: Addr) -> Client {
    let core = Core {
        home: 1,
        nonce: Nonce(world.seed()),
        serial: 0,
        holder: None,
        grants: BTreeMap::new(),
        over: BTreeSet::new(),
        busy: false,
    };
    let client = Client {
        addr,
        life: SimNode::new(),
        core: Arc::new(Mutex::new(core)),
        world: world.clone(),
    };
    world.set_client(client.clone());
    drop(client.life.spawn(world.seed(), client.clone().run()));
    client
}

impl Client {
    /// Elections it may act in right now, by its own clock.
    pub fn held(&self) -> Vec<(ElectionName, Epoch, SessionId)> {
        let now = self.world.reading(self.addr);
        let core = self.core.lock();
        let Some(clock) = &core.holder else { return Vec::new() };
        let mut clock = clock.clone();
        let session = clock.session().session;
        core.grants
            .iter()
            .filter(|(_, epoch)| clock.is_held(now, **epoch))
            .map(|(name, epoch)| (name.clone(), *epoch, session))
            .collect()
    }

    async fn run(self) {
        loop {
            let pause = self.world.between(10, 40);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            self.renew();
            self.act();
        }
    }

    /// Sends a renewal when one is due.
    fn renew(&self) {
        let now = self.world.reading(self.addr);
        let renewal = {
            let mut core = self.core.lock();
            let Some(clock) = &mut core.holder else { return };
            let due = clock.due_at();
            if due.is_none_or(|due| due.boottime_us > now.boottime_us) {
                return;
            }
            clock.next(now)
        };
        let client = self.clone();
        let send = async move {
            let command = Command::RenewSessions { renewals: vec![renewal] };
            let Some(Reply::Renewed { outcomes, .. }) = client.propose(&command, None, 2).await
            else {
                return;
            };
            let now = client.world.reading(client.addr);
            {
                let mut core = client.core.lock();
                let clock = core.holder.as_mut().filter(|c| c.session().session == renewal.session);
                if let (Some(clock), Some(outcome)) = (clock, outcomes.first()) {
                    clock.answered(renewal.number, RenewalAnswer::Outcome(*outcome), now);
                }
            }
            leases::look(&client.world);
        };
        drop(self.life.spawn(self.world.seed(), send));
    }

    /// Begins one act, unless one is under way.
    fn act(&self) {
        {
            let mut core = self.core.lock();
            if core.busy {
                return;
            }
            core.busy = true;
        }
        let client = self.clone();
        let work = async move {
            client.one_act().await;
            client.core.lock().busy = false;
        };
        drop(self.life.spawn(self.world.seed(), work));
    }

    async fn one_act(&self) {
        let open = {
            let mut core = self.core.lock();
            if core.holder.as_ref().is_some_and(|clock| clock.void_reason().is_some()) {
                core.holder = None;
                core.grants.clear();
            }
            core.holder.as_ref().map(|clock| *clock.session())
        };
        let Some(session) = open else { return self.open().await };
        let name = election(ELECTIONS[self.world.below(2) as usize]);
        let epoch = self.core.lock().grants.get(&name).copied();
        let standing = epoch.and_then(|epoch| {
            let now = self.world.reading(self.addr);
            self.core.lock().holder.as_mut().map(|clock| (epoch, clock.standing(now, epoch)))
        });
        match standing {
            Some((epoch, Standing::Held)) => {
                self.world.checker().stats.held += 1;
                leases::write(&self.world, &name, epoch);
                match self.world.below(20) {
                    0 => self.resign(&session, &name, epoch).await,
                    1 => self.read(&session, &name).await,
                    _ => self.proclaim(&session, &name, epoch).await,
                }
            }
            Some((epoch, Standing::Over)) => self.resign(&session, &name, epoch).await,
            Some((_, Standing::Unconfirmed)) => self.read(&session, &name).await,
            None => match self.world.below(40) {
                0 => self.close(&session).await,
                1..=15 => self.campaign(&session, &name).await,
                _ => self.read(&session, &name).await,
            },
        }
    }

    async fn open(&self) {
        let least = TIMING.least_ttl_ms(250);
        let ttl_ms = least + self.world.below(2) * 1_500;
        let renew_interval_ms = (ttl_ms / 10).clamp(1, 500);
        let nonce = self.core.lock().nonce;
        let command = Command::OpenSession {
            ttl_ms,
            renew_interval_ms,
            fence_budget_ms: 250,
            nonce,
            label: format!("client {}", self.addr),
        };
        let Some(Reply::SessionOpened { session, .. }) = self.command(&command).await else {
            return;
        };
        let loose = self.world.options().mutant == Some(Mutant::LooseHolder);
        let of = HolderSession {
            session,
            nonce,
            incarnation: 1,
            ttl_ms: if loose { 3 * ttl_ms } else { ttl_ms },
            renew_interval_ms,
            fence_budget_ms: 250,
        };
        let mut core = self.core.lock();
        core.holder = Some(HolderClock::new(of, Rules::LAW));
        core.grants.clear();
    }

    async fn campaign(&self, session: &HolderSession, name: &ElectionName) {
        let command = Command::Campaign {
            election: name.clone(),
            session: session.session,
            nonce: session.nonce,
            priority: 0,
            locality: Locality::default(),
            value: Vec::new(),
        };
        match self.command(&command).await {
            Some(Reply::Granted { epoch, .. }) => self.granted(session, name, epoch),
            Some(Reply::Rejected(Rejection::SessionGone { .. })) => self.gone(session),
            _ => {}
        }
    }

    fn granted(&self, session: &HolderSession, name: &ElectionName, epoch: Epoch) {
        {
            let mut core = self.core.lock();
            if core.over.contains(&epoch) {
                return;
            }
            let Some(clock) = core.holder.as_mut() else { return };
            if clock.session().session == session.session {
                clock.granted(epoch);
                core.grants.insert(name.clone(), epoch);
            }
        }
        leases::look(&self.world);
    }

    fn gone(&self, session: &HolderSession) {
        let mut core = self.core.lock();
        let clock = core.holder.as_mut().filter(|c| c.session().session == session.session);
        if let Some(clock) = clock {
            clock.void(regent_core::lease::holder::VoidReason::SessionGone);
        }
    }

    async fn resign(&self, session: &HolderSession, name: &ElectionName, epoch: Epoch) {
        {
            let mut core = self.core.lock();
            core.over.insert(epoch);
            core.grants.remove(name);
            if let Some(clock) = core.holder.as_mut() {
                clock.give_up(epoch);
            }
        }
        let command = Command::ResignEpoch {
            election: name.clone(),
            session: session.session,
            nonce: session.nonce,
            epoch,
        };
        self.command(&command).await;
    }

    async fn close(&self, session: &HolderSession) {
        self.core.lock().holder = None;
        self.core.lock().grants.clear();
        let command = Command::CloseSession { session: session.session, nonce: session.nonce };
        self.command(&command).await;
    }

    async fn proclaim(&self, session: &HolderSession, name: &ElectionName, epoch: Epoch) {
        let value = self.world.seed().to_be_bytes().to_vec();
        let command = Command::Proclaim {
            election: name.clone(),
            session: session.session,
            epoch,
            value: value.clone(),
        };
        let reply = self.command(&command).await;
        let Some(Reply::Rejected(why)) = reply else { return };
        let now = self.world.reading(self.addr);
        let held = self.core.lock().holder.as_mut().is_some_and(|c| c.is_held(now, epoch));
        let taken = matches!(
            why,
            Rejection::EpochStale { .. }
                | Rejection::NotHolder { .. }
                | Rejection::SessionGone { .. }
        );
        if held && taken && self.world.within_a1() {
            self.world.violation(format!(
                "S5: client {} holds {name} under {epoch}, but was refused: {why}",
                self.addr
            ));
        }
        self.gone_if(session, &why);
    }

    fn gone_if(&self, session: &HolderSession, why: &Rejection) {
        if matches!(why, Rejection::SessionGone { .. }) {
            self.gone(session);
        }
    }

    /// A linearizable read; finds grants, too.
    async fn read(&self, session: &HolderSession, name: &ElectionName) {
        let floor = self.world.checker().acked;
        let home = self.core.lock().home;
        let (key, world) = (name.clone(), self.world.clone());
        let question = move |node: Handle| {
            async move {
                if world.options().mutant != Some(Mutant::LocalReads) {
                    let at = read_index(&node, ON_NODE).await?;
                    if world.options().mutant != Some(Mutant::ReadUnapplied) {
                        node.consensus.wait_applied(at, ON_NODE).await.ok()?;
                    }
                }
                let state = node.consensus.state();
                let state = state.read();
                let row: Option<Arc<Election>> = state.elections().get(&key).cloned();
                Some((state.revision(), row))
            }
            .boxed()
        };
        let answer = ask(&self.world, self.addr, home, ASK, question).await.got().flatten();
        let Some((revision, row)) = answer else { return self.move_on() };
        if revision < floor {
            self.world.violation(format!(
                "S11: client {} read revision {revision} at node {home}, but {floor} was known \
                 before it asked",
                self.addr
            ));
        }
        {
            let mut checker = self.world.checker();
            checker.stats.reads += 1;
            checker.acknowledged(revision);
        }
        let holder = row.as_ref().and_then(|row| row.holder.as_ref());
        match holder.filter(|holder| holder.session == session.session) {
            Some(holder) => self.granted(session, name, holder.epoch),
            None => {
                self.core.lock().grants.remove(name);
            }
        }
    }

    fn move_on(&self) {
        let nodes: Vec<u64> = self.world.nodes().iter().map(|node| node.id).collect();
        if let Some(home) = self.world.pick(&nodes) {
            self.core.lock().home = home;
        }
    }

    /// A command under a number of its own, sent again until it is answered or hope is lost.
    async fn command(&self, command: &Command) -> Option<Reply> {
        let request = {
            let mut core = self.core.lock();
            core.serial += 1;
            Request { client: ClientId(core.nonce.0), serial: Serial(core.serial) }
        };
        self.propose(command, Some(request), 6).await
    }

    async fn propose(
        &self,
        command: &Command,
        request: Option<Request>,
        tries: u32,
    ) -> Option<Reply> {
        let by = Principal::new(Role::Client, format!("c{}", self.addr));
        let bytes = entry(by, request, command);
        for _ in 0..tries {
            let (home, bytes) = (self.core.lock().home, bytes.clone());
            let question = move |node: Handle| submit(node, bytes, ON_NODE).boxed();
            match ask(&self.world, self.addr, home, ASK, question).await {
                Answer::Got(Ok(reply)) => {
                    self.world.trace(self.addr, home, 5, || {
                        format!("client {} {command:?} -> {reply:?}", self.addr)
                    });
                    let mut checker = self.world.checker();
                    checker.stats.acks += 1;
                    if let Some(revision) = reply.revision() {
                        checker.acknowledged(revision);
                    }
                    return Some(reply);
                }
                Answer::Got(Err(_)) | Answer::Refused | Answer::Lost => {
                    let pause = self.world.between(5, 60);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                    self.move_on();
                }
            }
        }
        None
    }
}
