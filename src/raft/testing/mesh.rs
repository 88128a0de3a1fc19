//! A network in memory and a cluster of nodes on it, for this crate's tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use parking_lot::Mutex;
use regent_core::authz::{Principal, Verb};
use regent_core::command::{Command, Entry};
use regent_core::effect::Applied;
use regent_core::id::{NodeId, Revision};
use regent_core::reply::Reply;
use regent_core::state::State;
use regent_core::time::WallMs;
use regent_core::timing::Timing;

use crate::api::{
    ConsensusError, ConsensusStatus, Member, RpcKind, Sink, Transport, TransportError,
};
use crate::runtime::SimNode;
use crate::store::sim_disk::SimDisk;
use crate::{Consensus, ConsensusConfig, RunMode};

const LATENCY: Duration = Duration::from_micros(300);

/// How long a condition may take to come true, in virtual time.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Who is up, and which ways are cut.
#[derive(Default)]
pub struct Mesh {
    nodes: Mutex<BTreeMap<u64, Consensus>>,
    cut: Mutex<BTreeSet<(u64, u64)>>,
    /// Ways that take longer than the others.
    slow: Mutex<BTreeMap<(u64, u64), Duration>>,
}

impl Mesh {
    fn open(&self, from: u64, to: u64) -> bool {
        !self.cut.lock().contains(&(from, to))
    }

    /// Brings a message over, or never.
    async fn hop(&self, from: u64, to: u64) {
        let latency = self.slow.lock().get(&(from, to)).copied().unwrap_or(LATENCY);
        tokio::time::sleep(latency).await;
        if !self.open(from, to) {
            std::future::pending::<()>().await;
        }
    }

    fn node(&self, id: u64) -> Result<Consensus, TransportError> {
        self.nodes.lock().get(&id).cloned().ok_or(TransportError("down".into()))
    }
}

struct Port {
    me: u64,
    mesh: Arc<Mesh>,
}

impl Transport for Port {
    fn call(
        &self,
        to: NodeId,
        _member: &Member,
        kind: RpcKind,
        body: Bytes,
        _ttl: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (mesh, me, to) = (self.mesh.clone(), self.me, to.0);
        async move {
            mesh.hop(me, to).await;
            let answer = mesh.node(to)?.handle(kind, body).await;
            mesh.hop(to, me).await;
            answer
        }
        .boxed()
    }

    fn stream_append(
        &self,
        to: NodeId,
        _member: &Member,
        input: BoxStream<'static, Bytes>,
    ) -> Option<
        BoxFuture<
            'static,
            Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError>,
        >,
    > {
        let (mesh, me, to) = (self.mesh.clone(), self.me, to.0);
        Some(
            async move {
                mesh.hop(me, to).await;
                let node = mesh.node(to)?;
                let there = mesh.clone();
                let input = input.then(move |body| {
                    let mesh = there.clone();
                    async move {
                        mesh.hop(me, to).await;
                        body
                    }
                });
                let answers = node.handle_append_stream(input.boxed()).then(move |answer| {
                    let mesh = mesh.clone();
                    async move {
                        mesh.hop(to, me).await;
                        answer
                    }
                });
                Ok(answers.boxed())
            }
            .boxed(),
        )
    }

    fn snapshot(
        &self,
        to: NodeId,
        _member: &Member,
        head: Bytes,
        data: Arc<Vec<u8>>,
        _ttl: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (mesh, me, to) = (self.mesh.clone(), self.me, to.0);
        async move {
            mesh.hop(me, to).await;
            let answer = mesh.node(to)?.handle_snapshot(head, data.to_vec()).await;
            mesh.hop(to, me).await;
            answer
        }
        .boxed()
    }
}

/// Counts what a node was told.
#[derive(Default)]
pub struct Heard {
    pub applied: Mutex<Vec<Revision>>,
    pub installed: Mutex<Vec<Revision>>,
}

impl Sink for Heard {
    fn applied(&self, state: &State, applied: &Applied) {
        assert_eq!(state.revision(), applied.revision);
        self.applied.lock().push(applied.revision);
    }

    fn installed(&self, state: &State) {
        self.installed.lock().push(state.revision());
    }
}

/// A cluster of nodes on a mesh.
pub struct Cluster {
    pub mesh: Arc<Mesh>,
    pub disks: BTreeMap<u64, SimDisk>,
    pub sinks: BTreeMap<u64, Arc<Heard>>,
    lives: BTreeMap<u64, SimNode>,
    pub tune: fn(&mut ConsensusConfig),
}

pub fn member(id: u64) -> Member {
    Member { address: format!("127.0.0.1:{}", 7000 + id), ..Member::default() }
}

/// An encoded entry that leaves a record with this text.
pub fn note(text: &str) -> Bytes {
    let command = Command::RecordAct {
        verb: Verb::MembersWrite,
        resource: text.into(),
        outcome: "done".into(),
        reason: String::new(),
    };
    Bytes::from(Entry::new(WallMs(1), principal(), None, &command).encode())
}

/// Who writes in these tests.
pub fn principal() -> Principal {
    Principal { role: regent_core::authz::Role::Node, name: "n".into() }
}

