//! What goes wrong, when, and that it ends: the driver of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use regent_core::command::Command;
use regent_core::id::{Incarnation, NodeId, Revision};
use regent_raft::api::Member;
use regent_raft::store::sim_disk::SimDisk;
use regent_raft::store::snapshot::SnapshotDir;
use regent_raft::store::vfs::Vfs as _;
use tokio::time::Instant;

use super::client::{self, Client};
use super::leases;
use super::members::Changes;
use super::node::{self, Handle, TIMING, entry, node_principal};
use super::options::Mutant;
use super::world::{Addr, Weather, World};

/// Voters at the beginning.
const FIRST: u64 = 3;
/// Clients.
const CLIENTS: u64 = 4;
/// After all faults have ended, a write must succeed and all nodes must agree within this long.
const RECOVERY: Duration = Duration::from_secs(15);

/// The machines and processes of a run.
pub struct Site {
    pub(super) world: World,
    pub(super) disks: BTreeMap<u64, SimDisk>,
    images: BTreeMap<u64, SimDisk>,
    /// Changes of the members that an operator asked for.
    pub(super) changes: Changes,
    pub(super) down: BTreeMap<u64, Instant>,
    pub(super) frozen: BTreeMap<u64, Instant>,
    pub(super) full: BTreeMap<u64, Instant>,
    pub(super) failing: BTreeSet<u64>,
    clients: BTreeMap<Addr, Client>,
    clients_down: BTreeMap<Addr, Instant>,
    clients_frozen: BTreeMap<Addr, Instant>,
    weather_until: Option<Instant>,
}

pub(super) fn member(id: u64) -> Member {
    Member { address: format!("node-{id}:7400"), ..Member::default() }
}

impl Site {
    /// Starts the first nodes and the clients.
    pub async fn open(world: World) -> Self {
        let mut site = Self {
            world,
            disks: BTreeMap::new(),
            images: BTreeMap::new(),
            changes: Changes::new(FIRST + 1),
            down: BTreeMap::new(),
            frozen: BTreeMap::new(),
            full: BTreeMap::new(),
            failing: BTreeSet::new(),
            clients: BTreeMap::new(),
            clients_down: BTreeMap::new(),
            clients_frozen: BTreeMap::new(),
            weather_until: None,
        };
        for id in 1..=FIRST {
            site.new_clock(id);
            site.start(id).await;
        }
        let members = (1..=FIRST).map(|id| (NodeId(id), member(id))).collect();
        if let Some(first) = site.world.running(1) {
            let begun = first.consensus.initialize(members).await;
            site.world.note(format!("initialized: {begun:?}"));
        }
        let bootstrap = Command::Bootstrap {
            incarnation: Incarnation { counter: 1, id: 7 },
            cluster: "sim".into(),
            timing: TIMING,
        };
        site.write(&bootstrap, RECOVERY).await;
        for addr in 1001..=1000 + CLIENTS {
            site.new_clock(addr);
            let client = client::start(&site.world, addr);
            site.clients.insert(addr, client);
        }
        site
    }

    pub(super) fn new_clock(&self, who: Addr) {
        let most = if self.world.within_a1() { 10_000 } else { 60_000 };
        let ppm = self.world.below(2 * most + 1) as i64 - most as i64;
        self.world.set_clock(who, ppm);
    }

    pub(super) async fn start(&mut self, id: u64) {
        let disk = self.disks.entry(id).or_default().clone();
        self.world.note(format!("start node {id}"));
        if let Err(error) = node::start(&self.world, id, &disk).await {
            self.world.violation(format!("node {id} does not start: {error}"));
            let dir = Path::new("/data/snapshots");
            let files = disk.list(dir).unwrap_or_default();
            let found =
                SnapshotDir::open(Arc::new(disk), dir).and_then(|mut dir| dir.load_newest());
            let refused = found.map(|found| found.refused);
            self.world.note(format!("snapshots of node {id}: {files:?}, damaged: {refused:?}"));
        }
    }

