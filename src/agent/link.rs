//! The agent's words with the coordinators: a session that is renewed, and a stream to one node at a
//! time. Comes back by itself after a break; what arrives is told to the agent's loop.

use std::time::Duration;

use regent_core::id::{InstanceName, ServiceName};
use regent_core::role::AgentStart;
use regent_core::spec::Policy;
use regent_rpc::client::{AgentSender, AgentStream, Client, Session, SessionLease, SessionOptions};
use regent_rpc::convert::agent::{Ask, FromCoordinator, HELLO, Hello, Instruction, Outcome};
use regent_rpc::convert::common::Freshness;
use regent_rpc::convert::topology::service_in;
use tokio::sync::{mpsc, oneshot};

/// One attempt to reach a node.
const CONNECT_WITHIN: Duration = Duration::from_millis(700);
/// A policy that is older is read again.
const POLICY_AGE_MS: u64 = 5_000;
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// Number of the ask with which a new session of the same start is announced.
const RESTART: u64 = u64::MAX;

/// What the link tells the loop.
pub enum Heard {
    /// A session is open: say who starts.
    Session(SessionLease, oneshot::Sender<AgentStart>),
    /// A stream is open, and this is how to speak on it.
    Attached(AgentSender),
    /// An answer to an ask, or to the hello.
    Answer(u64, Outcome),
    /// What to be.
    Instruction(Box<Instruction>),
    /// A renewal was acknowledged, or something else became of the session.
    Renewed,
    /// The stream broke.
    Detached(String),
}

/// Who speaks.
#[derive(Clone, Debug)]
pub struct Speaker {
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub instance: InstanceName,
    /// C6.
    pub fence_budget: Duration,
    /// Which renewals it asks for.
    pub label: String,
}

/// Keeps a session and a stream until nobody listens any more.
pub async fn run(client: Client, speaker: Speaker, heard: mpsc::Sender<Heard>) {
    let mut session: Option<(Session, u64)> = None;
    while !heard.is_closed() {
        let wanted = match policy(&client, &speaker).await {
            Ok(policy) => policy.ttl_ms,
            Err(why) => match &session {
                Some((_, ttl)) => *ttl,
                None => {
                    let _ = heard.send(Heard::Detached(why)).await;
                    tokio::time::sleep(PAUSE * 4).await;
                    continue;
                }
            },
        };
        drop(session.take_if(|(open, ttl)| open.over().is_some() || *ttl != wanted));
        if session.is_none() {
            match open(&client, &speaker, wanted).await {
                Ok(opened) => session = Some((opened, wanted)),
                Err(why) => {
                    let _ = heard.send(Heard::Detached(why)).await;
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            }
        }
        let Some((open, ttl)) = &mut session else { continue };
        if let Err(why) = attach(&client, &speaker, open, *ttl, &heard).await {
            let _ = heard.send(Heard::Detached(why)).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn policy(client: &Client, speaker: &Speaker) -> Result<Policy, String> {
    let read = Freshness::MaxAgeMs(POLICY_AGE_MS);
    let found = client.get_service(&speaker.service, read).await;
    let found = found.map_err(|error| error.to_string())?;
    let service = found.service.ok_or(format!("service {} is not declared", speaker.service))?;
    service_in(service).map(|row| row.spec.policy).map_err(|error| error.to_string())
}

async fn open(client: &Client, speaker: &Speaker, ttl_ms: u64) -> Result<Session, String> {
    let options = SessionOptions {
        ttl: Duration::from_millis(ttl_ms),
        renew_interval: None,
        fence_budget: speaker.fence_budget,
        label: speaker.label.clone(),
    };
    Session::open(client, options).await.map_err(|error| error.to_string())
}

/// One stream, from its hello to its end; `Ok` when the session is over or nobody listens.
async fn attach(
    client: &Client,
    speaker: &Speaker,
    session: &mut Session,
    ttl_ms: u64,
    heard: &mpsc::Sender<Heard>,
) -> Result<(), String> {
    let (tx, rx) = oneshot::channel();
    if heard.send(Heard::Session(session.hold(), tx)).await.is_err() {
        return Ok(());
    }
    let Ok(start) = rx.await else { return Ok(()) };
    let hello =
        Hello { service: speaker.service.clone(), instance: speaker.instance.clone(), start };
    let stream = AgentStream::connect(client, hello, CONNECT_WITHIN).await;
    let mut stream = stream.map_err(|error| error.to_string())?;
    if heard.send(Heard::Attached(stream.sender.clone())).await.is_err() {
        return Ok(());
    }
    let mut changes = session.hold().subscribe();
    loop {
        tokio::select! {
            message = stream.receiver.next() => {
                let told = match message {
                    Ok(Some(FromCoordinator::Answer(number, outcome))) => {
                        let refused = matches!(&outcome, Outcome::Refused(_));
                        let told = heard.send(Heard::Answer(number, outcome)).await;
                        if number == HELLO && refused {
                            return Err("the node did not accept this start".to_owned());
                        }
                        told
                    }
                    Ok(Some(FromCoordinator::Instruction(told))) => {
                        heard.send(Heard::Instruction(told)).await
                    }
                    Ok(None) => return Err("the node ended the stream".to_owned()),
                    Err(error) => return Err(error.to_string()),
                };
                if told.is_err() {
                    return Ok(());
                }
            }
            _ = changes.changed() => {
                if session.over().is_none() {
                    if heard.send(Heard::Renewed).await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
                // The stream stays: only who renews is another one (a fence ends the holder's).
                *session = open(client, speaker, ttl_ms).await?;
                changes = session.hold().subscribe();
                let (tx, rx) = oneshot::channel();
                if heard.send(Heard::Session(session.hold(), tx)).await.is_err() {
                    return Ok(());
                }
                let Ok(start) = rx.await else { return Ok(()) };
                let asked = stream.sender.ask(RESTART, Ask::Start(Box::new(start)));
                asked.map_err(|error| error.to_string())?;
            }
        }
    }
}
