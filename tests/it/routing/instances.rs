//! Instances without a database: agents that speak the real protocol over the real port, obey at
//! once, and guard nothing. With them routes change in milliseconds, so that what routers make of
//! that can be tried without PostgreSQL. They prove nothing about a failover itself.
//!
//! They share one WAL: whoever is asked holds all of it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use regent_core::id::{Epoch, InstanceName, Nonce, Revision, ServiceName};
use regent_core::role::observe::{Canary, Observation, Probe, Receiver, Run, Sender, Sight};
use regent_core::role::{
    AgentStart, Armed, DataIdentity, DirectiveNumber, HolderInstant, HolderReport, Lsn,
    MachineBoot, Order, Position, Proof, Receipt,
};
use regent_rpc::client::{AgentSender, AgentStream, Client, Session, SessionLease, SessionOptions};
use regent_rpc::convert::agent::{Ask, FromCoordinator, HELLO, Hello, Instruction, Outcome};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How often each of them says what it sees.
const TICK: Duration = Duration::from_millis(100);

/// The WAL of all instances.
#[derive(Debug)]
struct Wal {
    at: Position,
    /// Where the newest epoch began.
    switch: Lsn,
}

/// What all instances of a service have in common.
pub struct Shared {
    wal: Mutex<Wal>,
}

impl Shared {
    pub fn new() -> Arc<Self> {
        let at = Position { epoch: Epoch::NONE, end: Lsn(100), timeline: 1 };
        Arc::new(Self { wal: Mutex::new(Wal { at, switch: Lsn(0) }) })
    }

    fn at(&self) -> Position {
        self.wal.lock().unwrap().at
    }

    /// Somebody is primary under `epoch`; where its timeline began.
    fn led(&self, epoch: Epoch, timeline: u32) -> Lsn {
        let mut wal = self.wal.lock().unwrap();
        if wal.at.epoch < epoch {
            wal.switch = wal.at.end;
            wal.at = Position { epoch, end: Lsn(wal.at.end.0 + 1), timeline };
        }
        wal.switch
    }
}

/// One of them.
#[derive(Clone)]
pub struct Instance {
    pub name: InstanceName,
    /// Drawn once: its disk, and the nonce of its only start.
    pub disk: u64,
    /// Where its agent answers health checks.
    pub check: String,
    /// Whether it takes writes, as its agent would say.
    pub leads: Arc<AtomicBool>,
}

impl Instance {
    pub fn leads(&self) -> bool {
        self.leads.load(Ordering::SeqCst)
    }
}

