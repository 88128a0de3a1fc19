//! One agent's stream: its asks go into the log one after the other, its observations to the relay,
//! and it is told its instruction whenever that changes.
//!
//! An instruction is told only to a start that the log has accepted (B, E2), from rows that know of
//! that; and only for as long as no later start of the same instance is in the log.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream, StreamExt as _};
use parking_lot::RwLock;
use regent_core::authz::Principal;
use regent_core::command::{Command, Request};
use regent_core::id::{InstanceName, NodeId, Nonce, Revision, ServiceName, SessionId};
use regent_core::reply::{Rejection, Reply};
use regent_core::role::AgentStart;
use regent_core::state::State;
use regent_core::state::role::row::InstanceRow;
use regent_core::state::version::REPORTS_LEVEL;
use regent_rpc::clock::Clock;
use regent_rpc::convert::agent::{
    Ask, FromAgent, HELLO, Hello, Instruction, Outcome, RefusedAsk, agent_in, answer_out,
    instruction_out,
};
use regent_rpc::convert::status::{self, rule};
use regent_rpc::pb::v1;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

use super::board::{Board, Rows};
use super::instruct::{instruction, same};
use super::relay::{Attached, Relay};
use crate::refuse::RETRY_AFTER;

/// Asks of one agent that wait for their turn: it has one receipt, one cover and one start to ask
/// for at a time, and may ask each again.
const MAX_ASKS: usize = 16;
/// How long the log may take for one ask; the agent asks again.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages that an agent has not read yet.
const UNREAD: usize = 32;
/// An agent that reads nothing for this long is cut off; it comes back and is told everything.
const UNREAD_PATIENCE: Duration = Duration::from_secs(5);

/// How entries get into the log.
pub trait Log: Send + Sync + 'static {
    /// Proposes in the name of `by`; answers when it was applied.
    fn propose(
        &self,
        by: Principal,
        request: Option<Request>,
        command: Command,
        until: Instant,
    ) -> BoxFuture<'static, Result<Reply, Status>>;
}

/// What a stream works with.
#[derive(Clone)]
pub struct Parts {
    /// This node, for stamps.
    pub node: NodeId,
    /// Where asks go.
    pub log: Arc<dyn Log>,
    /// The replicated state.
    pub state: Arc<RwLock<State>>,
    /// Where rows come from.
    pub board: Arc<Board>,
    /// Where observations go.
    pub relay: Arc<Relay>,
    /// The only source of time.
    pub clock: Arc<dyn Clock>,
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Agent {
    /// As its certificate says.
    pub principal: Principal,
    /// Of the certificate.
    pub service: ServiceName,
    /// Of the certificate.
    pub instance: InstanceName,
}

/// What the node says.
pub type Messages = mpsc::Receiver<Result<v1::CoordinatorMessage, Status>>;

/// Serves a stream whose `hello` was read and checked.
///
/// # Errors
/// As [`Board::follow`].
pub fn serve<S>(
    parts: Parts,
    agent: Agent,
    hello: Hello,
    request: Option<Request>,
    incoming: S,
) -> Result<Messages, Status>
where
    S: Stream<Item = Result<v1::AgentMessage, Status>> + Send + Unpin + 'static,
{
    let rows = parts.board.follow(&parts.state.read(), &agent.service)?;
    let (out, messages) = mpsc::channel(UNREAD);
    let first = (HELLO, Ask::Start(Box::new(hello.start)), request);
    let asks = VecDeque::from([first]);
    let serving =
        Serving { parts, agent, rows, out, asks, accepted: None, told: None, news: false };
    tokio::spawn(serving.run(incoming));
    Ok(messages)
}

/// A start that is in the log.
struct Accepted {
    session: SessionId,
    nonce: Nonce,
    /// Rows from before this entry know nothing of it, unless they have it from an earlier one.
    since: Revision,
    attached: Attached,
}

struct Serving {
    parts: Parts,
    agent: Agent,
    rows: watch::Receiver<Rows>,
    out: mpsc::Sender<Result<v1::CoordinatorMessage, Status>>,
    asks: VecDeque<(u64, Ask, Option<Request>)>,
    accepted: Option<Accepted>,
    told: Option<Instruction>,
    /// Something happened since the instruction was looked at.
    news: bool,
}

/// An ask that is done: its number, what it was, what became of it.
type Done = (u64, Ask, Outcome);

/// Why a stream ends: what the agent is told, if it can be told anything.
type End = Option<Status>;

impl Serving {
    async fn run<S>(mut self, mut incoming: S)
    where
        S: Stream<Item = Result<v1::AgentMessage, Status>> + Unpin,
    {
        let end = self.work(&mut incoming).await;
        // First the leader is told, then the agent.
        self.accepted = None;
        if let Some(status) = end {
            let _ = self.out.try_send(Err(status));
        }
    }

