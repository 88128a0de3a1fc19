//! Where the leader is, as far as this node knows: a hint, good for routing requests, never for
//! deciding anything (an isolated leader still believes in itself).

use std::time::Duration;

use regent_core::id::NodeId;
use regent_raft::api::ConsensusStatus;
use regent_rpc::convert::status::{self, Leader};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use crate::refuse::RETRY_AFTER;

/// Follows the consensus status.
#[derive(Clone)]
pub struct Leadership {
    node: NodeId,
    status: watch::Receiver<ConsensusStatus>,
    /// How long a request waits for an election to end.
    patience: Duration,
}

/// The leader in a status, if its address is known.
pub fn leader_of(status: &ConsensusStatus) -> Option<Leader> {
    let node = status.leader?;
    let (_, member, _) = status.members.iter().find(|(id, _, _)| *id == node)?;
    Some(Leader { node, address: member.address.clone() })
}

impl Leadership {
    /// Follows `status` of this node; requests wait up to `patience` for a leader.
    pub fn new(node: NodeId, status: watch::Receiver<ConsensusStatus>, patience: Duration) -> Self {
        Self { node, status, patience }
    }

    /// Whether this node believes that it leads.
    pub fn is_here(&self) -> bool {
        self.status.borrow().is_leader
    }

    /// The leader now.
    pub fn now(&self) -> Option<Leader> {
        leader_of(&self.status.borrow())
    }

    /// Everything known.
    pub fn status(&self) -> ConsensusStatus {
        self.status.borrow().clone()
    }

    /// A receiver of every change.
    pub fn watch(&self) -> watch::Receiver<ConsensusStatus> {
        self.status.clone()
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The instant at which waiting for a leader is given up, within `until`.
    pub fn give_up_at(&self, until: Instant) -> Instant {
        until.min(Instant::now() + self.patience)
    }

    /// Waits for a leader other than `not`.
    ///
    /// # Errors
    /// UNAVAILABLE when there is none by `until`.
    pub async fn other_than(&self, not: Option<NodeId>, until: Instant) -> Result<Leader, Status> {
        let mut status = self.status.clone();
        let known = |s: &ConsensusStatus| s.leader.is_some() && s.leader != not;
        let waited = tokio::time::timeout_at(until, async {
            loop {
                if known(&status.borrow_and_update())
                    && let Some(leader) = leader_of(&status.borrow())
                {
                    return Some(leader);
                }
                status.changed().await.ok()?;
            }
        });
        match waited.await {
            Ok(Some(leader)) => Ok(leader),
            Ok(None) | Err(_) => Err(status::not_leader(None, RETRY_AFTER)),
        }
    }

    /// Returns when this node leads in another term than `term`, or leads or follows otherwise than
    /// that says (`None`: it does not lead).
    pub async fn other_than_term(&self, term: Option<u64>) {
        let mut status = self.status.clone();
        let leads = |s: &ConsensusStatus| s.is_leader.then_some(s.term);
        if status.wait_for(|s| leads(s) != term).await.is_err() {
            // Consensus is gone, and with it whatever could still change.
            std::future::pending::<()>().await;
        }
    }

    /// Returns when somebody else than `node` is known to lead.
    pub async fn moved_from(&self, node: NodeId) {
        let mut status = self.status.clone();
        let moved = |s: &ConsensusStatus| s.leader.is_some_and(|leader| leader != node);
        let gone = status.wait_for(moved).await.is_err();
        if gone {
            // Consensus is gone; the caller's own deadline ends its wait.
            std::future::pending::<()>().await;
        }
    }
}