    /// Injects faults for the given time.
    pub async fn rage(&mut self, length: Duration) {
        let end = Instant::now() + length;
        while Instant::now() < end && self.world.checker().violation().is_none() {
            let pause = self.world.between(10, 250);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            self.recover_due().await;
            self.retire();
            self.look();
            if self.world.chance(400) {
                self.fault().await;
            }
        }
    }

    /// Ends what is due to end.
    async fn recover_due(&mut self) {
        let now = Instant::now();
        let due = |map: &BTreeMap<u64, Instant>| -> Vec<u64> {
            map.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect()
        };
        for id in due(&self.down) {
            self.down.remove(&id);
            self.start(id).await;
        }
        for id in due(&self.frozen) {
            self.frozen.remove(&id);
            self.world.note(format!("thaw node {id}"));
            if let Some(node) = self.world.running(id) {
                node.life.thaw();
            }
        }
        for id in due(&self.full) {
            self.full.remove(&id);
            self.disks[&id].set_capacity(None);
        }
        for addr in due(&self.clients_frozen) {
            self.clients_frozen.remove(&addr);
            if let Some(client) = self.clients.get(&addr) {
                client.life.thaw();
            }
        }
        for addr in due(&self.clients_down) {
            self.clients_down.remove(&addr);
            let client = client::start(&self.world, addr);
            self.clients.insert(addr, client);
        }
        if self.weather_until.is_some_and(|at| at <= now) {
            self.weather_until = None;
            self.world.note("fair weather".into());
            self.world.weather(|w| *w = Weather::fair());
        }
    }

    /// Looks at everybody at once.
    fn look(&mut self) {
        for node in self.world.nodes() {
            let status = node.consensus.status().borrow().clone();
            // No honest disk here makes any: a follower that lost what it acknowledged does.
            if !status.trouble.is_empty() {
                self.world.violation(format!("node {}: {}", node.id, status.trouble));
            }
            if status.role != "stopped" {
                continue;
            }
            if self.failing.remove(&node.id) {
                self.crash(node.id);
            } else {
                let why = status.storage_problem;
                self.world.violation(format!("node {} stopped: {why}", node.id));
            }
        }
        leases::look(&self.world);
    }

    fn crash(&mut self, id: u64) {
        let Some(node) = self.world.running(id) else { return };
        let status = node.consensus.status().borrow().clone();
        let (log, snapshot) = (status.last_log, status.snapshot);
        self.world.note(format!("crash node {id}: log {log}, snapshot {snapshot}"));
        node.life.kill();
        self.world.set_running(id, None);
        self.frozen.remove(&id);
        let seed = self.world.seed();
        let old = self.images.get(&id).filter(|_| self.mutant(Mutant::OldDisk)).map(SimDisk::fork);
        match old {
            Some(image) => {
                self.disks.insert(id, image);
            }
            None => self.disks[&id].crash(seed),
        }
        let pause = Duration::from_millis(self.world.between(10, 3_000));
        self.down.insert(id, Instant::now() + pause);
    }

    fn mutant(&self, which: Mutant) -> bool {
        self.world.options().mutant == Some(which)
    }

    fn ids(&self) -> Vec<u64> {
        self.world.nodes().iter().map(|node| node.id).collect()
    }

    fn addresses(&self) -> Vec<Addr> {
        self.ids().into_iter().chain(self.clients.keys().copied()).collect()
    }

    pub(super) fn leader(&self) -> Option<Handle> {
        let leads = |node: &Handle| node.consensus.status().borrow().is_leader;
        self.world
            .nodes()
            .into_iter()
            .filter(leads)
            .max_by_key(|node| node.consensus.status().borrow().term)
    }

    /// Somebody, the leader more often than others.
    fn victim(&self) -> Option<u64> {
        match self.leader() {
            Some(leader) if self.world.chance(400) => Some(leader.id),
            _ => self.world.pick(&self.ids()),
        }
    }

