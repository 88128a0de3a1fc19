//! Changes of the members during a run: an operator adds nodes, gives them votes, removes them (the
//! leader, too) and replaces what was removed by new nodes.
//!
//! A removed node runs on for a while, as a machine does that nobody has switched off yet, and never
//! comes back: its successor gets a new id and an empty disk (PROTOCOL.md B).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use regent_core::id::NodeId;
use regent_raft::api::ConsensusError;
use tokio::time::Instant;

use super::chaos::{Site, member};
use super::node::Handle;
use super::world::World;

/// Members at most.
const MOST: usize = 5;
/// Members at least. Two need each other: that is the least forgiving cluster there is.
const LEAST: usize = 2;
/// Machines that run at most, with removed ones that were not switched off yet.
const MACHINES: usize = 7;

/// What the operator has asked for.
pub struct Changes {
    next_id: u64,
    /// Removals that were acknowledged since the last look.
    done: Arc<Mutex<Vec<u64>>>,
    /// Never added again, whatever came of their removal.
    removed: BTreeSet<u64>,
    /// When removed nodes are switched off.
    off_at: BTreeMap<u64, Instant>,
}

impl Changes {
    /// Nothing was asked for; the next new node gets this id.
    pub fn new(next_id: u64) -> Self {
        Self { next_id, done: Arc::default(), removed: BTreeSet::new(), off_at: BTreeMap::new() }
    }
}

impl Site {
    /// Asks the leader for a change; says which kind.
    pub(super) async fn change_members(&mut self) -> &'static str {
        let Some(leader) = self.leader() else { return "no change: no leader" };
        let status = leader.consensus.status().borrow().clone();
        let members: Vec<u64> = status.members.iter().map(|(id, _, _)| id.0).collect();
        let learners: Vec<NodeId> =
            status.members.iter().filter(|(_, _, votes)| !votes).map(|(id, _, _)| *id).collect();
        let draw = self.world.below(100);
        if let Some(id) = self.world.pick(&learners).filter(|_| draw < 50) {
            promote(leader, id);
            return "promotion";
        }
        let grows = members.len() < MOST && (members.len() == LEAST || draw >= 75);
        if grows {
            return self.add(leader, &members).await;
        }
        if members.len() <= LEAST {
            return "no change: too few";
        }
        let at_once = self.world.chance(300);
        if self.world.chance(250) {
            let id = leader.id;
            self.remove(leader, id, at_once);
            return "removal of the leader";
        }
        let Some(id) = self.world.pick(&members) else { return "no change: no member" };
        self.remove(leader, id, at_once);
        "removal"
    }

    /// Adds a node: one that waits for an addition that came to nothing, or a new one.
    async fn add(&mut self, leader: Handle, members: &[u64]) -> &'static str {
        let running = self.world.nodes();
        let waits = |id: &u64| !members.contains(id) && !self.changes.removed.contains(id);
        let id = match running.iter().map(|node| node.id).find(waits) {
            Some(id) => id,
            None if running.len() >= MACHINES => return "no change: no machine",
            None => self.new_machine().await,
        };
        add(leader, id);
        "addition"
    }

    async fn new_machine(&mut self) -> u64 {
        let id = self.changes.next_id;
        self.changes.next_id += 1;
        self.new_clock(id);
        self.start(id).await;
        id
    }

    /// Removes a node. A leader asked to remove itself hands over and names its successor, which is
    /// then asked, as the operator's command does.
    fn remove(&mut self, leader: Handle, id: u64, at_once: bool) {
        self.changes.removed.insert(id);
        if at_once {
            // Switched off before the removal is even asked for, as a dead machine is replaced.
            let node = self.world.running(id).filter(|node| node.id != leader.id);
            if let Some(node) = node {
                node.life.freeze();
                let late = Duration::from_millis(self.world.between(2_000, 5_000));
                self.frozen.insert(id, Instant::now() + late);
            }
        }
        let (done, world) = (self.changes.done.clone(), self.world.clone());
        let life = leader.life.clone();
        let work = async move {
            let mut result = leader.consensus.remove(NodeId(id)).await;
            if let Err(ConsensusError::NotLeader { leader: Some((next, _)) }) = &result
                && let Some(next) = world.running(next.0)
            {
                result = next.consensus.remove(NodeId(id)).await;
            }
            world.note(format!("remove {id}: {result:?}"));
            if result.is_ok() {
                world.checker().fault("removal done");
                done.lock().push(id);
            }
        };
        drop(life.spawn(self.world.seed(), work));
    }

    /// Switches off, for good, what was removed some time ago.
    pub(super) fn retire(&mut self) {
        for id in std::mem::take(&mut *self.changes.done.lock()) {
            let wait = Duration::from_millis(self.world.between(100, 3_000));
            self.changes.off_at.insert(id, Instant::now() + wait);
        }
        let now = Instant::now();
        let due: Vec<u64> =
            self.changes.off_at.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in due {
            self.changes.off_at.remove(&id);
            self.world.note(format!("node {id} is switched off for good"));
            if let Some(node) = self.world.running(id) {
                node.life.kill();
            }
            self.world.set_running(id, None);
            for map in [&mut self.down, &mut self.frozen, &mut self.full] {
                map.remove(&id);
            }
            self.failing.remove(&id);
        }
    }
}

fn add(leader: Handle, id: u64) {
    let (life, world) = (leader.life.clone(), leader.world.clone());
    let seed = world.seed();
    let work = async move {
        let result = leader.consensus.add_learner(NodeId(id), member(id)).await;
        done(&world, "addition done", &format!("add {id}"), result);
    };
    drop(life.spawn(seed, work));
}

fn promote(leader: Handle, id: NodeId) {
    let (life, world) = (leader.life.clone(), leader.world.clone());
    let seed = world.seed();
    let work = async move {
        let result = leader.consensus.promote(id).await;
        done(&world, "promotion done", &format!("promote {id}"), result);
    };
    drop(life.spawn(seed, work));
}

fn done(world: &World, name: &'static str, text: &str, result: Result<(), ConsensusError>) {
    world.note(format!("{text}: {result:?}"));
    if result.is_ok() {
        world.checker().fault(name);
    }
}