/// Plays `one` for as long as the task lives.
pub async fn play(client: Client, service: ServiceName, one: Instance, shared: Arc<Shared>) {
    let (mut boot, mut seen) = (0, DirectiveNumber::default());
    let mut session: Option<Session> = None;
    loop {
        // What a session holds outlives a stream: a node that is gone takes nothing from it.
        if session.as_ref().is_none_or(|open| open.over().is_some()) {
            one.leads.store(false, Ordering::SeqCst);
            let options = SessionOptions { ttl: Duration::from_secs(3), ..Default::default() };
            session = Session::open(&client, options).await.ok();
        }
        let Some(session) = &session else {
            tokio::time::sleep(TICK).await;
            continue;
        };
        let life = Life {
            one: &one,
            service: &service,
            shared: &shared,
            boot: &mut boot,
            seen: &mut seen,
            told: None,
            asked: 0,
        };
        life.run(&client, session).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One stream of a session.
struct Life<'a> {
    one: &'a Instance,
    service: &'a ServiceName,
    shared: &'a Shared,
    boot: &'a mut u64,
    /// The highest directive that it obeyed: what a start has to know of.
    seen: &'a mut DirectiveNumber,
    told: Option<Instruction>,
    asked: u64,
}

impl Life<'_> {
    /// Ends when the session is over, or the stream broke.
    async fn run(mut self, client: &Client, session: &Session) -> Option<()> {
        let hold = session.hold();
        let start = AgentStart {
            session: session.id(),
            nonce: Nonce(self.one.disk),
            boot: *self.boot,
            disk: self.one.disk,
            seen: *self.seen,
            data: Some(DataIdentity {
                system: 1,
                generation: self.one.disk,
                epoch: self.shared.at().epoch,
                position: Some(self.shared.at()),
                out_of_recovery: false,
            }),
            fencer: Armed::Armed,
            run: Nonce(0),
        };
        let (service, instance) = (self.service.clone(), self.one.name.clone());
        let hello = Hello { service, instance, start };
        let mut stream = AgentStream::connect(client, hello, Duration::from_secs(1)).await.ok()?;
        let mut changes = hold.subscribe();
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                heard = stream.receiver.next() => match heard.ok()?? {
                    FromCoordinator::Answer(HELLO, Outcome::Accepted { boot, mark, .. }) => {
                        *self.boot = boot;
                        hold.granted(mark);
                    }
                    FromCoordinator::Answer(HELLO, _) => return None,
                    FromCoordinator::Answer(..) => continue,
                    FromCoordinator::Instruction(told) => self.told = Some(*told),
                },
                changed = changes.changed() => changed.ok()?,
                _ = tick.tick() => {}
            }
            if hold.over().is_some() {
                return None;
            }
            if let Some(told) = self.told.clone() {
                self.obey(&told, &hold, &stream.sender)?;
                stream.sender.observe(self.sees(&told)).ok()?;
            }
        }
    }

    fn obey(&mut self, told: &Instruction, hold: &SessionLease, to: &AgentSender) -> Option<()> {
        *self.seen = told.directive.number();
        let mut leads = false;
        let ask = match &told.directive.order {
            Order::Lead { set } => {
                hold.granted(told.mark);
                hold.carry(Some(HolderReport {
                    armed: Armed::Armed,
                    boot: MachineBoot(self.one.disk),
                    sent: HolderInstant(0),
                    watermark: None,
                    pause: None,
                    policy: told.policy,
                    set: Some(set.revision),
                }));
                leads = told.mark > Revision(0) && hold.is_held(told.mark);
                let epoch = told.epoch;
                match leads {
                    false => None,
                    true => {
                        let switch = self.shared.led(epoch, told.timeline);
                        let timeline = self.shared.at().timeline;
                        if !told.routes_open {
                            Some(Ask::Promoted { epoch, timeline, switch })
                        } else if !told.covered {
                            Some(Ask::Covered { epoch, set: set.revision })
                        } else {
                            None
                        }
                    }
                }
            }
            Order::Detach { fence } | Order::Fetch { fence, .. } => {
                Some(self.receipt(*fence, Proof::Recruited))
            }
            Order::Stop { fence } => Some(self.receipt(*fence, Proof::Stopped)),
            Order::Resign { fence } => Some(self.receipt(*fence, Proof::Resigned)),
            Order::Wait | Order::Follow { .. } | Order::Quarantined => None,
        };
        self.one.leads.store(leads, Ordering::SeqCst);
        if let Some(ask) = ask {
            self.asked += 1;
            to.ask(self.asked, ask).ok()?;
        }
        Some(())
    }

    fn receipt(&self, fence: Revision, proof: Proof) -> Ask {
        let receipt = Receipt {
            instance: self.one.name.clone(),
            fence,
            proof,
            position: Some(self.shared.at()),
            boot: *self.boot,
            nonce: Nonce(self.one.disk),
            generation: self.one.disk,
            is_proven: true,
        };
        Ask::Receipt(Box::new(receipt), None)
    }

    fn sees(&self, told: &Instruction) -> Observation {
        let others = || told.spec.instances.iter().map(|one| one.name.clone());
        let others = || others().filter(|name| *name != self.one.name);
        let (at, leads) = (self.shared.at(), self.one.leads());
        let mut seen = Observation {
            position: Some(at),
            probe: Probe::Answered(1),
            seen: told.directive.number(),
            check: self.one.check.clone(),
            sights: others()
                .map(|instance| Sight {
                    instance,
                    answered_ms: Some(0),
                    refused: false,
                    tried_ms: 0,
                })
                .collect(),
            ..Observation::default()
        };
        match &told.directive.order {
            Order::Lead { set } => {
                seen.run = if leads { Run::Primary } else { Run::Standby };
                seen.canary = Some(Canary { age_ms: 0, returned: Some(true) });
                seen.set_in_force = Some(set.revision);
                seen.covered = Some(set.revision);
                seen.prepared = told.prepare;
                seen.serving = told.epoch;
                let streams = |to| Sender { to, streams: true, is_sync: true, flushed: at.end };
                seen.senders = others().map(streams).collect();
            }
            Order::Resign { .. } | Order::Stop { .. } => seen.run = Run::Down,
            _ => {
                seen.run = Run::Standby;
                let from = told.holder.clone();
                seen.receiver = Some(Receiver { from, streams: true, silent_ms: 0 });
            }
        }
        seen
    }
}

/// Answers health checks as the agent of `one` does: `/primary` by whether it leads, all else with
/// yes.
pub async fn answer_checks(listener: TcpListener, one: Instance) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(answer(stream, one.clone()));
    }
}

async fn answer(mut stream: TcpStream, one: Instance) -> std::io::Result<()> {
    let mut asked = Vec::new();
    loop {
        while !asked.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut asked).await? == 0 {
                return Ok(());
            }
        }
        let is_primary = asked.starts_with(b"GET /primary");
        let code = if is_primary && !one.leads() { 503 } else { 200 };
        let answer = format!("HTTP/1.1 {code} -\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await?;
        asked.clear();
    }
}

/// Greets each client with the name of the instance, and holds the session.
pub async fn serve_sessions(listener: TcpListener, name: InstanceName) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let name = name.clone();
        tokio::spawn(async move {
            stream.write_all(name.as_str().as_bytes()).await?;
            // Until the client goes.
            stream.read(&mut [0]).await
        });
    }
}

/// Where a listener is.
pub fn address(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().unwrap()
}