    async fn fault(&mut self) {
        let soon = |world: &World, low, high| {
            Instant::now() + Duration::from_millis(world.between(low, high))
        };
        let Some(id) = self.victim() else { return };
        let name = match self.world.below(100) {
            0..=7 => {
                let others = self.addresses();
                let (a, b) = (id, self.world.pick(&others).unwrap_or(1));
                self.world.weather(|w| {
                    w.blocked.insert((a, b));
                });
                "one-way cut"
            }
            8..=13 => {
                let others = self.addresses();
                self.world.weather(|w| {
                    for other in others {
                        w.blocked.insert((id, other));
                        w.blocked.insert((other, id));
                    }
                });
                "isolation"
            }
            14..=17 => {
                // Everybody hears only one: a bridge between two halves that cannot see each other.
                let ids = self.ids();
                self.world.weather(|w| {
                    for a in ids.iter().filter(|a| **a != id) {
                        for b in ids.iter().filter(|b| **b != id && *b != a) {
                            w.blocked.insert((*a, *b));
                        }
                    }
                });
                "bridge"
            }
            18..=33 => {
                self.world.weather(|w| w.blocked.clear());
                "heal"
            }
            34..=39 => {
                let (loss, dup, late) =
                    (self.world.below(200), self.world.below(100), self.world.below(200));
                let latency_us = self.world.between(500, 20_000);
                self.world.weather(|w| {
                    (w.loss, w.duplicates, w.stragglers) = (loss, dup, late);
                    w.latency_us = latency_us;
                });
                self.weather_until = Some(soon(&self.world, 500, 4_000));
                "bad weather"
            }
            40..=51 => {
                self.crash(id);
                "crash"
            }
            52..=53 => {
                for id in self.ids() {
                    self.crash(id);
                }
                "power cut of all"
            }
            54..=63 => {
                if let Some(node) = self.world.running(id) {
                    node.life.freeze();
                    self.frozen.insert(id, soon(&self.world, 50, 3_000));
                }
                "freeze"
            }
            64..=67 => {
                self.transfer();
                "transfer"
            }
            68..=73 | 89..=91 => self.change_members().await,
            74..=77 => {
                let disk = &self.disks[&id];
                disk.set_capacity(Some(disk.used_bytes() + self.world.below(20_000)));
                self.full.insert(id, soon(&self.world, 500, 4_000));
                "full disk"
            }
            78..=79 => {
                self.disks[&id].fail_syncs(1);
                self.failing.insert(id);
                "failed flush"
            }
            80..=83 => {
                if let Some(node) = self.world.running(id) {
                    let seed = self.world.seed();
                    let snapshot = async move {
                        let _ = node.consensus.snapshot_now().await;
                    };
                    if let Some(node) = self.world.running(id) {
                        drop(node.life.spawn(seed, snapshot));
                    }
                }
                "snapshot"
            }
            84..=88 => {
                let clients: Vec<Addr> = self.clients.keys().copied().collect();
                if let Some(addr) = self.world.pick(&clients) {
                    self.clients[&addr].life.freeze();
                    self.clients_frozen.insert(addr, soon(&self.world, 100, 5_000));
                }
                "frozen client"
            }
            92..=95 => {
                let clients: Vec<Addr> = self.clients.keys().copied().collect();
                if let Some(addr) = self.world.pick(&clients) {
                    if let Some(client) = self.clients.remove(&addr) {
                        client.life.kill();
                    }
                    self.clients_frozen.remove(&addr);
                    self.clients_down.insert(addr, soon(&self.world, 100, 2_000));
                }
                "killed client"
            }
            _ => {
                let ids: Vec<u64> = self.disks.keys().copied().collect();
                if self.mutant(Mutant::OldDisk) {
                    for id in ids {
                        // Old contents, not old ailments: those would be noticed instead.
                        let image = self.disks[&id].fork();
                        image.fail_syncs(0);
                        image.set_capacity(None);
                        self.images.insert(id, image);
                    }
                }
                "calm"
            }
        };
        self.world.note(format!("fault: {name} at {id}"));
        self.world.checker().fault(name);
    }

