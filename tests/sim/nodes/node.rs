//! One simulated node: real consensus, real state, the core's lease clocks, and as little shell
//! around them as the real one needs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use regent_core::authz::{Principal, Role};
use regent_core::command::{Command, Entry, Lapsed, Request};
use regent_core::decide::Expiry;
use regent_core::decide::expiry::View;
use regent_core::effect::Applied;
use regent_core::id::{NodeId, Revision};
use regent_core::lease::skew::SkewVerdict;
use regent_core::lease::{NodeClock, Rules};
use regent_core::reply::Reply;
use regent_core::state::State;
use regent_core::time::WallMs;
use regent_core::timing::Timing;
use regent_raft::api::{ConsensusError, Sink};
use regent_raft::runtime::SimNode;
use regent_raft::store::sim_disk::SimDisk;
use regent_raft::store::vfs::Vfs;
use regent_raft::{Consensus, ConsensusConfig, RunMode, StartError};

use super::disk::LyingDisk;
use super::leases;
use super::network::{Port, ask};
use super::options::Mutant;
use super::world::World;

/// Profile of the simulated cluster.
pub const TIMING: Timing = Timing::LAN;

/// How long a node waits for the leader's word.
const ASK: Duration = Duration::from_millis(500);

/// A running node; clones share it.
#[derive(Clone)]
pub struct Handle {
    /// Its id.
    pub id: u64,
    /// Its tasks.
    pub life: SimNode,
    /// The real thing.
    pub consensus: Consensus,
    /// Its lease clocks.
    pub lease: Arc<Mutex<Lease>>,
    /// Where it is.
    pub world: World,
}

/// What a node knows about time and leases.
pub struct Lease {
    /// C2 and C3.
    pub clock: NodeClock,
    /// C4 and C8, when it leads.
    pub expiry: Expiry,
}

/// Hears what a node applies, as the real shell does, and tells the checker.
struct Ear {
    id: u64,
    world: World,
    lease: Arc<Mutex<Lease>>,
}

impl Sink for Ear {
    fn applied(&self, state: &State, applied: &Applied) {
        let now = self.world.reading(self.id);
        {
            let mut lease = self.lease.lock();
            let ttl = |session| state.sessions().get(&session).map(|row| row.ttl_ms);
            lease.clock.apply(applied.revision, &applied.clocks, now, ttl);
            lease.expiry.observe(applied, now);
        }
        self.world.trace(self.id, applied.revision.0, 4, || {
            format!("node {} applied {}: {:?}", self.id, applied.revision, applied.reply)
        });
        let found = self.world.checker().applied(self.id, state, applied);
        if let Err(text) = found {
            self.world.violation(text);
        }
        leases::look_at(&self.world, self.id, state, &self.lease.lock());
    }

    fn installed(&self, state: &State) {
        let now = self.world.reading(self.id);
        let sessions = state.sessions().iter().map(|(id, row)| (*id, row.ttl_ms));
        self.lease.lock().clock.reset(state.revision(), sessions, now);
        let found = self.world.checker().installed(self.id, state);
        if let Err(text) = found {
            self.world.violation(text);
        }
    }
}

/// Starts a node on a disk and puts it on the network.
pub async fn start(world: &World, id: u64, disk: &SimDisk) -> Result<(), StartError> {
    let mut config = ConsensusConfig::new(NodeId(id), "/data", TIMING);
    config.mode = RunMode::Inline { flush_min_us: 50, flush_max_us: 3_000 };
    config.segment_bytes = 32 * 1024;
    config.snapshot_after_entries = 60;
    config.keep_entries = 20;
    config.snapshot_timeout = Duration::from_secs(3);
    let lease =
        Arc::new(Mutex::new(Lease { clock: NodeClock::new(Rules::LAW), expiry: Expiry::new() }));
    let ear = Ear { id, world: world.clone(), lease: lease.clone() };
    let port = Port { me: id, world: world.clone() };
    let vfs: Arc<dyn Vfs> = match world.options().mutant {
        Some(Mutant::LyingDisk) => Arc::new(LyingDisk(disk.clone())),
        _ => Arc::new(disk.clone()),
    };
    let life = SimNode::new();
    let start = Consensus::start(config, Arc::new(port), vfs, Arc::new(ear));
    let consensus = life.scope(world.seed(), start).await?;
    let handle = Handle { id, life, consensus, lease, world: world.clone() };
    drop(handle.life.spawn(world.seed(), leader_tick(handle.clone())));
    drop(handle.life.spawn(world.seed(), rounds(handle.clone())));
    world.set_running(id, Some(handle));
    Ok(())
}