    async fn work<S>(&mut self, incoming: &mut S) -> End
    where
        S: Stream<Item = Result<v1::AgentMessage, Status>> + Unpin,
    {
        let out = self.out.clone();
        let mut under_way: Option<BoxFuture<'static, Done>> = None;
        loop {
            if under_way.is_none() {
                under_way = self.asks.pop_front().map(|ask| self.begin(ask));
            }
            let done = async {
                match &mut under_way {
                    Some(work) => work.await,
                    None => std::future::pending().await,
                }
            };
            let stepped = tokio::select! {
                done = done => {
                    under_way = None;
                    self.answer(done).await
                }
                message = incoming.next() => match message {
                    Some(Ok(message)) => self.hear(message).await,
                    // It went away, or its connection did.
                    Some(Err(_)) | None => return None,
                },
                changed = self.rows.changed() => match changed {
                    Ok(()) => {
                        self.news = true;
                        Ok(())
                    }
                    Err(_) => Err(Some(stopping())),
                },
                () = out.closed() => return None,
            };
            let stepped = match stepped {
                Ok(()) => self.instruct().await,
                Err(end) => Err(end),
            };
            if let Err(end) = stepped {
                return end;
            }
        }
    }

    async fn hear(&mut self, message: v1::AgentMessage) -> Result<(), End> {
        let message = agent_in(&self.agent.instance, message);
        match message.map_err(|invalid| Some(invalid.into()))? {
            FromAgent::Hello(..) => {
                Err(Some(Status::invalid_argument("hello is said once, as the first message")))
            }
            // Of a start that is not accepted nothing is believed.
            FromAgent::Observation(seen) => {
                if let Some(accepted) = &self.accepted {
                    accepted.attached.observed(*seen);
                }
                Ok(())
            }
            FromAgent::Ask(number, ask, request) => {
                if self.asks.len() < MAX_ASKS {
                    self.asks.push_back((number, ask, request));
                    return Ok(());
                }
                let full = status::overloaded("too many asks are waiting", RETRY_AFTER);
                self.send_outcome(number, &Outcome::Refused(RefusedAsk::of(&full))).await
            }
        }
    }

    fn begin(
        &self,
        (number, ask, request): (u64, Ask, Option<Request>),
    ) -> BoxFuture<'static, Done> {
        let service = self.agent.service.clone();
        let command = match &ask {
            Ask::Start(start) => Command::AcceptStart {
                service,
                instance: self.agent.instance.clone(),
                start: start.clone(),
            },
            _ if self.accepted.is_none() => {
                let why = "no start of this agent was accepted on this stream";
                let refused = status::refused("not_accepted", why, "begin with a new start");
                let outcome = Outcome::Refused(RefusedAsk::of(&refused));
                return futures::future::ready((number, ask, outcome)).boxed();
            }
            Ask::Receipt(receipt, stopped) => {
                let receipt = receipt.clone();
                let level = self.parts.state.read().cluster().feature_level;
                match stopped.filter(|_| level >= REPORTS_LEVEL) {
                    Some(stopped) => Command::RecordStop { service, receipt, stopped },
                    None => Command::RecordReceipt { service, receipt },
                }
            }
            Ask::Covered { epoch, set } => {
                Command::ConfirmCovered { service, epoch: *epoch, set: *set }
            }
            Ask::Promoted { epoch, timeline, switch } => Command::RecordPromotion {
                service,
                epoch: *epoch,
                timeline: *timeline,
                switch: *switch,
            },
        };
        let by = self.agent.principal.clone();
        let until = Instant::now() + ASK_TIMEOUT;
        let proposed = self.parts.log.propose(by, request, command, until);
        let (state, agent) = (self.parts.state.clone(), self.agent.clone());
        async move {
            let outcome = match proposed.await {
                Ok(Reply::Rejected(why)) => {
                    Outcome::Refused(RefusedAsk::of(&status::rejected(&why)))
                }
                Ok(reply) => outcome_of(&ask, &reply, &agent, &state.read()),
                Err(status) => Outcome::Refused(RefusedAsk::of(&status)),
            };
            (number, ask, outcome)
        }
        .boxed()
    }

    async fn answer(&mut self, (number, ask, outcome): Done) -> Result<(), End> {
        if let (Ask::Start(start), Outcome::Accepted { at, .. }) = (&ask, &outcome) {
            self.accept(start, at.1);
        }
        if let Outcome::Refused(refused) = &outcome {
            let Agent { service, instance, .. } = &self.agent;
            let (rule, why) = (&refused.rule, &refused.why);
            tracing::debug!(%service, %instance, rule, why, "an agent was refused");
        }
        self.send_outcome(number, &outcome).await
    }

