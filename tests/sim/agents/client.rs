//! A lease holder: opens a session, campaigns, renews, acts while it may, resigns, dies, comes back.

use std::collections::BTreeMap;

use regent_core::command::Command;
use regent_core::id::{ElectionName, Epoch, Locality, Nonce, Revision, SessionId};
use regent_core::lease::HolderClock;
use regent_core::lease::holder::{Answer, HolderSession, Standing};
use regent_core::reply::{RenewalOutcome, Reply};
use regent_core::time::{Micros, Reading};

use super::Mutant;
use super::machine::{MS, Machine, SECOND, Time};
use super::queue::{Answered, CallId, Event, Flight, ToClient, ToNode};
use super::world::World;

/// What clients need to stop acting: most little, some (with a ttl that allows it) much.
const FENCE_BUDGETS_MS: [u64; 2] = [250, 2_000];
/// Elections there are.
const ELECTIONS: u64 = 2;
/// About how long a renewal takes that was held up on the way; for a mutant.
const ANSWERED_AFTER: Micros = Micros::from_ms(1_500);
/// A call without an answer is tried again at another node after this.
const CALL_TIMEOUT: Time = 1_500 * MS;

/// A client's place in an election.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    Queued,
    Leads {
        epoch: Epoch,
        acting: bool,
        /// What the fencer was told: at this reading, on either clock, the act has ended.
        armed: Reading,
    },
}

/// An open session.
pub struct Open {
    pub session: SessionId,
    holder: HolderClock,
    /// How long it really takes to stop.
    stops_in: Micros,
    places: BTreeMap<ElectionName, Place>,
    /// Highest grant heard of that no campaign has been asked about.
    news: bool,
    grant: Revision,
    /// First renewal without an answer since the last one.
    waiting_since: Option<Time>,
}

struct Call {
    id: CallId,
    command: Command,
    sent: Time,
}

/// One client.
pub struct Client {
    pub machine: Machine,
    node: usize,
    stream: u64,
    /// Whether answers reach it.
    pub deaf: bool,
    /// Whether its present stream could be opened: not while it was deaf.
    stream_open: bool,
    nonce: u64,
    serial: u64,
    call: Option<Call>,
    pub open: Option<Open>,
    generation: u64,
}

impl Client {
    pub fn new(machine: Machine, node: usize) -> Self {
        Self {
            machine,
            node,
            stream: 0,
            deaf: false,
            stream_open: true,
            nonce: 1,
            serial: 0,
            call: None,
            open: None,
            generation: 0,
        }
    }

    /// On what it acts at `now`, in real time: its fencer ends that by the machine's clocks, whether
    /// the client runs or not.
    pub fn acts(&self, now: Time, mutant: Option<Mutant>) -> Vec<(&ElectionName, Epoch)> {
        let reading = self.machine.read(now);
        let ended = |armed: &Reading| {
            reading.boottime_us >= armed.boottime_us || reading.raw_us >= armed.raw_us
        };
        let unguarded = mutant == Some(Mutant::CheckThenAct);
        let Some(open) = &self.open else { return Vec::new() };
        let acts = |(name, place)| match place {
            &Place::Leads { epoch, acting: true, ref armed } if unguarded || !ended(armed) => {
                Some((name, epoch))
            }
            _ => None,
        };
        open.places.iter().filter_map(acts).collect()
    }

    /// The process dies and starts again: nothing acts any more, the session is forgotten.
    pub fn die(&mut self) {
        self.open = None;
        self.call = None;
        self.nonce += 1;
        self.stream += 1;
        self.stream_open = !self.deaf;
    }
}

impl World {
    /// A client looks at what is due.
    pub fn wake(&mut self, c: usize) {
        let now = self.clients[c].machine.read(self.now);
        self.retry(c);
        self.end_if_void(c);
        if self.clients[c].open.is_none() {
            self.open_session(c);
        } else {
            self.renew_if_due(c, now);
            self.review(c);
            self.write(c);
            self.do_something(c);
        }
        self.plan_wake(c);
    }

    pub fn plan_wake(&mut self, c: usize) {
        let client = &mut self.clients[c];
        client.generation += 1;
        let now = client.machine.read(self.now);
        let due = client.open.as_ref().and_then(|open| open.holder.due_at());
        let wait = due.map_or(SECOND, |due| due.since(now).0.clamp(MS, 2 * SECOND));
        let generation = client.generation;
        let at = client.machine.real_after(self.now, wait);
        self.queue.push(at, Event::Wake { client: c, generation });
    }

    pub fn is_current_wake(&self, c: usize, generation: u64) -> bool {
        self.clients[c].generation == generation
    }

    fn change_node(&mut self, c: usize) {
        let nodes = self.nodes.len();
        let client = &mut self.clients[c];
        client.node = (client.node + 1) % nodes;
        client.stream += 1;
        // A handshake needs both directions.
        client.stream_open = !client.deaf;
    }

