//! Tests of the keeper and the merger over the real state machine.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use parking_lot::{Mutex, RwLock};
use regent_core::authz::{Principal, Role};
use regent_core::command::{Command, Entry, FullRenewal, Renewal};
use regent_core::id::{Incarnation, Nonce, RenewalNumber, Revision, SessionId};
use regent_core::reply::{RenewalOutcome, Reply};
use regent_core::state::State;
use regent_core::time::{Reading, WallMs};
use regent_core::timing::Timing;
use regent_rpc::clock::Clock;
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::renewed::Outcome;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::*;
use crate::duties::Duties;
use crate::http::metrics::Metrics;

/// A clock that stands where it is put.
struct Hand(Mutex<u64>);

impl Clock for Hand {
    fn now(&self) -> Reading {
        Reading::at_us(*self.0.lock())
    }
    fn wall(&self) -> WallMs {
        WallMs(0)
    }
}

impl Hand {
    fn advance_ms(&self, ms: u64) {
        *self.0.lock() += ms * 1000;
    }
}

/// Commits to a local state; can hold answers back, or be without a leader.
struct Leader {
    state: Arc<RwLock<State>>,
    batches: Mutex<Vec<Vec<FullRenewal>>>,
    refuse: Mutex<Option<RenewError>>,
    /// A permit per commit, so that a test decides when one is done.
    gate: tokio::sync::Semaphore,
}

fn commit(state: &RwLock<State>, by: &Principal, command: &Command) -> Reply {
    let mut state = state.write();
    let revision = state.revision().next();
    state.apply(revision, &Entry::new(WallMs(0), by.clone(), None, command).encode()).reply
}

impl Leader {
    async fn commit(&self, renewals: Vec<FullRenewal>) -> Result<Vec<RenewalOutcome>, RenewError> {
        if let Some(error) = self.refuse.lock().clone() {
            return Err(error);
        }
        self.gate.acquire().await.unwrap().forget();
        self.batches.lock().push(renewals.clone());
        match commit(&self.state, &Principal::cluster(), &Command::renew(&renewals, 3)) {
            Reply::Renewed { outcomes, .. } => Ok(outcomes),
            other => Err(RenewError::Unknown(format!("{other:?}"))),
        }
    }
}

struct ToLeader(Arc<Leader>);

impl RenewalSink for ToLeader {
    fn renew_batch(
        &self,
        renewals: Vec<FullRenewal>,
        _: Duration,
    ) -> BoxFuture<'static, Result<Vec<RenewalOutcome>, RenewError>> {
        let leader = self.0.clone();
        async move { leader.commit(renewals).await }.boxed()
    }
}

impl EntryProposer for ToLeader {
    fn propose_renewals(
        &self,
        renewals: Vec<FullRenewal>,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Vec<RenewalOutcome>, RenewError>> {
        self.renew_batch(renewals, deadline)
    }
}

struct World {
    state: Arc<RwLock<State>>,
    leader: Arc<Leader>,
    clock: Arc<Hand>,
    keeper: Keeper,
    refused: Arc<Mutex<Vec<(Principal, SessionId)>>>,
    metrics: Arc<Metrics>,
}

fn alice() -> Principal {
    Principal::new(Role::Client, "alice")
}

impl World {
    fn new() -> Self {
        let state = Arc::new(RwLock::new(State::default()));
        let incarnation = Incarnation { counter: 1, id: 1 };
        let timing = Timing::LAN;
        let boot = Command::Bootstrap { incarnation, cluster: "t".into(), timing };
        commit(&state, &Principal::cluster(), &boot);
        let leader = Arc::new(Leader {
            state: state.clone(),
            batches: Mutex::default(),
            refuse: Mutex::default(),
            gate: tokio::sync::Semaphore::new(1_000_000),
        });
        let clock = Arc::new(Hand(Mutex::new(1_000_000_000)));
        let refused: Arc<Mutex<Vec<(Principal, SessionId)>>> = Arc::default();
        let noted = refused.clone();
        let metrics = Arc::new(Metrics::new());
        let parts = KeeperParts {
            state: state.clone(),
            sink: Arc::new(ToLeader(leader.clone())),
            clock: clock.clone(),
            refused: Arc::new(move |who, session| noted.lock().push((who.clone(), session))),
            face: Arc::new(|| v1::NodeClock { node: 2, nonce: 9, ..v1::NodeClock::default() }),
            metrics: metrics.clone(),
        };
        let keeper = Keeper::start(
            KeeperConfig { window: Duration::from_millis(2) },
            parts,
            &Duties::default(),
        );
        Self { state, leader, clock, keeper, refused, metrics }
    }

