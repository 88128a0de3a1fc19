//! `regent.v1.AgentService`: checks who attaches, then leaves the stream to [`crate::agents`].

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use regent_core::authz::{Principal, Verb};
use regent_core::command::{Command, Request as RequestId};
use regent_core::reply::Reply;
use regent_core::state::State;
use regent_rpc::convert::agent::{FromAgent, Hello, agent_in};
use regent_rpc::convert::status;
use regent_rpc::pb::v1::agent_service_server::AgentService;
use regent_rpc::pb::v1::{AgentMessage, CoordinatorMessage};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::agents::stream::{Agent, Log, Parts, serve};
use crate::shell::Shell;

/// Whoever opens a stream and says nothing holds a place for no longer than this.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

/// Serves agents.
pub struct AgentHandler(pub Arc<Shell>);

struct Proposals(Arc<Shell>);

impl Log for Proposals {
    fn propose(
        &self,
        by: Principal,
        request: Option<RequestId>,
        command: Command,
        until: Instant,
    ) -> BoxFuture<'static, Result<Reply, Status>> {
        let shell = self.0.clone();
        async move { shell.propose(by, request, &command, until).await }.boxed()
    }
}

fn is_declared(state: &State, agent: &Agent) -> bool {
    let row = state.services().get(&agent.service);
    row.is_some_and(|row| row.spec.instances.iter().any(|one| one.name == agent.instance))
}

impl AgentHandler {
    /// Reads the first message.
    async fn hello(
        &self,
        agent: &Agent,
        incoming: &mut Streaming<AgentMessage>,
    ) -> Result<(Hello, Option<RequestId>), Status> {
        let first = tokio::time::timeout(HELLO_PATIENCE, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello in time"))??;
        let first =
            first.ok_or_else(|| Status::invalid_argument("the stream begins with hello"))?;
        let FromAgent::Hello(hello, request) = agent_in(&agent.instance, first)? else {
            return Err(Status::invalid_argument("the stream begins with hello"));
        };
        if hello.service != agent.service || hello.instance != agent.instance {
            let resource = format!("instance {}/{}", hello.service, hello.instance);
            let by = agent.principal.to_string();
            self.0.refusals.note(&by, Verb::InstanceSpeak, &resource, "another instance's");
            return Err(status::not_allowed(format!("{by} may not speak for {resource}")));
        }
        Ok((*hello, request))
    }
}

#[tonic::async_trait]
impl AgentService for AgentHandler {
    type AttachStream = BoxStream<'static, Result<CoordinatorMessage, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let caller = self.0.admit(&request, Verb::InstanceSpeak, "instance")?;
        let principal = caller.principal.clone();
        let Some((service, instance)) = principal.instance() else {
            let why = format!("{principal} is no agent/<service>/<instance>");
            return Err(status::not_allowed(why));
        };
        let agent = Agent { principal, service, instance };
        let mut incoming = request.into_inner();
        let (hello, id) = self.hello(&agent, &mut incoming).await?;
        if !is_declared(&self.0.state.read(), &agent) {
            // This node may be behind.
            self.0.reads.linearizable(caller.until).await?;
            if !is_declared(&self.0.state.read(), &agent) {
                let name = format!("{}/{}", agent.service, agent.instance);
                return Err(status::not_found("instance", &name));
            }
        }
        let shell = &self.0;
        let parts = Parts {
            node: shell.node,
            log: Arc::new(Proposals(shell.clone())),
            state: shell.state.clone(),
            board: shell.board.clone(),
            relay: shell.relay.clone(),
            clock: shell.clock.clone(),
        };
        let messages = serve(parts, agent, hello, id, incoming)?;
        Ok(Response::new(ReceiverStream::new(messages).boxed()))
    }
}