    fn transfer(&self) {
        let Some(leader) = self.leader() else { return };
        let node = leader.clone();
        let hand_over = async move {
            let _ = node.consensus.transfer_leader(None).await;
        };
        drop(leader.life.spawn(self.world.seed(), hand_over));
    }

    /// Ends all faults; then the cluster must commit, and all members must agree, in bounded time.
    pub async fn settle(&mut self) {
        self.world.note("heal everything".into());
        self.world.weather(|w| *w = Weather::fair());
        for map in [&mut self.down, &mut self.frozen, &mut self.full] {
            map.values_mut().for_each(|at| *at = Instant::now());
        }
        for client in self.clients.values() {
            client.life.kill();
        }
        self.clients.clear();
        self.clients_down.clear();
        self.clients_frozen.clear();
        for id in self.failing.iter() {
            self.disks[id].fail_syncs(0);
        }
        self.recover_due().await;
        let act = Command::RecordAct {
            verb: regent_core::authz::Verb::MembersWrite,
            resource: "the end".into(),
            outcome: "done".into(),
            reason: String::new(),
        };
        let Some(revision) = self.write(&act, RECOVERY).await else {
            let all: Vec<_> =
                self.world.nodes().iter().map(|n| n.consensus.status().borrow().clone()).collect();
            let text = format!("liveness: no write within {RECOVERY:?} after healing: {all:#?}");
            return self.world.violation(text);
        };
        if revision < self.world.checker().acked {
            let acked = self.world.checker().acked;
            self.world.violation(format!("S10: {acked} was acknowledged, now at {revision}"));
        }
        self.agree(revision).await;
    }

    /// Waits until all members have the same state.
    async fn agree(&mut self, at_least: Revision) {
        let end = Instant::now() + RECOVERY;
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            self.recover_due().await;
            self.look();
            let members: BTreeSet<u64> = match self.leader() {
                Some(leader) => {
                    let status = leader.consensus.status().borrow().clone();
                    status.members.iter().map(|(id, _, _)| id.0).collect()
                }
                None => BTreeSet::new(),
            };
            let states: Vec<_> = self
                .world
                .nodes()
                .iter()
                .filter(|node| members.contains(&node.id))
                .map(|node| {
                    let state = node.consensus.state();
                    let state = state.read();
                    (state.revision(), state.full_hash())
                })
                .collect();
            let here = !members.is_empty() && states.len() == members.len();
            let reached = states.iter().all(|(revision, _)| *revision >= at_least);
            let same = states.windows(2).all(|pair| pair[0].0 == pair[1].0);
            if here && reached && same {
                if states.windows(2).any(|pair| pair[0].1 != pair[1].1) {
                    self.world.violation("S9: members end with different states".into());
                }
                return;
            }
            if self.world.checker().violation().is_some() {
                return;
            }
            if Instant::now() > end {
                let all: Vec<_> = self
                    .world
                    .nodes()
                    .iter()
                    .map(|n| n.consensus.status().borrow().clone())
                    .collect();
                let text = format!("liveness: members {members:?} do not agree: {all:#?}");
                return self.world.violation(text);
            }
        }
    }

    /// Writes through whoever leads; `None` when nothing came of it in time.
    async fn write(&mut self, command: &Command, limit: Duration) -> Option<Revision> {
        let end = Instant::now() + limit;
        while Instant::now() < end && self.world.checker().violation().is_none() {
            self.recover_due().await;
            self.look();
            if let Some(leader) = self.leader() {
                let bytes = entry(node_principal(0), None, command);
                let reply = leader.consensus.propose(bytes, Duration::from_millis(500)).await;
                if let Some(revision) = reply.ok().and_then(|reply| reply.revision()) {
                    return Some(revision);
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }
}
