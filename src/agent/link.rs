//! The agent's words with the coordinators: a session that is renewed, and a stream to one node at a
//! time. Comes back by itself after a break; what arrives is told to the agent's loop.

use std::time::Duration;

use regent_core::id::{InstanceName, Revision, ServiceName};
use regent_core::lease::holder::Standing;
use regent_core::role::AgentStart;
use regent_core::spec::Policy;
use regent_rpc::client::{
    AgentSender, AgentStream, CallError, CallErrorKind, Client, Session, SessionLease,
    SessionOptions,
};
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
/// Between two attempts of a start that is refused again and again: what is wrong waits for people,
/// or for the session of another agent to end.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

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
    let mut pause = PAUSE;
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
        drop(session.take_if(|(open, ttl)| open.over().is_some() || is_other(open, *ttl, wanted)));
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
        let mut refused = false;
        if let Err(broke) = attach(&client, &speaker, open, *ttl, &heard).await {
            refused = broke.refused;
            let _ = heard.send(Heard::Detached(broke.why)).await;
        }
        // Agents that were refused together do not come back together.
        let jitter = pause.mul_f64(rand::random_range(0.0..0.25));
        tokio::time::sleep(if refused { pause + jitter } else { PAUSE }).await;
        pause = next_pause(pause, refused);
    }
}

/// Longer after each refusal in a row, short after anything else: a node that is gone is no reason to
/// keep the others waiting.
fn next_pause(pause: Duration, refused: bool) -> Duration {
    if refused { (pause * 2).min(LONGEST_PAUSE) } else { PAUSE }
}

/// Why a stream ended.
struct Broke {
    why: String,
    /// A node said no, and would again.
    refused: bool,
}

impl From<String> for Broke {
    fn from(why: String) -> Self {
        Self { why, refused: false }
    }
}

impl From<CallError> for Broke {
    fn from(error: CallError) -> Self {
        use CallErrorKind::{Invalid, NotAllowed, NotFound, Refused};
        let refused = matches!(error.kind(), Refused | NotAllowed | NotFound | Invalid);
        Self { why: error.to_string(), refused }
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

/// Whether the policy wants another ttl than the session has. One that a primary holds its lease by is
/// replaced by a longer one only: its fencer's deadline does not fall, so neither may the lapse
/// (docs/adr/0010, 3). A shorter one is in force from the next grant on.
fn is_other(session: &Session, ttl: u64, wanted: u64) -> bool {
    let holds = session.hold().grant() > Revision(0);
    if holds { wanted > ttl } else { wanted != ttl }
}

/// Whether nothing is held by this session any more: it ended, or its right ran out while nobody
/// could be reached, which no renewal brings back (C1). A new one is bound to the same epoch.
fn is_over(session: &Session) -> bool {
    let hold = session.hold();
    let mark = hold.grant();
    hold.over().is_some() || mark.0 > 0 && hold.standing(mark) == Standing::Over
}

/// One stream, from its hello to its end; `Ok` when the session is over or nobody listens.
async fn attach(
    client: &Client,
    speaker: &Speaker,
    session: &mut Session,
    ttl_ms: u64,
    heard: &mpsc::Sender<Heard>,
) -> Result<(), Broke> {
    let (tx, rx) = oneshot::channel();
    if heard.send(Heard::Session(session.hold(), tx)).await.is_err() {
        return Ok(());
    }
    let Ok(start) = rx.await else { return Ok(()) };
    let hello =
        Hello { service: speaker.service.clone(), instance: speaker.instance.clone(), start };
    let stream = AgentStream::connect(client, hello, CONNECT_WITHIN).await;
    let mut stream = stream?;
    if heard.send(Heard::Attached(stream.sender.clone())).await.is_err() {
        return Ok(());
    }
    let mut changes = session.hold().subscribe();
    loop {
        tokio::select! {
            message = stream.receiver.next() => {
                let told = match message {
                    Ok(Some(FromCoordinator::Answer(number, outcome))) => {
                        let refused = match &outcome {
                            Outcome::Refused(refused) if number == HELLO => Some(refused.transient),
                            _ => None,
                        };
                        let told = heard.send(Heard::Answer(number, outcome)).await;
                        if let Some(transient) = refused {
                            let why = "the node did not accept this start".to_owned();
                            return Err(Broke { why, refused: !transient });
                        }
                        told
                    }
                    Ok(Some(FromCoordinator::Instruction(told))) => {
                        heard.send(Heard::Instruction(told)).await
                    }
                    Ok(None) => return Err("the node ended the stream".to_owned().into()),
                    Err(error) => return Err(error.into()),
                };
                if told.is_err() {
                    return Ok(());
                }
            }
            _ = changes.changed() => {
                if !is_over(session) {
                    if heard.send(Heard::Renewed).await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
                // The stream stays: only who renews is another one (a fence ends the holder's).
                let next = open(client, speaker, ttl_ms).await?;
                // Word that it is closed could come before the new one is bound, and end the lease.
                session.abandon();
                *session = next;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_again_and_again_asks_more_and_more_rarely() {
        let mut pauses = vec![PAUSE];
        for _ in 0..10 {
            pauses.push(next_pause(pauses[pauses.len() - 1], true));
        }
        assert!(pauses.windows(2).all(|two| two[0] < two[1] || two[1] == LONGEST_PAUSE));
        assert_eq!(pauses[10], LONGEST_PAUSE);
        assert_eq!(next_pause(LONGEST_PAUSE, false), PAUSE, "one that was heard begins anew");
    }
}