    fn retry(&mut self, c: usize) {
        let tardy = |call: &Call| self.now > call.sent + CALL_TIMEOUT;
        if self.clients[c].call.as_ref().is_some_and(tardy) {
            self.change_node(c);
            self.send_call(c);
        }
    }

    fn call(&mut self, c: usize, command: Command) {
        let client = &mut self.clients[c];
        client.serial += 1;
        let id = CallId { client: c, serial: client.serial };
        client.call = Some(Call { id, command, sent: self.now });
        self.send_call(c);
    }

    fn send_call(&mut self, c: usize) {
        let client = &mut self.clients[c];
        let Some(call) = &mut client.call else { return };
        call.sent = self.now;
        let message = ToNode::Command { call: call.id, command: Box::new(call.command.clone()) };
        let node = client.node;
        self.send_from(c, node, message);
    }

    fn open_session(&mut self, c: usize) {
        if self.clients[c].call.is_some() {
            return;
        }
        let ttl_ms = [4_000, 20_000, 60_000][self.random.index(3)];
        let much = usize::from(ttl_ms > 4_000 && self.random.chance(500));
        let nonce = Nonce(self.clients[c].nonce);
        let command = Command::OpenSession {
            ttl_ms,
            renew_interval_ms: ttl_ms / 10,
            fence_budget_ms: FENCE_BUDGETS_MS[much],
            nonce,
            label: String::new(),
        };
        self.call(c, command);
    }

    fn renew_if_due(&mut self, c: usize, now: Reading) {
        let client = &mut self.clients[c];
        let Some(open) = &mut client.open else { return };
        if open.holder.due_at().is_none_or(|due| due.since(now).0 > 0) {
            return;
        }
        let counted_from = match self.mutant {
            Some(Mutant::CountFromAnswer) => now.plus(ANSWERED_AFTER),
            _ => now,
        };
        let renewal = open.holder.next(counted_from);
        let since = *open.waiting_since.get_or_insert(self.now);
        let silent = Micros::from_ms(open.holder.session().ttl_ms / 4).0;
        if self.now > since + silent {
            open.waiting_since = Some(self.now);
            self.change_node(c);
        }
        let client = &self.clients[c];
        let flight = Flight { renewal, client: c, stream: client.stream };
        let node = client.node;
        if client.stream_open {
            self.send_from(c, node, ToNode::Renew(flight));
        }
    }

    /// Acts where it may, stops where it must.
    fn review(&mut self, c: usize) {
        let (mutant, real) = (self.mutant, self.now);
        let client = &mut self.clients[c];
        let now = client.machine.read(real);
        let Some(open) = &mut client.open else { return };
        let mut begins = Vec::new();
        let mut over = None;
        for (name, place) in &mut open.places {
            let Place::Leads { epoch, acting, armed } = place else { continue };
            let standing = open.holder.standing(now, *epoch);
            let until = open.holder.valid_until();
            let bold = mutant == Some(Mutant::ActUnconfirmed) && standing == Standing::Unconfirmed;
            match until {
                Some(until) if standing == Standing::Held || bold => {
                    *armed = until.plus(open.stops_in);
                    if !*acting {
                        *acting = true;
                        begins.push((name.clone(), *epoch));
                    }
                }
                _ => {
                    *acting = false;
                    if standing == Standing::Over {
                        over = Some(name.clone());
                    }
                }
            }
        }
        for (name, epoch) in begins {
            self.begin(c, &name, epoch);
        }
        if let Some(name) = over {
            self.resign(c, name);
        }
    }

    /// A client begins to act: nobody else may.
    fn begin(&mut self, c: usize, election: &ElectionName, epoch: Epoch) {
        let mut others = Vec::new();
        for (other, client) in self.clients.iter().enumerate() {
            if other != c {
                let acts = client.acts(self.now, self.mutant);
                others.extend(
                    acts.iter().filter(|(name, _)| *name == election).map(|a| (other, a.1)),
                );
            }
        }
        self.trace(&[5, c as u64, epoch.revision.0]);
        self.check.acts(c, election, epoch, &others);
    }

    /// Gives up a place: first here, then before the cluster.
    fn resign(&mut self, c: usize, election: ElectionName) {
        let client = &mut self.clients[c];
        if client.call.is_some() {
            return;
        }
        let nonce = Nonce(client.nonce);
        let Some(open) = &mut client.open else { return };
        let session = open.session;
        let command = match open.places.remove(&election) {
            Some(Place::Leads { epoch, .. }) => {
                open.holder.give_up(epoch);
                Command::ResignEpoch { election, session, nonce, epoch }
            }
            _ => Command::Resign { election, session, nonce },
        };
        self.call(c, command);
    }

