//! What one agent is told over its stream, and what of it reaches the leader's desk.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use regent_core::authz::{Principal, Role};
use regent_core::command::{Command, Request};
use regent_core::decide::Line;
use regent_core::effect::{Applied, Change};
use regent_core::id::{Epoch, InstanceName, NodeId, Nonce, Revision, ServiceName, SessionId};
use regent_core::reply::{Rejection, Reply};
use regent_core::role::observe::{Observation, Run};
use regent_core::role::{AgentStart, Armed, Directive, DirectiveNumber, Order};
use regent_core::spec::ServiceSpec;
use regent_core::state::State;
use regent_core::state::role::row::{InstanceRow, Pause, ServiceRole};
use regent_core::state::service::{Life, Service};
use regent_core::state::version::{REPORTS_LEVEL, ROLES_LEVEL};
use regent_core::time::{Micros, Reading, WallMs};
use regent_rpc::clock::SystemClock;
use regent_rpc::convert::agent::{
    Ask, FromAgent, FromCoordinator, HELLO, Hello, Instruction, Outcome, agent_out, coordinator_in,
};
use regent_rpc::pb::v1;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::board::{Board, Rows};
use super::desk::{Desk, Told};
use super::instruct::instruction;
use super::relay::Relay;
use super::report::Reports;
use super::stream::{Agent, Log, Messages, Parts, serve};
use crate::tests::figures::service as declared;

const PATIENCE: Duration = Duration::from_secs(10);

fn orders() -> ServiceName {
    "orders".parse().unwrap()
}

fn name(name: &str) -> InstanceName {
    name.parse().unwrap()
}

/// Answers what it is told to answer, and keeps what was proposed.
struct FakeLog {
    replies: Mutex<VecDeque<Result<Reply, Status>>>,
    proposed: Mutex<Vec<Command>>,
    /// One permit for each answer.
    gate: Arc<Semaphore>,
}

impl Log for FakeLog {
    fn propose(
        &self,
        _: Principal,
        _: Option<Request>,
        command: Command,
        _: Instant,
    ) -> BoxFuture<'static, Result<Reply, Status>> {
        self.proposed.lock().push(command);
        let done = Reply::Done { revision: Revision(99) };
        let reply = self.replies.lock().pop_front().unwrap_or(Ok(done));
        let gate = self.gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            reply
        }
        .boxed()
    }
}

/// One agent's stream, its log and its board.
struct Rig {
    board: Arc<Board>,
    relay: Arc<Relay>,
    log: Arc<FakeLog>,
    state: Arc<RwLock<State>>,
    says: Option<mpsc::Sender<Result<v1::AgentMessage, Status>>>,
    hears: Messages,
}

fn start(nonce: u64) -> AgentStart {
    AgentStart {
        session: SessionId(5),
        nonce: Nonce(nonce),
        boot: 0,
        disk: 8,
        seen: DirectiveNumber::default(),
        data: None,
        fencer: Armed::Armed,
        run: Nonce(0),
    }
}

fn accepted() -> Result<Reply, Status> {
    Ok(Reply::StartAccepted { boot: 1, mark: Revision(0), revision: Revision(10) })
}

impl Rig {
    fn attach(replies: Vec<Result<Reply, Status>>) -> Self {
        let (board, relay) = (Arc::new(Board::default()), Arc::new(Relay::default()));
        let state = Arc::new(RwLock::new(State::default()));
        let gate = Arc::new(Semaphore::new(1_000));
        let (replies, proposed) = (Mutex::new(replies.into()), Mutex::default());
        let log = Arc::new(FakeLog { replies, proposed, gate });
        let parts = Parts {
            node: NodeId(1),
            log: log.clone(),
            state: state.clone(),
            board: board.clone(),
            relay: relay.clone(),
            clock: Arc::new(SystemClock),
        };
        let agent = Agent {
            principal: Principal::new(Role::Agent, "orders/a"),
            service: orders(),
            instance: name("a"),
        };
        let hello = Hello { service: orders(), instance: name("a"), start: start(7) };
        let (says, incoming) = mpsc::channel(64);
        let hears = serve(parts, agent, hello, None, ReceiverStream::new(incoming)).unwrap();
        Self { board, relay, log, state, says: Some(says), hears }
    }

