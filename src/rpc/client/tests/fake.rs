//! A cluster of make-believe nodes that share one state: real TLS, real gRPC, no consensus.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use regent_core::authz::Role;
use regent_core::id::NodeId;
use regent_core::time::{Reading, WallMs};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status, Streaming};

use crate::client::{Client, ClientOptions};
use crate::clock::{Clock, SystemClock};
use crate::convert::status::{Leader, not_leader};
use crate::pb::v1;
use crate::pb::v1::election_service_server::{ElectionService, ElectionServiceServer};
use crate::testing::Pki;
use crate::tls::AcceptLimits;

/// How one node behaves now.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Mode {
    #[default]
    Sound,
    /// Points at another address, does nothing.
    Hint(String),
    /// Says that there is no leader.
    NoLeader,
    /// Takes calls and never answers.
    Frozen,
    /// Does what it is asked, and the answer gets lost.
    LosesAnswers,
    /// Commits renewals and drops the acknowledgements; all else is sound.
    LosesAcks,
    /// Has applied nothing of what it is asked about: names no incarnation.
    Behind,
    /// Ends each stream of renewals as soon as it is opened.
    Refuses,
    /// Answers renewals with RESEND: alive, but cut off from the others.
    CutOff,
}

/// What all nodes agree about.
#[derive(Default)]
pub struct State {
    pub revision: u64,
    pub done: HashMap<(u64, u64), u64>,
    pub sessions: HashSet<u64>,
    pub holders: HashMap<String, (u64, u64)>,
    pub grants: HashMap<u64, u64>,
    /// Every request id that arrived, with the node and the call.
    pub seen: Vec<(usize, &'static str, u64, u64)>,
    /// Renewals committed: number and when, by the node's clock.
    pub renewed: Vec<(u64, Reading)>,
    /// The epoch's revision of each resignation that took effect or was refused.
    pub resigned: Vec<Option<u64>>,
    /// Grants of this election are taken back as unused before they are confirmed, so often.
    pub take_back: u32,
    pub modes: Vec<Mode>,
    pub scripts: VecDeque<Vec<Result<v1::ObserveResponse, Status>>>,
    pub asked: Vec<Option<v1::WatchFrom>>,
    /// The newest round of clock readings that each node was asked in.
    pub rounds: HashMap<usize, u64>,
    /// From this round on the clocks of these nodes are ahead by so many microseconds.
    pub jump: Option<(u64, Vec<usize>, u64)>,
    pub incarnation: u64,
    /// Streams of renewals that were refused.
    pub streams_refused: u32,
}

pub struct Fake {
    pub pki: Pki,
    pub addresses: Vec<String>,
    pub clock: Arc<TestClock>,
    state: Arc<Mutex<State>>,
    servers: Vec<JoinHandle<()>>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

/// The system's clock, until somebody stops or moves it.
#[derive(Default)]
pub struct TestClock {
    stopped: Mutex<Option<Reading>>,
    moved_us: Mutex<u64>,
    boots: Mutex<u64>,
}

impl TestClock {
    pub fn stop(&self) {
        let now = self.now();
        *self.stopped.lock().unwrap() = Some(now);
    }
    /// As if the process went on in another boot of the machine.
    pub fn reboot(&self) {
        *self.boots.lock().unwrap() += 1;
    }
    pub fn advance(&self, us: u64) {
        let mut stopped = self.stopped.lock().unwrap();
        match &mut *stopped {
            Some(at) => *at = at.plus(regent_core::time::Micros(us)),
            None => *self.moved_us.lock().unwrap() += us,
        }
    }
}

impl Clock for TestClock {
    fn now(&self) -> Reading {
        let moved = regent_core::time::Micros(*self.moved_us.lock().unwrap());
        self.stopped.lock().unwrap().unwrap_or_else(|| SystemClock.now().plus(moved))
    }
    fn wall(&self) -> WallMs {
        SystemClock.wall()
    }
    fn boot(&self) -> Option<String> {
        Some(self.boots.lock().unwrap().to_string())
    }
}

impl Fake {
    pub async fn start(count: usize) -> Self {
        let pki = Pki::new();
        let state = Arc::new(Mutex::new(State {
            revision: 10,
            incarnation: 1,
            modes: vec![Mode::Sound; count],
            ..State::default()
        }));
        let clock = Arc::new(TestClock::default());
        let (mut addresses, mut servers) = (Vec::new(), Vec::new());
        for at in 0..count {
            let tls = pki.tls(Role::Node, &(at + 1).to_string());
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap().to_string());
            let node = Node { at, state: Arc::clone(&state), clock: Arc::clone(&clock) };
            let incoming = tls.incoming(listener, AcceptLimits::default());
            let server = tonic::transport::Server::builder()
                .add_service(ElectionServiceServer::new(node))
                .serve_with_incoming(incoming);
            servers.push(tokio::spawn(server.map(|_| ())));
        }
        Self { pki, addresses, clock, state, servers }
    }