    fn open(&self) -> SessionId {
        let command = Command::OpenSession {
            ttl_ms: 10_000,
            renew_interval_ms: 500,
            fence_budget_ms: 250,
            nonce: Nonce(5),
            label: String::new(),
        };
        match commit(&self.state, &alice(), &command) {
            Reply::SessionOpened { session, .. } => session,
            other => panic!("{other:?}"),
        }
    }

    fn merger(&self, window_ms: u64) -> Merger {
        Merger::start(
            Duration::from_millis(window_ms),
            Arc::new(ToLeader(self.leader.clone())),
            self.metrics.clone(),
            &Duties::default(),
        )
    }

    fn connect(&self, who: Principal) -> Client {
        let (to, incoming) = mpsc::unbounded_channel();
        let stream = self.keeper.handle_stream(who, UnboundedReceiverStream::new(incoming));
        Client { to: Some(to), stream: Box::pin(stream), left: Vec::new() }
    }
}

type Incoming = UnboundedReceiverStream<Result<v1::KeepAliveRequest, tonic::Status>>;

struct Client {
    to: Option<mpsc::UnboundedSender<Result<v1::KeepAliveRequest, tonic::Status>>>,
    stream: std::pin::Pin<Box<KeepAliveStream<Incoming>>>,
    left: Vec<v1::Renewed>,
}

fn renewal(session: SessionId, number: u64, acked: u64) -> v1::Renewal {
    v1::Renewal { session: session.0, nonce: 5, number, acked, ..v1::Renewal::default() }
}

impl Client {
    fn send(&mut self, renewals: Vec<v1::Renewal>) {
        let to = self.to.as_ref().expect("not closed");
        to.send(Ok(v1::KeepAliveRequest { renewals, probe: 0 })).expect("the stream reads");
        // Reading happens when the response is polled, as in the server.
        self.poll();
    }

    fn poll(&mut self) {
        while let Some(Some(Ok(response))) = self.stream.next().now_or_never() {
            self.left.extend(response.renewed);
        }
    }

