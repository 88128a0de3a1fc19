//! Who may vote: a node whose disk went back in time may not (PROTOCOL.md B).
//!
//! Both sides of every call among nodes show which start of which disk they are. A node compares
//! that with the newest start it knows of the other: from the replicated state, and from what it
//! heard since. A node that starts asks the others first, and neither votes nor campaigns until a
//! majority of the voters (itself included) has not objected. One objection is enough for
//! quarantine, and nothing in this process ends a quarantine: the disk has forgotten votes or
//! entries that it acknowledged, so the way back is a new node id on an empty disk.
//!
//! A boot counter does not tell an image of the newest boot: so every node remembers what each other
//! one has promised (votes, acknowledged entries), and every process says what its disk held when it
//! started.
//!
//! What this does not see: promises that only nodes heard which have been restarted since, or that
//! were made in the last second and not to the leader. And a majority that itself lost the record:
//! a start is in the log of a majority soon after it happened, and any two majorities share a node;
//! but an answer of a node that lags behind that record is no objection. Asking all nodes would see
//! that too, at the price of a cluster that cannot restart a node while another is down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use regent_core::id::{Incarnation, NodeId};
use regent_core::state::State;
use regent_raft::held::Held;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;

use crate::start::{Start, held_from_metadata, life_from_metadata};

/// Nodes whose starts are remembered; far above any real cluster, so that it bounds only nonsense.
const MAX_HEARD: usize = 1024;

/// Whether this node may vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Too few others have answered yet.
    Asking,
    /// A majority did not object.
    Admitted,
    /// Somebody objected; the reason is for people.
    Quarantined {
        /// What they said.
        why: String,
        /// It is about this disk, and so for ever: it is noted there. Otherwise another setting (the
        /// cluster's name, a certificate) may put it right with the next start.
        disk: bool,
    },
}

/// What the replicated state says of the nodes, as far as it was applied here.
#[derive(Default)]
struct Known {
    boots: BTreeMap<NodeId, Start>,
    members: BTreeSet<NodeId>,
    life: Incarnation,
}

/// What is known of all nodes' starts, this one's standing among them.
pub struct Admission {
    node: NodeId,
    start: Start,
    heard: Mutex<BTreeMap<NodeId, Start>>,
    known: RwLock<Known>,
    /// The most that each node is known to have promised.
    promised: Mutex<BTreeMap<NodeId, Held>>,
    /// Counts what was learned of any node's start: a stream is judged again when it moved.
    learned: AtomicU64,
    standing: watch::Sender<Standing>,
    life_elsewhere: Mutex<Option<(NodeId, Incarnation)>>,
}

/// A node is not of this node's life of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OtherLife {
    /// It belongs to another one.
    #[error("node {node} belongs to incarnation {theirs}, this one to {ours}")]
    Other {
        /// Which node.
        node: NodeId,
        /// Its life.
        theirs: Incarnation,
        /// This node's.
        ours: Incarnation,
    },
    /// It has no state and is no member; the entry that makes it one may be on its way.
    #[error("node {node} has no state and is no member of incarnation {ours}")]
    Unknown {
        /// Which node.
        node: NodeId,
        /// This node's life.
        ours: Incarnation,
    },
}

impl Admission {
    /// Nothing is known yet; this node is `node` with `start`.
    pub fn new(node: NodeId, start: Start) -> Self {
        Self {
            node,
            start,
            heard: Mutex::default(),
            known: RwLock::default(),
            promised: Mutex::default(),
            learned: AtomicU64::new(0),
            standing: watch::Sender::new(Standing::Asking),
            life_elsewhere: Mutex::default(),
        }
    }