    pub fn client(&self, endpoints: &[String], options: ClientOptions) -> Client {
        let tls = self.pki.tls(Role::Client, "app");
        Client::with_clock(endpoints, tls, options, self.clock.clone()).unwrap()
    }

    pub fn any(&self) -> Client {
        self.client(&self.addresses, ClientOptions::default())
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn all(&self, mode: &Mode) {
        self.state().modes.iter_mut().for_each(|m| *m = mode.clone());
    }
}

#[derive(Clone)]
struct Node {
    at: usize,
    state: Arc<Mutex<State>>,
    clock: Arc<TestClock>,
}

impl State {
    fn stamp(&self, node: usize) -> Option<v1::Stamp> {
        Some(v1::Stamp {
            incarnation: 1,
            incarnation_id: 77,
            revision: self.revision,
            node: node as u64 + 1,
            age_ms: 0,
        })
    }
}

impl Node {
    fn mode(&self) -> Mode {
        self.state.lock().unwrap().modes[self.at].clone()
    }

    /// A write: behaves as the mode says, runs `act` once per request id.
    async fn write<T>(
        &self,
        call: &'static str,
        id: Option<v1::RequestId>,
        act: impl FnOnce(&mut State) -> u64,
        answer: impl FnOnce(&State, u64) -> T,
    ) -> Result<Response<T>, Status> {
        let id = id.expect("every write carries a request id");
        let mode = self.mode();
        self.state.lock().unwrap().seen.push((self.at, call, id.client, id.serial));
        match mode {
            Mode::Hint(address) => {
                let leader = Leader { node: NodeId(9), address };
                return Err(not_leader(Some(leader), Duration::ZERO));
            }
            Mode::NoLeader => return Err(not_leader(None, Duration::from_millis(10))),
            Mode::Frozen => futures::future::pending().await,
            _ => {}
        }
        let mut state = self.state.lock().unwrap();
        let outcome = match state.done.get(&(id.client, id.serial)) {
            Some(outcome) => *outcome,
            None => {
                state.revision += 1;
                let outcome = act(&mut state);
                state.done.insert((id.client, id.serial), outcome);
                outcome
            }
        };
        if mode == Mode::LosesAnswers {
            return Err(Status::unknown("transport error"));
        }
        Ok(Response::new(answer(&state, outcome)))
    }

    fn read_clock(&self, probe: u64) -> v1::NodeClock {
        let mut state = self.state.lock().unwrap();
        state.rounds.insert(self.at, probe);
        let ahead = match &state.jump {
            Some((from, who, us)) if probe >= *from && who.contains(&self.at) => *us,
            _ => 0,
        };
        let now = self.clock.now().plus(regent_core::time::Micros(ahead));
        v1::NodeClock {
            probe,
            node: self.at as u64 + 1,
            nonce: 1,
            boottime_us: now.boottime_us,
            raw_us: now.raw_us,
            voters: (1..=state.modes.len() as u64).collect(),
            incarnation: state.incarnation,
        }
    }