    async fn say(&self, message: FromAgent) {
        self.says.as_ref().unwrap().send(Ok(agent_out(&message))).await.unwrap();
    }

    async fn next(&mut self) -> Result<FromCoordinator, Status> {
        let next = tokio::time::timeout(PATIENCE, self.hears.recv()).await.expect("in time");
        next.expect("the stream is open").map(|message| coordinator_in(message).unwrap())
    }

    async fn outcome(&mut self) -> (u64, Outcome) {
        match self.next().await.unwrap() {
            FromCoordinator::Answer(number, outcome) => (number, outcome),
            FromCoordinator::Instruction(told) => panic!("{told:?}"),
        }
    }

    async fn instruction(&mut self) -> Instruction {
        match self.next().await.unwrap() {
            FromCoordinator::Instruction(told) => *told,
            FromCoordinator::Answer(number, outcome) => panic!("{number}: {outcome:?}"),
        }
    }

    /// An entry at `revision` changed these rows.
    fn apply(&self, revision: u64, changes: Vec<Change>) {
        let revision = Revision(revision);
        let reply = Reply::Done { revision };
        let (clocks, audit) = (Vec::new(), Vec::new());
        let applied = Applied { revision, reply, changes, clocks, audit };
        self.board.applied(&self.state.read(), &applied);
    }
}

pub(crate) fn put(spec: ServiceSpec) -> Change {
    let row = Service {
        life: Life::Declared,
        created: Revision(1),
        changed: Revision(1),
        quarantine: None,
        spec,
    };
    Change::Service(orders(), Some(Arc::new(row)))
}

fn role(nonce: u64, revision: u64, order: Order) -> Change {
    let directive = Directive { epoch: Epoch::NONE, revision: Revision(revision), order };
    let row = InstanceRow {
        boot: 1,
        nonce: Nonce(nonce),
        disk: 8,
        session: SessionId(5),
        fencer: Armed::Armed,
        run: Nonce(0),
        data: None,
        pledged: DirectiveNumber::default(),
        quarantined: None,
        directive,
    };
    let role = ServiceRole {
        epoch: Epoch::NONE,
        holder: None,
        lease: None,
        lapsed: None,
        confirmed: false,
        set: None,
        a: Vec::new(),
        c: Vec::new(),
        fence: None,
        promoted: None,
        routes_open: false,
        timeline: 2,
        paused: None,
        instances: [(name("a"), row)].into(),
        operation: None,
        failovers: Vec::new(),
        changed: Revision(revision),
    };
    Change::Role(orders(), Some(Arc::new(role)))
}

fn follow(upstream: &str) -> Order {
    Order::Follow { upstream: name(upstream) }
}

fn seen(run: Run) -> Observation {
    Observation { run, ..Observation::default() }
}

#[tokio::test]
async fn an_accepted_agent_is_told_its_instruction_now_and_whenever_it_changes() {
    let mut rig = Rig::attach(vec![accepted()]);
    let (number, outcome) = rig.outcome().await;
    assert_eq!(number, HELLO);
    assert!(matches!(outcome, Outcome::Accepted { boot: 1, .. }), "{outcome:?}");
    // Rows from before the start say nothing of it, and nothing is told of them.
    rig.apply(9, vec![put(declared())]);
    rig.apply(10, vec![role(7, 10, Order::Wait)]);
    let told = rig.instruction().await;
    assert_eq!(told.directive.order, Order::Wait);
    assert_eq!(told.spec, declared());
    rig.apply(11, vec![role(7, 11, follow("b"))]);
    let told = rig.instruction().await;
    assert_eq!(told.directive.revision, Revision(11));
    assert_eq!(told.upstream().unwrap().address, "b.example.org:5432");
    // An entry that changes nothing of it is not told; a new address is.
    rig.apply(12, vec![role(7, 11, follow("b"))]);
    let mut moved = declared();
    moved.instances[1].address = "elsewhere:5432".into();
    rig.apply(13, vec![put(moved)]);
    let told = rig.instruction().await;
    assert_eq!(told.upstream().unwrap().address, "elsewhere:5432");
    assert_eq!(told.at.1, Revision(13));
}