    fn campaign(&mut self, c: usize, election: ElectionName) {
        let priority = self.random.below(2) as i32;
        let client = &self.clients[c];
        let Some(open) = &client.open else { return };
        let command = Command::Campaign {
            election,
            session: open.session,
            nonce: Nonce(client.nonce),
            priority,
            locality: Locality::default(),
            value: vec![c as u8],
        };
        self.call(c, command);
    }

    fn do_something(&mut self, c: usize) {
        if self.clients[c].call.is_some() {
            return;
        }
        let Some(open) = &mut self.clients[c].open else { return };
        let queued = open.places.iter().find(|(_, place)| matches!(place, Place::Queued));
        if let Some(name) = queued.map(|(name, _)| name.clone()).filter(|_| open.news) {
            // Campaigning again tells where one stands.
            open.news = false;
            self.campaign(c, name);
            return;
        }
        let name: ElectionName =
            format!("e{}", self.random.below(ELECTIONS)).parse().expect("a name");
        let place = open.places.get(&name).copied();
        let (session, nonce) = (open.session, Nonce(self.clients[c].nonce));
        match (place, self.random.below(100)) {
            (None, 0..60) => self.campaign(c, name),
            (Some(Place::Queued), 0..5) => self.campaign(c, name),
            (Some(Place::Leads { epoch, acting: true, .. }), 0..8) => {
                let value = vec![self.random.below(200) as u8];
                self.call(c, Command::Proclaim { election: name, session, epoch, value });
            }
            (Some(_), 8..10) => self.resign(c, name),
            (_, 99) if self.random.chance(100) => {
                self.clients[c].open = None;
                self.call(c, Command::CloseSession { session, nonce });
            }
            _ => {}
        }
    }

    fn end_if_void(&mut self, c: usize) {
        let client = &mut self.clients[c];
        if client.open.as_ref().is_some_and(|open| open.holder.void_reason().is_some()) {
            client.open = None;
        }
    }

    pub fn client_event(&mut self, c: usize, message: ToClient) {
        match message {
            ToClient::Answer(answered) => self.hear_answer(c, answered),
            ToClient::Reply { call, reply } => self.hear_reply(c, call, *reply),
        }
        self.plan_wake(c);
    }

    fn hear_answer(&mut self, c: usize, answered: Answered) {
        let client = &mut self.clients[c];
        let now = client.machine.read(self.now);
        let Some(open) = &mut client.open else { return };
        if open.session != answered.session {
            return;
        }
        if client.stream == answered.stream {
            open.waiting_since = None;
        }
        let extended = open.holder.answered(answered.number, answered.answer, now);
        self.check.stats.renewals += u64::from(extended);
        if let Answer::Outcome(RenewalOutcome::Extended { grant, .. }) = answered.answer
            && grant > open.grant
        {
            open.grant = grant;
            open.news = true;
        }
        self.trace(&[6, c as u64, answered.number.0, u64::from(extended)]);
        self.end_if_void(c);
        self.review(c);
    }

    fn hear_reply(&mut self, c: usize, id: CallId, reply: Reply) {
        let client = &mut self.clients[c];
        if client.call.as_ref().is_none_or(|call| call.id != id) {
            return;
        }
        let Some(Call { command, .. }) = client.call.take() else { return };
        match (command, reply, &mut client.open) {
            (
                Command::OpenSession { ttl_ms, renew_interval_ms, fence_budget_ms, nonce, .. },
                Reply::SessionOpened { session, .. },
                None,
            ) => {
                let plans = self.mutant != Some(Mutant::NoFenceBudget);
                let stops_in = Micros::from_ms(fence_budget_ms);
                let fence_budget_ms = if plans { fence_budget_ms } else { 0 };
                let of = HolderSession {
                    session,
                    nonce,
                    incarnation: 1,
                    ttl_ms,
                    renew_interval_ms,
                    fence_budget_ms,
                };
                client.open = Some(Open {
                    session,
                    holder: HolderClock::new(of, self.rules),
                    stops_in,
                    places: BTreeMap::new(),
                    news: false,
                    grant: Revision(0),
                    waiting_since: None,
                });
            }
            (Command::Campaign { election, .. }, Reply::Granted { epoch, .. }, Some(open)) => {
                open.holder.granted(epoch);
                let fresh = !matches!(
                    open.places.get(&election),
                    Some(Place::Leads { epoch: known, .. }) if *known == epoch
                );
                if fresh {
                    let armed = Reading::default();
                    let place = Place::Leads { epoch, acting: false, armed };
                    open.places.insert(election, place);
                }
            }
            (Command::Campaign { election, .. }, Reply::Queued { .. }, Some(open)) => {
                open.places.insert(election, Place::Queued);
            }
            _ => {}
        }
        self.review(c);
    }
}