impl Cluster {
    /// Empty disks, nothing runs.
    pub fn new(tune: fn(&mut ConsensusConfig)) -> Self {
        Self {
            mesh: Arc::default(),
            disks: BTreeMap::new(),
            sinks: BTreeMap::new(),
            lives: BTreeMap::new(),
            tune,
        }
    }

    /// Nodes 1 to `count` with a leader.
    pub async fn of(count: u64, tune: fn(&mut ConsensusConfig)) -> Self {
        let mut cluster = Self::new(tune);
        for id in 1..=count {
            cluster.start(id).await;
        }
        let members = (1..=count).map(|id| (NodeId(id), member(id))).collect();
        cluster.node(1).initialize(members).await.expect("fresh");
        cluster.leader().await;
        cluster
    }

    /// Starts a node on its disk; makes one if need be.
    pub async fn start(&mut self, id: u64) {
        let mut config = ConsensusConfig::new(NodeId(id), "/data", Timing::LAN);
        config.mode = RunMode::Inline { flush_min_us: 50, flush_max_us: 200 };
        config.segment_bytes = 64 * 1024;
        (self.tune)(&mut config);
        let disk = self.disks.entry(id).or_default().clone();
        let sink = Arc::new(Heard::default());
        let port = Arc::new(Port { me: id, mesh: self.mesh.clone() });
        let life = SimNode::new();
        let start = Consensus::start(config, port, Arc::new(disk), sink.clone());
        let node = life.scope(id, start).await.expect("the node starts");
        self.mesh.nodes.lock().insert(id, node);
        self.sinks.insert(id, sink);
        self.lives.insert(id, life);
    }

    /// SIGKILL, and a power cut that keeps what `seed` says of the unsynced writes.
    pub fn crash(&mut self, id: u64, seed: u64) {
        self.lives.remove(&id).expect("it runs").kill();
        self.mesh.nodes.lock().remove(&id);
        self.disks[&id].crash(seed);
    }

    pub async fn stop(&mut self, id: u64) {
        let node = self.mesh.nodes.lock().remove(&id).expect("it runs");
        node.shutdown().await;
        self.lives.remove(&id);
        self.disks[&id].kill();
    }

    pub fn node(&self, id: u64) -> Consensus {
        self.mesh.nodes.lock()[&id].clone()
    }

    pub fn status(&self, id: u64) -> ConsensusStatus {
        self.node(id).status().borrow().clone()
    }

    pub fn running(&self) -> Vec<u64> {
        self.mesh.nodes.lock().keys().copied().collect()
    }

    /// Cuts every way between `id` and the others.
    pub fn isolate(&self, id: u64) {
        let mut cut = self.mesh.cut.lock();
        for other in self.mesh.nodes.lock().keys() {
            cut.insert((id, *other));
            cut.insert((*other, id));
        }
    }

    /// Makes every message between `id` and the others take `latency`; all still arrive.
    pub fn slow_down(&self, id: u64, latency: Duration) {
        let mut slow = self.mesh.slow.lock();
        for other in self.mesh.nodes.lock().keys() {
            slow.insert((id, *other), latency);
            slow.insert((*other, id), latency);
        }
    }

    pub fn heal(&self) {
        self.mesh.cut.lock().clear();
        self.mesh.slow.lock().clear();
    }

    /// The node that can commit, once there is one.
    pub async fn leader(&self) -> u64 {
        let find = async {
            loop {
                for id in self.running() {
                    if self.status(id).is_leader {
                        let read = self.node(id).read_index(Duration::from_millis(500)).await;
                        if read.is_ok() {
                            return id;
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, find).await.expect("a leader in time")
    }

    /// Proposes on whoever leads until it is done; returns its revision.
    pub async fn write(&self, text: &str) -> Revision {
        let write = async {
            loop {
                let id = self.leader().await;
                match self.node(id).propose(note(text), Duration::from_secs(1)).await {
                    Ok(reply) => return done(&reply),
                    Err(ConsensusError::Stopped(why)) => panic!("{why}"),
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, write).await.expect("a write in time")
    }

    /// Proposes on one node, which must lead.
    pub async fn write_on(&self, id: u64, text: String) -> Revision {
        done(&self.node(id).propose(note(&text), PATIENCE).await.expect("it leads"))
    }

    /// Waits until every running node has applied `revision`, and all states are equal.
    pub async fn converge(&self, revision: Revision) {
        let mut states = Vec::new();
        for id in self.running() {
            let node = self.node(id);
            node.wait_applied(revision, PATIENCE).await.expect("it catches up");
            let state = node.state();
            let state = state.read();
            states.push((state.revision(), state.full_hash(), state.rolling_hash()));
        }
        for pair in states.windows(2).filter(|p| p[0].0 == p[1].0) {
            assert_eq!(pair[0], pair[1]);
        }
    }
}

pub fn done(reply: &Reply) -> Revision {
    reply.revision().unwrap_or_else(|| panic!("refused: {reply:?}"))
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Starts a node on a disk, whatever comes of it.
pub async fn start_alone(
    cluster: &Cluster,
    config: ConsensusConfig,
    disk: &SimDisk,
) -> Result<Consensus, crate::StartError> {
    let port = Arc::new(Port { me: config.id.0, mesh: cluster.mesh.clone() });
    let disk = Arc::new(disk.clone());
    SimNode::new().scope(1, Consensus::start(config, port, disk, Arc::new(Heard::default()))).await
}