#[tokio::test]
async fn a_start_that_is_repeated_and_changes_nothing_is_told_what_was_ordered_meanwhile() {
    let mut rig = Rig::attach(vec![accepted()]);
    // The stream before it broke, and the order came then; the answer is of a later entry, which
    // changed no row, so that no newer rows will come.
    rig.apply(6, vec![put(declared()), role(7, 6, follow("b"))]);
    assert!(matches!(rig.outcome().await, (HELLO, Outcome::Accepted { .. })));
    let told = rig.instruction().await;
    assert_eq!((told.directive.order, told.at.1), (follow("b"), Revision(6)));
    // Rows of another start of it, from before this one, say nothing to it.
    let mut other = Rig::attach(vec![accepted()]);
    other.apply(6, vec![put(declared()), role(3, 6, follow("b"))]);
    assert!(matches!(other.outcome().await, (HELLO, Outcome::Accepted { .. })));
    other.apply(10, vec![role(7, 10, Order::Wait)]);
    assert_eq!(other.instruction().await.directive.order, Order::Wait);
}

#[test]
fn a_pause_is_told_only_where_renewals_can_say_that_it_is_obeyed() {
    let (Change::Service(_, service), Change::Role(_, Some(was))) =
        (put(declared()), role(7, 6, follow("b")))
    else {
        panic!()
    };
    let (since, by, reason) = (Revision(5), "ann".to_owned(), "by hand".to_owned());
    let paused = Some(Pause { since, by, reason });
    let role = Some(Arc::new(ServiceRole { paused, ..(*was).clone() }));
    for (feature_level, told) in [(ROLES_LEVEL, None), (REPORTS_LEVEL, Some(since))] {
        let (service, role) = (service.clone(), role.clone());
        let rows = Rows { service, role, feature_level, ..Rows::default() };
        let instruction = instruction(&rows, &name("a"), SessionId(5)).unwrap();
        assert_eq!(instruction.paused, told, "level {feature_level}");
    }
}

#[tokio::test]
async fn a_refused_start_is_told_nothing_and_may_be_said_again() {
    let refused = Reply::Rejected(Rejection::FeatureLevel { need: 2, have: 1 });
    let mut rig = Rig::attach(vec![Ok(refused), accepted()]);
    rig.apply(10, vec![put(declared()), role(7, 10, Order::Wait)]);
    let (_, outcome) = rig.outcome().await;
    let Outcome::Refused(refused) = outcome else { panic!("{outcome:?}") };
    assert_eq!((refused.rule.as_str(), refused.transient), ("feature_level", false));
    // Nor does it get anything into the log, and nothing that it sees is believed.
    let covered = Ask::Covered { epoch: Epoch::NONE, set: Revision(3) };
    rig.say(FromAgent::Ask(1, covered, None)).await;
    let (number, outcome) = rig.outcome().await;
    let Outcome::Refused(refused) = outcome else { panic!("{outcome:?}") };
    assert_eq!((number, refused.rule.as_str()), (1, "not_accepted"));
    rig.say(FromAgent::Observation(Box::new(seen(Run::Primary)))).await;
    rig.say(FromAgent::Ask(2, Ask::Start(Box::new(start(7))), None)).await;
    assert!(matches!(rig.outcome().await, (2, Outcome::Accepted { .. })));
    assert_eq!(rig.instruction().await.directive.order, Order::Wait);
    assert_eq!(rig.log.proposed.lock().len(), 2, "both starts and nothing else");
}