    /// `count` answers, in the order of sessions and numbers.
    async fn answers(&mut self, count: usize) -> Vec<(u64, u64, Outcome)> {
        while self.left.len() < count {
            let next = tokio::time::timeout(Duration::from_secs(10), self.stream.next()).await;
            let response = next.expect("an answer in time").expect("the stream goes on");
            self.left.extend(response.expect("no error").renewed);
        }
        let mut got: Vec<_> = std::mem::take(&mut self.left)
            .into_iter()
            .map(|r| (r.session, r.number, Outcome::try_from(r.outcome).unwrap()))
            .collect();
        got.sort_by_key(|(session, number, _)| (*session, *number));
        got
    }
}

#[tokio::test]
async fn renewals_of_all_streams_leave_in_one_batch_and_come_back_to_their_streams() {
    let world = World::new();
    let sessions: Vec<SessionId> = (0..100).map(|_| world.open()).collect();
    let mut clients: Vec<Client> = (0..10).map(|_| world.connect(alice())).collect();
    for (at, session) in sessions.iter().enumerate() {
        clients[at % 10].send(vec![renewal(*session, 1, 0)]);
    }
    for (at, client) in clients.iter_mut().enumerate() {
        let answers = client.answers(10).await;
        let mine: Vec<_> = sessions.iter().skip(at).step_by(10).map(|s| s.0).collect();
        let got: Vec<_> = answers.iter().map(|(session, ..)| *session).collect();
        assert_eq!(got, mine);
        assert!(answers.iter().all(|(_, number, o)| (*number, *o) == (1, Outcome::Extended)));
    }
    let batches = world.leader.batches.lock();
    assert_eq!(batches.len(), 1, "one batch for one tick");
    assert!(batches[0].is_sorted_by_key(|renewal| renewal.renewal.session));
    assert_eq!(world.metrics.renewals_waiting.get(), 0);
}

#[tokio::test]
async fn nothing_is_answered_before_it_is_committed() {
    let world = World::new();
    let session = world.open();
    let mut client = world.connect(alice());
    // No permit: the commit is under way and not done.
    let held = world.leader.gate.acquire_many(1_000_000).await.unwrap();
    client.send(vec![renewal(session, 1, 0)]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.poll();
    assert!(client.left.is_empty(), "answered before the commit");
    assert_eq!(world.state.read().sessions()[&session].renewed, RenewalNumber(0));
    drop(held);
    assert_eq!(client.answers(1).await, [(session.0, 1, Outcome::Extended)]);
    assert_eq!(world.state.read().sessions()[&session].renewed, RenewalNumber(1));
}

#[tokio::test]
async fn of_several_renewals_of_one_session_the_newest_is_committed_and_all_are_answered() {
    let world = World::new();
    let session = world.open();
    let mut client = world.connect(alice());
    client.send(vec![renewal(session, 1, 0), renewal(session, 3, 0), renewal(session, 2, 0)]);
    let stale = Outcome::NumberStale;
    let want = [(session.0, 1, stale), (session.0, 2, stale), (session.0, 3, Outcome::Extended)];
    assert_eq!(client.answers(3).await, want);
    assert_eq!(world.leader.batches.lock()[0].len(), 1);
}

#[tokio::test]
async fn a_stale_start_with_a_high_number_does_not_push_out_the_living_one() {
    let world = World::new();
    let session = world.open();
    let mut client = world.connect(alice());
    let mut old = renewal(session, 1_000, 0);
    old.nonce = 4;
    client.send(vec![old, renewal(session, 1, 0)]);
    let want = [(session.0, 1, Outcome::Extended), (session.0, 1_000, Outcome::NonceStale)];
    assert_eq!(client.answers(2).await, want);
}

#[tokio::test]
async fn a_session_of_somebody_else_is_not_renewed_and_the_attempt_is_noted() {
    let world = World::new();
    let session = world.open();
    let eve = Principal::new(Role::Client, "eve");
    let mut client = world.connect(eve.clone());
    client.send(vec![renewal(session, 1, 0)]);
    assert_eq!(client.answers(1).await, [(session.0, 1, Outcome::SessionGone)]);
    assert!(world.leader.batches.lock().is_empty());
    assert_eq!(*world.refused.lock(), [(eve, session)]);
}

#[tokio::test]
async fn a_session_this_node_has_not_heard_of_is_left_to_the_leader() {
    let world = World::new();
    let mut client = world.connect(alice());
    client.send(vec![renewal(SessionId(999), 1, 0)]);
    assert_eq!(client.answers(1).await, [(999, 1, Outcome::SessionGone)]);
    assert_eq!(world.leader.batches.lock().len(), 1, "the leader was asked");
}

#[tokio::test]
async fn a_renewal_that_waited_longer_than_half_its_ttl_extends_nothing() {
    let world = World::new();
    let session = world.open();
    let mut client = world.connect(alice());
    *world.leader.refuse.lock() = Some(RenewError::NotProposed("no leader".into()));
    client.send(vec![renewal(session, 1, 0)]);
    tokio::time::sleep(Duration::from_millis(20)).await;
    world.clock.advance_ms(5_001);
    *world.leader.refuse.lock() = None;
    assert_eq!(client.answers(1).await, [(session.0, 1, Outcome::Resend)]);
    assert!(world.leader.batches.lock().is_empty());
    assert_eq!(world.state.read().sessions()[&session].renewed, RenewalNumber(0));
}

#[tokio::test]
async fn a_client_that_does_not_hear_its_acknowledgements_stops_extending() {
    let world = World::new();
    let session = world.open();
    let mut client = world.connect(alice());
    // It renews every interval and never names an acknowledgement: the way back is dead.
    let mut outcomes = Vec::new();
    for number in 1..=8 {
        client.send(vec![renewal(session, number, 0)]);
        outcomes.extend(client.answers(1).await.into_iter().map(|(_, _, outcome)| outcome));
        world.clock.advance_ms(500);
    }
    assert_eq!(outcomes[0], Outcome::Extended);
    assert_eq!(outcomes[7], Outcome::Resend, "{outcomes:?}");
    // One that hears goes on.
    let mut heard = world.connect(alice());
    for number in 100..=108 {
        heard.send(vec![renewal(session, number, number - 1)]);
        assert_eq!(heard.answers(1).await, [(session.0, number, Outcome::Extended)]);
        world.clock.advance_ms(500);
    }
}

#[tokio::test]
async fn without_a_leader_renewals_wait_and_are_committed_when_there_is_one() {
    let world = World::new();
    let session = world.open();
    let mut client = world.connect(alice());
    *world.leader.refuse.lock() = Some(RenewError::NotProposed("no leader".into()));
    client.send(vec![renewal(session, 1, 0)]);
    tokio::time::sleep(Duration::from_millis(20)).await;
    // A newer one takes the place of the one that waits.
    client.send(vec![renewal(session, 2, 0)]);
    tokio::time::sleep(Duration::from_millis(20)).await;
    // Nobody has committed either of them. A holder would take "there is a newer one" as proof
    // that the newer one was applied (C4).
    client.poll();
    assert_eq!(client.left, [], "answered without a leader");
    *world.leader.refuse.lock() = None;
    let want = [(session.0, 1, Outcome::NumberStale), (session.0, 2, Outcome::Extended)];
    assert_eq!(client.answers(2).await, want);
}

#[tokio::test]
async fn of_two_renewals_of_which_nothing_became_neither_is_acknowledged() {
    let world = World::new();
    let session = world.open();
    let mut client = world.connect(alice());
    *world.leader.refuse.lock() = Some(RenewError::Unknown("deposed".into()));
    client.send(vec![renewal(session, 1, 0), renewal(session, 2, 0)]);
    let want = [(session.0, 1, Outcome::Resend), (session.0, 2, Outcome::Resend)];
    assert_eq!(client.answers(2).await, want);
}

#[tokio::test]
async fn a_batch_whose_renewal_another_node_superseded_fails_with_the_entry_of_the_newer() {
    let world = World::new();
    let session = world.open();
    let error = RenewError::NotProposed("no quorum".into());
    *world.leader.refuse.lock() = Some(error.clone());
    let merger = world.merger(20);
    let deadline = Duration::from_secs(5);
    let old = merger.submit(vec![core_renewal(session, 1)], deadline);
    let new = merger.submit(vec![core_renewal(session, 2)], deadline);
    let (old, new) = futures::future::join(old, new).await;
    assert_eq!((old, new), (Err(error.clone()), Err(error)));
}

#[tokio::test]
async fn invented_sessions_do_not_get_into_the_log() {
    let world = World::new();
    let closed = world.open();
    commit(&world.state, &alice(), &Command::CloseSession { session: closed, nonce: Nonce(5) });
    let mut client = world.connect(alice());
    // An id this node has passed without seeing a session: it is gone, no leader need be asked.
    client.send(vec![renewal(closed, 1, 0)]);
    assert_eq!(client.answers(1).await, [(closed.0, 1, Outcome::SessionGone)]);
    assert!(world.leader.batches.lock().is_empty());
    // Ids of the future: the leader may know them, but not hundreds a tick.
    client.send((0..1_000).map(|at| renewal(SessionId(1_000_000 + at), 1, 0)).collect());
    let answers = client.answers(1_000).await;
    let gone = answers.iter().filter(|(.., outcome)| *outcome == Outcome::SessionGone).count();
    assert_eq!(gone, 500);
    assert_eq!(world.leader.batches.lock()[0].len(), 500);
}

#[tokio::test]
async fn an_unknown_outcome_is_answered_with_resend() {
    let world = World::new();
    let session = world.open();
    let mut client = world.connect(alice());
    *world.leader.refuse.lock() = Some(RenewError::Unknown("deposed".into()));
    client.send(vec![renewal(session, 1, 0)]);
    assert_eq!(client.answers(1).await, [(session.0, 1, Outcome::Resend)]);
}

#[tokio::test]
async fn a_stream_ends_when_its_client_has_and_everything_is_answered() {
    let world = World::new();
    let session = world.open();
    let mut client = world.connect(alice());
    client.send(vec![renewal(session, 1, 0)]);
    client.to = None;
    assert_eq!(client.answers(1).await, [(session.0, 1, Outcome::Extended)]);
    assert!(client.stream.next().await.is_none());
    drop(client);
    assert_eq!(world.metrics.keepalive_streams.get(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_costs_nothing_and_its_renewal_still_counts() {
    let world = World::new();
    let session = world.open();
    let mut client = world.connect(alice());
    client.send(vec![renewal(session, 1, 0)]);
    drop(client);
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    while world.state.read().sessions()[&session].renewed != RenewalNumber(1) {
        assert!(tokio::time::Instant::now() < until, "the renewal was lost");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(world.metrics.renewals_waiting.get(), 0);
}

#[tokio::test]
async fn a_malformed_message_ends_the_stream_with_the_name_of_the_field() {
    let world = World::new();
    let mut client = world.connect(alice());
    let to = client.to.as_ref().unwrap();
    let renewals = vec![v1::Renewal::default()];
    to.send(Ok(v1::KeepAliveRequest { renewals, probe: 0 })).unwrap();
    let status = client.stream.next().await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn the_leader_merges_what_several_nodes_send_into_one_entry() {
    let world = World::new();
    let sessions: Vec<SessionId> = (0..30).map(|_| world.open()).collect();
    let merger = world.merger(20);
    let batch = |node: usize| {
        let own = sessions.iter().skip(node).step_by(3);
        own.rev().map(|session| core_renewal(*session, 1)).collect::<Vec<_>>()
    };
    let deadline = Duration::from_secs(5);
    let submits = (0..3).map(|node| merger.submit(batch(node), deadline));
    for outcomes in futures::future::join_all(submits).await {
        let outcomes = outcomes.unwrap();
        assert_eq!(outcomes.len(), 10);
        assert!(outcomes.iter().all(|o| matches!(o, RenewalOutcome::Extended { .. })));
    }
    assert_eq!(world.leader.batches.lock().len(), 1);
}

fn core_renewal(session: SessionId, number: u64) -> FullRenewal {
    let renewal = Renewal {
        session,
        nonce: Nonce(5),
        number: RenewalNumber(number),
        acked: RenewalNumber(0),
        known_grant: Revision(0),
    };
    renewal.into()
}

#[tokio::test]
async fn the_leader_answers_each_place_of_each_batch_when_two_nodes_renew_one_session() {
    let world = World::new();
    let (a, b) = (world.open(), world.open());
    let merger = world.merger(20);
    let deadline = Duration::from_secs(5);
    let old = merger.submit(vec![core_renewal(b, 1), core_renewal(a, 1)], deadline);
    let new = merger.submit(vec![core_renewal(a, 2)], deadline);
    let (old, new) = futures::future::join(old, new).await;
    let extended =
        |number| RenewalOutcome::Extended { number: RenewalNumber(number), grant: Revision(0) };
    let stale = RenewalOutcome::NumberStale { have: RenewalNumber(2) };
    assert_eq!(old.unwrap(), [extended(1), stale]);
    assert_eq!(new.unwrap(), [extended(2)]);
}

#[tokio::test]
async fn a_batch_too_large_for_one_entry_is_split_and_answered_whole() {
    let world = World::new();
    let merger = world.merger(1);
    let many: Vec<FullRenewal> =
        (1..=25_000).map(|id| core_renewal(SessionId(1_000_000 + id), 1)).collect();
    let outcomes = merger.submit(many, Duration::from_secs(10)).await.unwrap();
    assert_eq!(outcomes.len(), 25_000);
    let sizes: Vec<usize> = world.leader.batches.lock().iter().map(Vec::len).collect();
    assert_eq!(sizes, [10_000, 10_000, 5_000]);
    let too_many = vec![core_renewal(SessionId(1), 1); 100_001];
    let refused = merger.submit(too_many, Duration::from_secs(1)).await;
    assert!(matches!(refused, Err(RenewError::NotProposed(_))));
}

#[tokio::test]
async fn what_waited_past_its_deadline_is_not_put_into_the_log() {
    let world = World::new();
    let session = world.open();
    let merger = world.merger(30);
    let late = merger.submit(vec![core_renewal(session, 1)], Duration::from_millis(1)).await;
    assert!(matches!(late, Err(RenewError::NotProposed(_))));
    assert!(world.leader.batches.lock().is_empty());
}

#[tokio::test]
async fn a_probe_is_answered_with_this_nodes_clock_as_it_is_now_and_only_once() {
    let world = World::new();
    let mut client = world.connect(alice());
    let ask = v1::KeepAliveRequest { renewals: Vec::new(), probe: 5 };
    client.to.as_ref().unwrap().send(Ok(ask)).unwrap();
    world.clock.advance_ms(70);
    let answer = client.stream.next().await.unwrap().unwrap();
    let clock = answer.clock.unwrap();
    assert_eq!((clock.probe, clock.node, clock.nonce, clock.incarnation), (5, 2, 9, 1));
    assert_eq!(clock.boottime_us, world.clock.now().boottime_us);
    assert!(answer.renewed.is_empty());
    assert!(client.stream.next().now_or_never().is_none(), "answered twice");
}

#[tokio::test]
async fn a_renewal_that_names_a_new_grant_leaves_at_once_and_takes_along_what_waits() {
    let world = World::new();
    let (a, b) = (world.open(), world.open());
    let merger = world.merger(60_000);
    let deadline = Duration::from_secs(100);
    let naming = |number| {
        let mut full = core_renewal(b, number);
        full.renewal.known_grant = Revision(1);
        full
    };
    let waits = merger.submit(vec![core_renewal(a, 1)], deadline);
    let names = merger.submit(vec![naming(1)], deadline);
    let both = tokio::time::timeout(Duration::from_secs(20), futures::future::join(waits, names));
    let (waited, named) = both.await.expect("long before the window ends");
    assert!(waited.is_ok() && named.is_ok());
    assert_eq!(world.leader.batches.lock().len(), 1);
    // It is known by now.
    let again = merger.submit(vec![naming(2)], deadline);
    assert!(tokio::time::timeout(Duration::from_millis(100), again).await.is_err());
}