    /// The cluster's row was applied, or the whole state replaced. Called with the state locked, so
    /// what is needed of it is copied: whoever judges a call must not wait for `apply`.
    ///
    /// The log may know a later start of this very node than the one that runs: this disk is an old
    /// copy and the log was fetched from the others since, or a copy of it runs elsewhere.
    pub fn noticed(&self, state: &State) {
        let cluster = state.cluster();
        *self.known.write() = Known {
            boots: cluster.boots.iter().map(|(node, boot)| (*node, Start::from(boot))).collect(),
            members: cluster.voters.iter().chain(&cluster.learners).copied().collect(),
            life: cluster.incarnation,
        };
        self.learned.fetch_add(1, Ordering::AcqRel);
        if let Some(recorded) = self.recorded(self.node)
            && let Some(why) = self.start.objection(&recorded)
        {
            self.quarantine_self(format!("the cluster's log says: {why}"));
        }
    }

    /// This node's standing, kept current.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Why this node may not vote; `None` when it may, or may soon.
    pub fn quarantine(&self) -> Option<String> {
        match &*self.standing.borrow() {
            Standing::Quarantined { why, .. } => Some(why.clone()),
            Standing::Asking | Standing::Admitted => None,
        }
    }

    /// A majority did not object. Does nothing after a quarantine.
    pub fn admit(&self) -> bool {
        self.standing.send_if_modified(|standing| {
            let admitted = *standing == Standing::Asking;
            if admitted {
                *standing = Standing::Admitted;
            }
            admitted
        });
        *self.standing.borrow() == Standing::Admitted
    }

    /// Somebody objected to this disk: it must not vote any more. The first reason that is about the
    /// disk stays.
    pub fn quarantine_self(&self, why: String) {
        self.standing.send_if_modified(|standing| {
            let first = !matches!(standing, Standing::Quarantined { disk: true, .. });
            if first {
                tracing::error!(
                    node = %self.node, why,
                    "QUARANTINED: this node will not vote; add it again under a new node id, with \
                     an empty data directory"
                );
                *standing = Standing::Quarantined { why, disk: true };
            }
            first
        });
    }

    /// Somebody objected to this process, for another reason than its disk: it does not vote. The
    /// first reason stays.
    pub fn stand_aside(&self, why: String) {
        self.standing.send_if_modified(|standing| {
            let first = !matches!(standing, Standing::Quarantined { .. });
            if first {
                tracing::error!(
                    node = %self.node, why,
                    "QUARANTINED: this process will not vote; put right what another node objects \
                     to, here or there, and start it again"
                );
                *standing = Standing::Quarantined { why, disk: false };
            }
            first
        });
    }

    /// The newest start known of `node`: what the log says, or what was heard since.
    fn newest(&self, node: NodeId) -> Option<Start> {
        let recorded = self.recorded(node);
        let heard = self.heard.lock().get(&node).copied();
        match (recorded, heard) {
            // The log wins unless the process we heard is a later boot of the very same disk.
            (Some(log), Some(ear)) if ear.disk == log.disk && ear.boot >= log.boot => Some(ear),
            (Some(log), _) => Some(log),
            (None, heard) => heard,
        }
    }

    /// The newest start of `node` in the log.
    pub fn recorded(&self, node: NodeId) -> Option<Start> {
        self.known.read().boots.get(&node).copied()
    }

    /// A process that may speak for `node` has promised this, and it is on its disk.
    pub fn heard_promise(&self, node: NodeId, held: Held) {
        let mut promised = self.promised.lock();
        let room = promised.len() < MAX_HEARD;
        match promised.get_mut(&node) {
            Some(known) => *known = held.max(*known),
            None if room => drop(promised.insert(node, held)),
            None => {}
        }
    }

    /// The most that `node` is known to have promised.
    pub fn promised(&self, node: NodeId) -> Option<Held> {
        self.promised.lock().get(&node).copied()
    }

    /// Why a disk that held this when its process started is not the one that `node` promised with.
    fn forgot(&self, node: NodeId, held: Held) -> Option<String> {
        let promised = self.promised(node).filter(|promised| held < *promised)?;
        let show = |it: Held| format!("term {} of node {}, entry {}", it.term, it.leader, it.last);
        Some(format!(
            "its disk held {} when it started, but the node has promised {} before: its disk went \
             back in time",
            show(held),
            show(promised)
        ))
    }