#[tokio::test]
async fn a_later_start_of_the_same_instance_and_the_end_of_the_service_end_the_stream() {
    let mut rig = Rig::attach(vec![accepted()]);
    rig.apply(10, vec![put(declared()), role(7, 10, Order::Wait)]);
    rig.outcome().await;
    rig.instruction().await;
    rig.apply(11, vec![role(8, 11, Order::Wait)]);
    let ended = rig.next().await.unwrap_err();
    assert_eq!(ended.code(), Code::FailedPrecondition, "{ended}");

    let mut rig = Rig::attach(vec![accepted()]);
    rig.apply(10, vec![put(declared()), role(7, 10, Order::Wait)]);
    rig.outcome().await;
    rig.instruction().await;
    rig.apply(11, vec![Change::Service(orders(), None)]);
    assert_eq!(rig.next().await.unwrap_err().code(), Code::NotFound);

    let mut rig = Rig::attach(vec![accepted()]);
    rig.outcome().await;
    rig.board.close();
    assert_eq!(rig.next().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn more_asks_than_may_wait_are_refused_and_hold_up_no_instruction() {
    let mut rig = Rig::attach(vec![accepted()]);
    rig.apply(10, vec![put(declared()), role(7, 10, Order::Wait)]);
    rig.outcome().await;
    rig.instruction().await;
    let permits = rig.log.gate.available_permits();
    rig.log.gate.acquire_many(permits as u32).await.unwrap().forget();
    for number in 1..=20 {
        let covered = Ask::Covered { epoch: Epoch::NONE, set: Revision(number) };
        rig.say(FromAgent::Ask(number, covered, None)).await;
    }
    // One is under way and 16 wait.
    for refused in 18..=20 {
        let (number, outcome) = rig.outcome().await;
        let Outcome::Refused(why) = outcome else { panic!("{outcome:?}") };
        assert_eq!((number, why.rule.as_str(), why.transient), (refused, "overloaded", true));
    }
    rig.apply(11, vec![role(7, 11, follow("b"))]);
    assert_eq!(rig.instruction().await.directive.order, follow("b"));
    rig.log.gate.add_permits(100);
    for number in 1..=17 {
        let (answered, outcome) = rig.outcome().await;
        assert_eq!(answered, number, "in their order");
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_ends_the_stream_with_the_field() {
    let mut rig = Rig::attach(vec![accepted()]);
    rig.outcome().await;
    let sight = v1::Sight { instance: "b".into(), ..v1::Sight::default() };
    let seen = v1::Observation { sights: vec![sight; 65], ..v1::Observation::default() };
    let message = Some(v1::agent_message::Message::Observation(seen));
    rig.says.as_ref().unwrap().send(Ok(v1::AgentMessage { message })).await.unwrap();
    let ended = rig.next().await.unwrap_err();
    assert_eq!(ended.code(), Code::InvalidArgument);
    assert!(ended.message().contains("sights"), "{ended}");
}

#[tokio::test]
async fn the_relay_holds_an_agent_until_the_leader_knows_that_it_is_gone() {
    let mut rig = Rig::attach(vec![accepted()]);
    rig.apply(10, vec![put(declared()), role(7, 10, Order::Wait)]);
    rig.outcome().await;
    rig.instruction().await;
    assert_eq!(rig.relay.count(), 1);
    rig.say(FromAgent::Observation(Box::new(seen(Run::Standby)))).await;
    crate::tests::rig::eventually("it is heard", || rig.relay.has_news()).await;
    rig.says = None;
    crate::tests::rig::eventually("it is gone", || rig.relay.has_lost()).await;
    assert_eq!(rig.relay.count(), 1, "nobody has been told");
}

fn told(instance: &str, stream: u64, age_ms: u64, run: Option<Run>, lost: bool) -> Told {
    let observation = run.map(seen);
    let age = Micros::from_ms(age_ms);
    Told { service: orders(), instance: name(instance), stream, age, observation, lost }
}

/// A state in which [`declared`] is declared.
pub(crate) fn state() -> State {
    use regent_core::command::{Entry, Expect};
    use regent_core::id::Incarnation;
    use regent_core::timing::Timing;
    let mut state = State::default();
    let incarnation = Incarnation { counter: 1, id: 2 };
    let commands = [
        Command::Bootstrap { incarnation, cluster: "test".into(), timing: Timing::LAN },
        Command::PutService { spec: Box::new(declared()), expect: Expect::Any },
    ];
    for (command, revision) in commands.iter().zip(1..) {
        let entry = Entry::new(WallMs(1), Principal::cluster(), None, command).encode();
        let applied = state.apply(Revision(revision), &entry);
        assert!(!matches!(applied.reply, Reply::Rejected(_)), "{:?}", applied.reply);
    }
    state
}

#[test]
fn the_desk_takes_what_is_newest_and_only_of_declared_instances_and_only_of_a_leader() {
    let (desk, state) = (Desk::default(), state());
    let now = Reading::at_us(10_000_000);
    let run = |desk: &Desk| desk.facts().of(&orders(), &name("a")).map(|f| f.observation.run);
    let up = || vec![told("a", 1, 0, Some(Run::Primary), false)];
    assert!(!desk.take(&state, NodeId(1), up(), now), "it does not lead");
    assert!(desk.open());
    assert!(desk.take(&state, NodeId(1), up(), now));
    assert_eq!(run(&desk), Some(Run::Primary));
    // The agent is at another node by now; what the one before has left of it is older.
    let moved = vec![told("a", 1, 0, Some(Run::Stopping), false)];
    assert!(desk.take(&state, NodeId(2), moved, now.plus(Micros::from_ms(50))));
    let late = vec![told("a", 1, 90, Some(Run::Primary), true)];
    assert!(desk.take(&state, NodeId(1), late, now.plus(Micros::from_ms(60))));
    assert_eq!(run(&desk), Some(Run::Stopping));
    assert_eq!(desk.facts().of(&orders(), &name("a")).unwrap().lost, None);
    let gone = vec![told("a", 1, 0, None, true)];
    assert!(desk.take(&state, NodeId(2), gone, now.plus(Micros::from_ms(70))));
    assert!(desk.facts().of(&orders(), &name("a")).unwrap().lost.is_some());

    let stranger = vec![told("x", 1, 0, Some(Run::Primary), false)];
    assert!(desk.take(&state, NodeId(1), stranger, now));
    assert!(desk.facts().of(&orders(), &name("x")).is_none());
    desk.service_changed(&State::default(), &orders());
    assert_eq!(run(&desk), None, "it is declared no more");
    assert!(desk.take(&state, NodeId(1), up(), now));
    desk.close();
    assert_eq!(run(&desk), None);
}

#[test]
fn a_line_of_the_report_is_news_once_and_stays_for_who_asks() {
    let reports = Reports::default();
    let line = |text: &str| Line { acted: false, text: text.into() };
    let first = vec![line("orders: b is behind"), line("carts: nobody is primary")];
    assert_eq!(reports.take(first.clone(), WallMs(1)).len(), 2);
    assert!(reports.take(first, WallMs(2)).is_empty());
    let next = vec![line("orders: b is behind"), line("orders: c is lost")];
    assert_eq!(reports.take(next, WallMs(3)), vec![line("orders: c is lost")]);
    let said: Vec<_> = reports.of(&orders()).into_iter().map(|said| said.at).collect();
    assert_eq!(said, vec![WallMs(1), WallMs(3)]);
    let many = (0..100).map(|at| line(&format!("orders: {at}"))).collect();
    reports.take(many, WallMs(4));
    assert_eq!(reports.of(&orders()).len(), 32);
    assert_eq!(reports.of(&"carts".parse().unwrap()).len(), 1);
    reports.keep_only(|service| service == "orders");
    assert!(reports.of(&"carts".parse().unwrap()).is_empty());
}
