//! The cluster row: who this cluster is, what timing it promises, which nodes it has seen start.
//!
//! The feature level and the incarnation only rise. Node ids are never given twice (I9), not even
//! to a node whose row was removed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{Incarnation, NodeId, Nonce, Revision};
use crate::timing::Timing;

/// Everything replicated about the cluster itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRow {
    /// What people call it; empty until `Bootstrap`.
    pub name: String,
    /// Which life it is in; the counter is 0 until `Bootstrap`.
    pub incarnation: Incarnation,
    /// What C6 judges ttls by.
    pub timing: Timing,
    /// Level whose entries every member can read (see [`super::version`]).
    pub feature_level: u32,
    /// The newest start each node reported.
    pub boots: BTreeMap<NodeId, NodeBoot>,
    /// Highest node id ever allocated, recorded or made a member.
    pub highest_node: NodeId,
    /// Voters of the newest membership entry.
    pub voters: Vec<NodeId>,
    /// Learners of the newest membership entry.
    pub learners: Vec<NodeId>,
    /// Revision of `Bootstrap`; 0 until then.
    pub created: Revision,
    /// Revision of the last change of this row.
    pub changed: Revision,
}

/// One node's newest start (PROTOCOL.md B).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeBoot {
    /// Random id of its data directory.
    pub disk: u64,
    /// Boot counter, fsynced, one more at each start.
    pub boot: u64,
    /// Which process.
    pub nonce: Nonce,
    /// When it was recorded.
    pub recorded: Revision,
}

impl Default for ClusterRow {
    fn default() -> Self {
        Self {
            name: String::new(),
            incarnation: Incarnation::default(),
            timing: Timing::LAN,
            feature_level: super::version::FIRST_FEATURE_LEVEL,
            boots: BTreeMap::new(),
            highest_node: NodeId(0),
            voters: Vec::new(),
            learners: Vec::new(),
            created: Revision(0),
            changed: Revision(0),
        }
    }
}

impl ClusterRow {
    /// Whether `Bootstrap` was applied.
    pub fn is_bootstrapped(&self) -> bool {
        self.created != Revision(0)
    }
}