    /// Whether a process that says it is `start` of `node`, and that its disk held this when it
    /// started, may speak for it; remembers it if so. The boot counter alone does not tell an image
    /// that was taken during the newest boot: its next start counts one more, as an honest one's.
    ///
    /// # Errors
    /// Says what speaks against it, for people.
    pub fn judge(&self, node: NodeId, start: Start, held: Option<Held>) -> Result<(), String> {
        let judged = self.heard.lock().get(&node) == Some(&start);
        if let Some(newest) = self.newest(node) {
            // What it has promised since is not held against what its disk held when it started. A
            // start that is recorded was judged by others, who may have heard less.
            if newest == start && judged {
                return Ok(());
            }
            if let Some(why) = start.objection(&newest) {
                return Err(why);
            }
        }
        // Who does not say what its disk held is judged as if it had held nothing.
        if let Some(why) = self.forgot(node, held.unwrap_or_default()) {
            return Err(why);
        }
        let mut heard = self.heard.lock();
        if heard.len() < MAX_HEARD || heard.contains_key(&node) {
            heard.insert(node, start);
            drop(heard);
            self.learned.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    /// The same for the metadata of a request or an answer.
    ///
    /// # Errors
    /// Says what speaks against it, or that the metadata is missing.
    pub fn judge_metadata(&self, node: NodeId, metadata: &MetadataMap) -> Result<(), String> {
        let start = Start::from_metadata(metadata)
            .ok_or_else(|| format!("node {node} did not say which start it is"))?;
        self.judge_life(node, metadata).map_err(|other| other.to_string())?;
        self.judge(node, start, held_from_metadata(metadata))
    }

    /// After a recovery the old majority may come back: it is another life of the cluster, and its
    /// entries and votes must not mix with this one's. A node that has no state yet has no life; in
    /// a cluster that has one it counts only if it is a committed member, because an old node that
    /// was installed anew would otherwise win this one over for a cluster of the old members.
    ///
    /// # Errors
    /// Says which life each belongs to, or that the node is not known yet.
    pub fn judge_life(&self, node: NodeId, metadata: &MetadataMap) -> Result<(), OtherLife> {
        let theirs = life_from_metadata(metadata).unwrap_or_default();
        let ours = self.life();
        if ours.counter == 0 || theirs == ours {
            return Ok(());
        }
        if theirs.counter > 0 {
            return Err(OtherLife::Other { node, theirs, ours });
        }
        if self.is_member(node) { Ok(()) } else { Err(OtherLife::Unknown { node, ours }) }
    }

    /// Whether the committed membership, as far as it was applied here, has `node` in it.
    fn is_member(&self, node: NodeId) -> bool {
        self.known.read().members.contains(&node)
    }

    /// Another node said which life of the cluster it belongs to; counter 0 is none.
    pub fn heard_life(&self, node: NodeId, life: Incarnation) {
        if life.counter > 0 {
            *self.life_elsewhere.lock() = Some((node, life));
        }
    }

    /// A node that said that it belongs to a life of the cluster.
    pub fn life_elsewhere(&self) -> Option<(NodeId, Incarnation)> {
        *self.life_elsewhere.lock()
    }

    /// The incarnation of this node's state; counter 0 while there is none.
    pub fn life(&self) -> Incarnation {
        self.known.read().life
    }

    /// Judges who opens a stream, and keeps what is needed to do so again.
    ///
    /// # Errors
    /// As [`Self::judge_metadata`].
    pub fn pass(self: &Arc<Self>, node: NodeId, metadata: &MetadataMap) -> Result<Pass, String> {
        // Before the judgement: what is learned meanwhile makes the next one due.
        let judged = self.learned.load(Ordering::Acquire);
        self.judge_metadata(node, metadata)?;
        let start = Start::from_metadata(metadata).ok_or("it did not say which start it is")?;
        let held = held_from_metadata(metadata);
        Ok(Pass { admission: self.clone(), node, start, held, judged })
    }
}

/// The right of one start of a node to go on speaking on a stream, which may outlive that right: the
/// node was started from another copy of its disk meanwhile.
///
/// Which life it belongs to is judged once: a new member's state goes through the lives before on
/// its way to the present one, and must not end the stream that takes it there.
pub struct Pass {
    admission: Arc<Admission>,
    node: NodeId,
    start: Start,
    held: Option<Held>,
    judged: u64,
}

impl Pass {
    /// Whose it is.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Judges again, if anything was learned of any node's start since. Costs one load otherwise.
    ///
    /// # Errors
    /// Says what speaks against it now.
    pub fn still_good(&mut self) -> Result<(), String> {
        let learned = self.admission.learned.load(Ordering::Acquire);
        if learned != self.judged {
            self.admission.judge(self.node, self.start, self.held)?;
            self.judged = learned;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use regent_core::id::{Nonce, Revision};

    fn start(disk: u64, boot: u64, nonce: u64) -> Start {
        Start { disk, boot, nonce: Nonce(nonce) }
    }

    #[test]
    fn an_older_process_of_a_node_is_refused_once_a_newer_was_heard() {
        let it = Admission::new(NodeId(1), start(1, 1, 1));
        assert_eq!(it.judge(NodeId(2), start(5, 3, 1), None), Ok(()));
        assert_eq!(it.judge(NodeId(2), start(5, 4, 2), None), Ok(()));
        assert!(it.judge(NodeId(2), start(5, 3, 1), None).is_err());
        assert!(it.judge(NodeId(2), start(5, 4, 3), None).is_err(), "a copied disk");
        assert_eq!(it.judge(NodeId(2), start(5, 4, 2), None), Ok(()), "and the true one goes on");
    }

    #[test]
    fn an_image_of_the_newest_boot_is_known_by_what_it_forgot() {
        let held = |term, last| Held { term, leader: NodeId(1), last: Revision(last) };
        let it = Admission::new(NodeId(1), start(1, 1, 1));
        let node = NodeId(2);
        assert_eq!(it.judge(node, start(5, 5, 1), Some(held(3, 40))), Ok(()));
        it.heard_promise(node, held(3, 70));
        it.heard_promise(node, held(3, 60));
        for forgot in [held(2, 90), held(3, 69), held(0, 0)] {
            let why = it.judge(node, start(5, 6, 2), Some(forgot)).expect_err("it forgot");
            assert!(why.contains("entry 70"), "{why}");
        }
        // The process that promised is not measured by what it held when it started.
        assert_eq!(it.judge(node, start(5, 5, 1), Some(held(3, 40))), Ok(()));
        // Nor does a majority that heard less make it right.
        it.known.write().boots.insert(node, start(5, 6, 2));
        assert!(it.judge(node, start(5, 6, 2), Some(held(3, 69))).is_err());
        // A later leader may have cut what was never committed.
        assert_eq!(it.judge(node, start(5, 6, 2), Some(held(4, 50))), Ok(()));
    }

    fn metadata(start: Start) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert(crate::start::HEADER, start.header());
        metadata
    }

    #[test]
    fn a_stream_loses_its_right_when_a_later_start_of_its_node_is_heard() {
        let it = Arc::new(Admission::new(NodeId(1), start(1, 1, 1)));
        let mut old = it.pass(NodeId(2), &metadata(start(5, 3, 1))).expect("the first");
        let mut other = it.pass(NodeId(3), &metadata(start(6, 1, 1))).expect("another node");
        assert_eq!(old.still_good(), Ok(()));
        let mut new = it.pass(NodeId(2), &metadata(start(5, 4, 2))).expect("a later boot");
        assert!(old.still_good().is_err() && old.still_good().is_err());
        assert_eq!((new.still_good(), other.still_good()), (Ok(()), Ok(())));
    }

    #[test]
    fn nothing_ends_a_quarantine() {
        let it = Admission::new(NodeId(1), start(1, 1, 1));
        it.stand_aside("another cluster".into());
        it.stand_aside("once more".into());
        assert_eq!(it.quarantine().as_deref(), Some("another cluster"));
        // What is about the disk outlives the process, so it may not be hidden by what does not.
        it.quarantine_self("first".into());
        it.quarantine_self("second".into());
        it.stand_aside("third".into());
        assert!(!it.admit());
        assert_eq!(it.quarantine().as_deref(), Some("first"));
    }
}