    fn accept(&mut self, start: &AgentStart, since: Revision) {
        let Agent { service, instance, .. } = &self.agent;
        let attached = match self.accepted.take() {
            Some(before) => before.attached,
            None => self.parts.relay.attach(self.parts.clock.clone(), service, instance),
        };
        let (session, nonce) = (start.session, start.nonce);
        self.accepted = Some(Accepted { session, nonce, since, attached });
        self.news = true;
        tracing::info!(%service, %instance, %session, "an agent is attached");
    }

    /// Tells the instruction if it is another one than was told last.
    async fn instruct(&mut self) -> Result<(), End> {
        let Some(accepted) = self.accepted.as_ref().filter(|_| self.news) else { return Ok(()) };
        self.news = false;
        let told = {
            let rows = self.rows.borrow_and_update();
            let role = rows.role.as_ref();
            let row = role.and_then(|role| role.instances.get(&self.agent.instance));
            // A start that is said again on its session changes no row, and none comes after it: rows
            // that have this very start know of it, however much older they are than its answer.
            let has_it =
                |row: &InstanceRow| (row.session, row.nonce) == (accepted.session, accepted.nonce);
            if rows.at.1 < accepted.since && !row.is_some_and(has_it) {
                return Ok(());
            }
            if row.is_some_and(|row| row.nonce != accepted.nonce) {
                let why = "another start of this instance's agent is in the log";
                return Err(Some(status::refused("nonce_stale", why, "end this agent")));
            }
            instruction(&rows, &self.agent.instance, accepted.session)
        };
        let Some(told) = told else {
            let name = format!("{}/{}", self.agent.service, self.agent.instance);
            return Err(Some(status::not_found("instance", &name)));
        };
        if self.told.as_ref().is_some_and(|before| same(before, &told)) {
            return Ok(());
        }
        let message = instruction_out(&told, self.parts.node.0);
        self.told = Some(told);
        self.send(message).await
    }

    async fn send_outcome(&mut self, number: u64, outcome: &Outcome) -> Result<(), End> {
        self.send(answer_out(number, outcome, self.parts.node.0)).await
    }

    async fn send(&mut self, message: v1::CoordinatorMessage) -> Result<(), End> {
        match self.out.send_timeout(Ok(message), UNREAD_PATIENCE).await {
            Ok(()) => Ok(()),
            // It is gone, or reads nothing; either way there is nobody to be told why.
            Err(_) => Err(None),
        }
    }
}

fn stopping() -> Status {
    status::unavailable(rule::NOT_READY, "this node is stopping", RETRY_AFTER)
}

/// What a reply that is no rejection means for the agent that asked.
fn outcome_of(ask: &Ask, reply: &Reply, agent: &Agent, state: &State) -> Outcome {
    let start = match ask {
        Ask::Start(start) => start,
        Ask::Receipt(receipt, _) => return committed(reply, Some((receipt.fence, receipt.proof))),
        Ask::Covered { .. } | Ask::Promoted { .. } => return committed(reply, None),
    };
    let incarnation = state.incarnation();
    if let Reply::StartAccepted { boot, mark, revision } = reply {
        return Outcome::Accepted { boot: *boot, mark: *mark, at: (incarnation, *revision) };
    }
    if let Reply::StartQuarantined { why, .. } = reply {
        let refused = Rejection::InstanceQuarantined {
            instance: agent.instance.to_string(),
            why: why.clone(),
        };
        return Outcome::Refused(RefusedAsk {
            rule: refused.rule().to_owned(),
            why: refused.to_string(),
            unknown: false,
            transient: false,
        });
    }
    // The same start said again changes nothing; what it was answered with is in its row.
    let role = state.roles().get(&agent.service);
    let row = role.and_then(|role| role.instances.get(&agent.instance));
    match (row, reply.revision()) {
        (Some(row), Some(revision)) if row.nonce == start.nonce => {
            let lease = role.and_then(|role| role.lease.as_ref());
            let lease = lease.filter(|lease| lease.session == start.session);
            let mark = lease.map_or(Revision(0), |lease| lease.mark);
            Outcome::Accepted { boot: row.boot, mark, at: (incarnation, revision) }
        }
        _ => Outcome::Refused(RefusedAsk {
            rule: rule::NOT_READY.to_owned(),
            why: "this node has not applied the start yet".to_owned(),
            unknown: false,
            transient: true,
        }),
    }
}

fn committed(reply: &Reply, receipt: Option<(Revision, regent_core::role::Proof)>) -> Outcome {
    Outcome::Committed { revision: reply.revision().unwrap_or_default(), receipt }
}