/// An entry for the log.
pub fn entry(by: Principal, request: Option<Request>, command: &Command) -> Bytes {
    Bytes::from(Entry::new(WallMs(0), by, request, command).encode())
}

/// The leader's own principal.
pub fn node_principal(id: u64) -> Principal {
    Principal::new(Role::Node, format!("n{id}"))
}

/// The leader proposes what lapsed, once per tick, in terms whose first entry it has applied.
async fn leader_tick(node: Handle) {
    let mut confirmed = None;
    loop {
        tokio::time::sleep(Duration::from_millis(TIMING.commit_tick_ms)).await;
        let status = node.consensus.status().borrow().clone();
        if !status.is_leader {
            confirmed = None;
        } else if confirmed != Some(status.term) {
            // A round in this term, and its answer applied: then this state is the newest.
            if let Ok(at) = node.consensus.read_index(ASK).await
                && node.consensus.wait_applied(at, ASK).await.is_ok()
            {
                let now = node.consensus.status().borrow().clone();
                confirmed = Some(now.term).filter(|_| now.is_leader);
            }
        }
        for command in decide(&node, confirmed) {
            node.world.note(format!("node {} proposes {command:?}", node.id));
            let proposer = node.clone();
            let propose = async move {
                let bytes = entry(node_principal(proposer.id), None, &command);
                let _ = proposer.consensus.propose(bytes, Duration::from_secs(1)).await;
            };
            drop(node.life.spawn(node.world.seed(), propose));
        }
    }
}

fn decide(node: &Handle, term: Option<u64>) -> Vec<Command> {
    let state = node.consensus.state();
    let state = state.read();
    let mut lease = node.lease.lock();
    if term.is_some() && node.world.options().mutant == Some(Mutant::EagerExpiry) {
        let session = state.sessions().iter().next_back();
        let lapsed = session.map(|(id, row)| Lapsed { session: *id, seen: row.renewed });
        if node.world.chance(20) {
            return vec![Command::ExpireSessions { lapsed: lapsed.into_iter().collect() }];
        }
    }
    let now = node.world.reading(node.id);
    let view = View { state: &state, term, skew: SkewVerdict::Agrees, now };
    let Lease { clock, expiry } = &mut *lease;
    expiry.decide(&view, clock).commands
}

/// Asks the leader for its read index often enough to believe in sessions (C3).
async fn rounds(node: Handle) {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let sent = node.world.reading(node.id);
        if let Some(revision) = read_index(&node, ASK).await {
            let mut lease = node.lease.lock();
            lease.clock.read_index_answered(sent, revision);
            leases::look_at(&node.world, node.id, &node.consensus.state().read(), &lease);
        }
    }
}

/// A linearizable revision, from whoever leads.
pub async fn read_index(node: &Handle, limit: Duration) -> Option<Revision> {
    let status = node.consensus.status().borrow().clone();
    let floor = node.world.checker().acked;
    let leader = status.leader?.0;
    let revision = if leader == node.id {
        node.consensus.read_index(limit).await.ok()?
    } else {
        let question = move |leader: Handle| {
            async move { leader.consensus.read_index(limit).await.ok() }.boxed()
        };
        ask(&node.world, node.id, leader, limit, question).await.got().flatten()?
    };
    if revision < floor {
        node.world.violation(format!(
            "S11: node {} was told revision {revision} by {leader}, but {floor} was acknowledged \
             before it asked",
            node.id
        ));
    }
    Some(revision)
}

/// Proposes on this node, or at the leader it knows of, as the real shell forwards.
pub async fn submit(node: Handle, bytes: Bytes, limit: Duration) -> Result<Reply, ConsensusError> {
    match node.consensus.propose(bytes.clone(), limit).await {
        Err(ConsensusError::NotLeader { leader: Some((leader, member)) }) => {
            let question = move |there: Handle| {
                async move { there.consensus.propose(bytes, limit).await }.boxed()
            };
            match ask(&node.world, node.id, leader.0, limit, question).await {
                super::world::Answer::Got(answer) => answer,
                super::world::Answer::Refused => {
                    Err(ConsensusError::NotLeader { leader: Some((leader, member)) })
                }
                super::world::Answer::Lost => Err(ConsensusError::Unknown),
            }
        }
        other => other,
    }
}