    fn renew(&self, renewal: &v1::Renewal, mode: &Mode) -> v1::Renewed {
        use v1::renewed::Outcome;
        let mut state = self.state.lock().unwrap();
        let mut renewed = v1::Renewed {
            session: renewal.session,
            number: renewal.number,
            ..v1::Renewed::default()
        };
        let outcome = if !state.sessions.contains(&renewal.session) {
            Outcome::SessionGone
        } else if *mode == Mode::CutOff {
            Outcome::Resend
        } else {
            let now = self.clock.now();
            state.renewed.push((renewal.number, now));
            renewed.grant = state.grants.get(&renewal.session).copied().unwrap_or(0);
            Outcome::Extended
        };
        renewed.outcome = outcome.into();
        renewed
    }
}

type Stream<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl ElectionService for Node {
    type KeepAliveStream = Stream<v1::KeepAliveResponse>;
    type ObserveStream = Stream<v1::ObserveResponse>;

    async fn open_session(
        &self,
        request: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionResponse>, Status> {
        let ask = request.into_inner();
        let open = |state: &mut State| {
            state.sessions.insert(state.revision);
            state.revision
        };
        let behind = self.mode() == Mode::Behind;
        let stamp = |state: &State| {
            let incarnation = if behind { 0 } else { 1 };
            state.stamp(self.at).map(|stamp| v1::Stamp { incarnation, ..stamp })
        };
        self.write("open_session", ask.request, open, |state, session| v1::OpenSessionResponse {
            stamp: stamp(state),
            session,
            ttl_ms: ask.ttl_ms,
            renew_interval_ms: if ask.renew_interval_ms == 0 { 100 } else { ask.renew_interval_ms },
            fence_budget_ms: ask.fence_budget_ms,
            rho_ppm: 10_000,
        })
        .await
    }

    async fn close_session(
        &self,
        request: Request<v1::CloseSessionRequest>,
    ) -> Result<Response<v1::CloseSessionResponse>, Status> {
        let ask = request.into_inner();
        let close = |state: &mut State| {
            state.sessions.remove(&ask.session);
            state.holders.retain(|_, (holder, _)| *holder != ask.session);
            0
        };
        self.write("close_session", ask.request, close, |state, _| v1::CloseSessionResponse {
            stamp: state.stamp(self.at),
        })
        .await
    }

    async fn keep_alive(
        &self,
        request: Request<Streaming<v1::KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        if self.mode() == Mode::Refuses {
            self.state.lock().unwrap().streams_refused += 1;
            return Err(Status::unavailable("not now"));
        }
        let node = self.clone();
        let answers = request.into_inner().filter_map(move |message| {
            let node = node.clone();
            async move {
                let mode = node.mode();
                match mode {
                    Mode::Frozen | Mode::Hint(_) | Mode::NoLeader => return None,
                    Mode::Refuses => return Some(Err(Status::unavailable("not now"))),
                    _ => {}
                }
                let message = message.ok()?;
                let renewed = message.renewals.iter().map(|r| node.renew(r, &mode)).collect();
                let clock = (message.probe != 0).then(|| node.read_clock(message.probe));
                (mode != Mode::LosesAcks).then_some(Ok(v1::KeepAliveResponse { renewed, clock }))
            }
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn campaign(
        &self,
        request: Request<v1::CampaignRequest>,
    ) -> Result<Response<v1::CampaignResponse>, Status> {
        let ask = request.into_inner();
        let bid = |state: &mut State| {
            let (revision, session) = (state.revision, ask.session);
            if !state.holders.contains_key(&ask.election) {
                if state.take_back > 0 {
                    // Granted, and taken back before anybody can see it confirmed.
                    state.take_back -= 1;
                } else {
                    state.holders.insert(ask.election.clone(), (session, revision));
                }
                state.grants.insert(session, revision);
                return revision;
            }
            match state.holders[&ask.election] {
                (holder, epoch) if holder == session => epoch,
                _ => 0,
            }
        };
        self.write("campaign", ask.request, bid, |state, epoch| v1::CampaignResponse {
            stamp: state.stamp(self.at),
            epoch: (epoch > 0).then_some(v1::Epoch { incarnation: 1, revision: epoch }),
            ahead: u32::from(epoch == 0),
        })
        .await
    }

    async fn resign(
        &self,
        request: Request<v1::ResignRequest>,
    ) -> Result<Response<v1::ResignResponse>, Status> {
        let ask = request.into_inner();
        let resign = |state: &mut State| {
            let epoch = ask.epoch.map(|epoch| epoch.revision);
            state.resigned.push(epoch);
            let led = state.holders.get(&ask.election).copied();
            if led.is_some_and(|(s, e)| s == ask.session && epoch.is_none_or(|named| named == e)) {
                state.holders.remove(&ask.election);
            }
            0
        };
        self.write("resign", ask.request, resign, |state, _| v1::ResignResponse {
            stamp: state.stamp(self.at),
        })
        .await
    }

    async fn proclaim(
        &self,
        request: Request<v1::ProclaimRequest>,
    ) -> Result<Response<v1::ProclaimResponse>, Status> {
        let ask = request.into_inner();
        self.write(
            "proclaim",
            ask.request,
            |_| 0,
            |state, _| v1::ProclaimResponse { stamp: state.stamp(self.at) },
        )
        .await
    }

    async fn leader(
        &self,
        _: Request<v1::LeaderRequest>,
    ) -> Result<Response<v1::LeaderResponse>, Status> {
        match self.mode() {
            Mode::Frozen => futures::future::pending().await,
            Mode::NoLeader => Err(not_leader(None, Duration::from_millis(10))),
            _ => {
                let stamp = self.state.lock().unwrap().stamp(self.at);
                Ok(Response::new(v1::LeaderResponse { stamp, election: None }))
            }
        }
    }

    async fn observe(
        &self,
        request: Request<v1::ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let mut state = self.state.lock().unwrap();
        state.asked.push(request.into_inner().from);
        match state.scripts.pop_front() {
            Some(script) => Ok(Response::new(futures::stream::iter(script).boxed())),
            None => Ok(Response::new(futures::stream::pending().boxed())),
        }
    }

    async fn list_elections(
        &self,
        _: Request<v1::ListElectionsRequest>,
    ) -> Result<Response<v1::ListElectionsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn put_election(
        &self,
        _: Request<v1::PutElectionRequest>,
    ) -> Result<Response<v1::PutElectionResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn delete_election(
        &self,
        _: Request<v1::DeleteElectionRequest>,
    ) -> Result<Response<v1::DeleteElectionResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
