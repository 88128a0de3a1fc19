//! Changes of the membership, and the transfer of leadership.
//!
//! A change must never leave a configuration that cannot form a quorum of live members, and a
//! change that was interrupted half-way (a joint configuration) must be finished: while it lasts,
//! two quorums are needed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{InitializeError, RaftError};
use regent_core::id::NodeId;

use crate::api::{ConsensusError, Member};
use crate::consensus::{Consensus, Inner, failed, stopped};
use crate::status::millis_since;
use crate::types::Types;

/// A membership change takes two commits; this long is patience, not expectation.
const CHANGE_DEADLINE: Duration = Duration::from_secs(10);

/// A transfer that was not done within this many of the longest election timeouts, and not within
/// [`TRANSFER_LEAST`], has failed.
const TRANSFER_TIMEOUTS: u32 = 4;

/// However short elections are: a handover takes several synced writes on each of two disks, one
/// after the other, and a disk may take long for each.
const TRANSFER_LEAST: Duration = Duration::from_secs(5);

/// A voter that this many of the longest election timeouts did not bring an answer from is away.
const HEARD_TIMEOUTS: u32 = 2;

/// What the leader knows about another member.
struct Peer {
    matched: Option<u64>,
    /// Heard from within two of the longest election timeouts.
    live: bool,
}

fn refuse<T>(why: String) -> Result<T, ConsensusError> {
    Err(ConsensusError::Membership(why))
}

impl Consensus {
    /// Makes this fresh node the first of a cluster with these voters.
    ///
    /// # Errors
    /// [`ConsensusError::Membership`] when it is not fresh.
    pub async fn initialize(
        &self,
        members: BTreeMap<NodeId, Member>,
    ) -> Result<(), ConsensusError> {
        self.inner.check_storage()?;
        let members: BTreeMap<u64, Member> = members.into_iter().map(|(id, m)| (id.0, m)).collect();
        match self.inner.raft.initialize(members).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {
                refuse("this node is part of a cluster already".into())
            }
            Err(RaftError::APIError(InitializeError::NotInMembers(_))) => {
                refuse("the first members must include this node".into())
            }
            Err(RaftError::Fatal(e)) => Err(stopped(e)),
        }
    }

    /// Whether this node has ever been part of a cluster.
    ///
    /// # Errors
    /// [`ConsensusError::Stopped`].
    pub async fn is_initialized(&self) -> Result<bool, ConsensusError> {
        self.inner.raft.is_initialized().await.map_err(stopped)
    }

    /// Adds a member without a vote (leader only), or changes a member's addresses.
    ///
    /// # Errors
    /// [`ConsensusError::Membership`] when another change is under way.
    pub async fn add_learner(&self, id: NodeId, member: Member) -> Result<(), ConsensusError> {
        let nodes = BTreeMap::from([(id.0, member)]);
        let known = self.inner.member_ids().contains(&id.0);
        let change =
            if known { ChangeMembers::SetNodes(nodes) } else { ChangeMembers::AddNodes(nodes) };
        self.inner.change(change, true).await
    }

    /// Gives a learner a vote, if it has caught up (leader only).
    ///
    /// # Errors
    /// [`ConsensusError::Membership`] says what it lacks.
    pub async fn promote(&self, id: NodeId) -> Result<(), ConsensusError> {
        self.inner.must_lead()?;
        if self.inner.voters().contains(&id.0) {
            return refuse(format!("node {id} has a vote already"));
        }
        if !self.inner.member_ids().contains(&id.0) {
            return refuse(format!("node {id} is not a member: add it as a learner first"));
        }
        self.inner.live_of(&[id.0], 1).await;
        let last = self.inner.raft.metrics().borrow_watched().last_log_index.unwrap_or(0);
        let peer = self.inner.peer(id);
        if !peer.live {
            return refuse(format!("node {id} does not answer"));
        }
        let lag = last.saturating_sub(peer.matched.unwrap_or(0));
        if peer.matched.is_none() || lag > self.inner.config.promote_lag_entries {
            return refuse(format!(
                "node {id} is {lag} entries behind, at most {} are allowed: try again when it has \
                 caught up",
                self.inner.config.promote_lag_entries
            ));
        }
        self.inner.change(ChangeMembers::AddVoterIds(BTreeSet::from([id.0])), true).await
    }

    /// Removes a member, voter or learner, if the rest has a live quorum (leader only). A leader
    /// that is asked to remove itself hands leadership over and answers
    /// [`ConsensusError::NotLeader`]: the next leader removes it.
    ///
    /// # Errors
    /// [`ConsensusError::Membership`] says why not.
    pub async fn remove(&self, id: NodeId) -> Result<(), ConsensusError> {
        self.inner.must_lead()?;
        let voters = self.inner.voters();
        if !voters.contains(&id.0) {
            if !self.inner.member_ids().contains(&id.0) {
                return refuse(format!("node {id} is not a member"));
            }
            return self
                .inner
                .change(ChangeMembers::RemoveNodes(BTreeSet::from([id.0])), true)
                .await;
        }
        let rest: Vec<u64> = voters.into_iter().filter(|v| *v != id.0).collect();
        if rest.is_empty() {
            return refuse("the last voter cannot be removed".into());
        }
        let me = self.inner.config.id;
        let need = rest.len() / 2 + 1;
        let live = self.inner.live_of(&rest, need).await;
        if live < need {
            return refuse(format!(
                "without node {id}, {need} of {} voters are needed, but only {live} answer",
                rest.len()
            ));
        }
        if id == me {
            let leader = self.transfer_leader(None).await?;
            let member = self.inner.member(leader).unwrap_or_default();
            return Err(ConsensusError::NotLeader { leader: Some((leader, member)) });
        }
        let ids = BTreeSet::from([id.0]);
        self.inner.change(ChangeMembers::RemoveVoters(ids.clone()), false).await?;
        if self.inner.member_ids().contains(&id.0) {
            // An earlier removal had stopped half-way. Finishing it made a learner of the node, so
            // that there was no vote left to remove, and nothing was.
            self.inner.change(ChangeMembers::RemoveNodes(ids), true).await?;
        }
        Ok(())
    }

    /// Hands leadership to `to`, or to the most caught-up voter; returns the new leader once it is
    /// known here. From the moment it is handed over nobody leads until somebody is elected, so `to`
    /// has to answer and to have what is in the log here.
    ///
    /// # Errors
    /// [`ConsensusError::Membership`] when there is nobody to hand it to, or nobody was seen to
    /// lead in time: who was handed it may still be elected.
    pub async fn transfer_leader(&self, to: Option<NodeId>) -> Result<NodeId, ConsensusError> {
        self.inner.must_lead()?;
        let me = self.inner.config.id;
        let to = match to {
            Some(to) if to == me => return Ok(me),
            Some(to) if !self.inner.voters().contains(&to.0) => {
                return refuse(format!("node {to} has no vote"));
            }
            Some(to) => {
                self.inner.caught_up(to).await?;
                to
            }
            None => {
                let others = self.inner.voters().into_iter().filter(|id| *id != me.0);
                self.inner.live_of(&others.collect::<Vec<_>>(), 1).await;
                match self.inner.best_successor() {
                    Some(to) => to,
                    None => return refuse("no other voter answers".into()),
                }
            }
        };
        let limit = self.inner.config.timing.election_max_ms * u64::from(TRANSFER_TIMEOUTS);
        let limit = Duration::from_millis(limit).max(TRANSFER_LEAST);
        match tokio::time::timeout(limit, self.inner.hand_over(to)).await {
            Ok(result) => result,
            Err(_) => {
                refuse(format!("node {to} has not taken over within {limit:?}, it still may"))
            }
        }
    }

    /// Finishes an interrupted membership change, if there is one (leader only). The node does so
    /// by itself as well, a little later.
    ///
    /// # Errors
    /// As for any proposal.
    pub async fn finish_joint(&self) -> Result<(), ConsensusError> {
        self.inner.must_lead()?;
        let _guard = self.inner.membership.lock().await;
        self.inner.finish_joint_locked().await
    }
}

impl Inner {
    /// The caller holds `membership`.
    pub(crate) async fn finish_joint_locked(&self) -> Result<(), ConsensusError> {
        let target = {
            let metrics = self.raft.server_metrics();
            let metrics = metrics.borrow_watched();
            match metrics.membership_config.get_joint_config().as_slice() {
                [_, .., last] => last.clone(),
                _ => return Ok(()),
            }
        };
        self.change_locked(ChangeMembers::ReplaceAllVoters(target), true).await
    }

    async fn change(
        &self,
        change: ChangeMembers<u64, Member>,
        retain: bool,
    ) -> Result<(), ConsensusError> {
        self.must_lead()?;
        self.check_storage()?;
        let _guard = self.membership.try_lock().map_err(|_| {
            ConsensusError::Membership("another membership change is under way".into())
        })?;
        self.finish_joint_locked().await?;
        self.change_locked(change, retain).await
    }

    async fn change_locked(
        &self,
        change: ChangeMembers<u64, Member>,
        retain: bool,
    ) -> Result<(), ConsensusError> {
        let change = self.raft.change_membership(change, retain);
        match tokio::time::timeout(CHANGE_DEADLINE, change).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(failed(self.config.id, error)),
            Err(_) => Err(ConsensusError::Unknown),
        }
    }

    /// The most caught-up live voter beside this node.
    pub(crate) fn best_successor(&self) -> Option<NodeId> {
        let others = self.voters().into_iter().filter(|id| *id != self.config.id.0);
        others
            .map(|id| (self.peer(NodeId(id)), id))
            .filter(|(peer, _)| peer.live)
            .max_by_key(|(peer, id)| (peer.matched, std::cmp::Reverse(*id)))
            .map(|(_, id)| NodeId(id))
    }

    /// How many of these voters answer; waits for `enough` of them. A leader that was elected a
    /// moment ago has heard from nobody yet, which says nothing about the others: it must not
    /// refuse what it was elected to do, such as to remove the leader before it.
    async fn live_of(&self, ids: &[u64], enough: usize) -> usize {
        let me = self.config.id;
        let live = || ids.iter().filter(|id| **id == me.0 || self.peer(NodeId(**id)).live).count();
        let mut metrics = self.raft.metrics();
        let heard = async { while live() < enough && metrics.changed().await.is_ok() {} };
        let limit = self.config.timing.election_max_ms * u64::from(HEARD_TIMEOUTS);
        let _ = tokio::time::timeout(Duration::from_millis(limit), heard).await;
        live()
    }

    /// Hands over to `to` until somebody else leads. Whoever campaigns does so for less time than a
    /// disk may take for one write; if this node is the one elected after that, it tries again.
    async fn hand_over(&self, to: NodeId) -> Result<NodeId, ConsensusError> {
        let me = self.config.id.0;
        let mut metrics = self.raft.server_metrics();
        let mut handed_in = None;
        loop {
            let (leader, term) = {
                let now = metrics.borrow_watched();
                (now.current_leader, now.vote.leader_id.term)
            };
            match leader {
                Some(leader) if leader != me => return Ok(NodeId(leader)),
                Some(_) if handed_in != Some(term) => {
                    handed_in = Some(term);
                    self.raft.trigger().transfer_leader(to.0).await.map_err(stopped)?;
                }
                _ => {}
            }
            if metrics.changed().await.is_err() {
                return Err(ConsensusError::Stopped("shut down".into()));
            }
        }
    }

    /// Waits until voter `to` answers and has what is in the log here now. One that has not would
    /// refuse to be elected, and nobody would lead for an election timeout.
    async fn caught_up(&self, to: NodeId) -> Result<(), ConsensusError> {
        if self.live_of(&[to.0], 1).await == 0 {
            return refuse(format!("node {to} does not answer"));
        }
        let mut metrics = self.raft.metrics();
        let last = metrics.borrow_watched().last_log_index.unwrap_or_default();
        let matched = || self.peer(to).matched.unwrap_or_default();
        let caught_up = async { while matched() < last && metrics.changed().await.is_ok() {} };
        match tokio::time::timeout(TRANSFER_LEAST, caught_up).await {
            Ok(()) => Ok(()),
            Err(_) => {
                let behind = last.saturating_sub(matched());
                refuse(format!("node {to} is {behind} entries behind"))
            }
        }
    }

    fn must_lead(&self) -> Result<(), ConsensusError> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state.is_leader() {
            return Ok(());
        }
        let leader = metrics.current_leader.filter(|id| *id != self.config.id.0);
        let member = |id: u64| metrics.membership_config.get_node(&id).cloned();
        Err(ConsensusError::NotLeader {
            leader: leader.and_then(|id| Some((NodeId(id), member(id)?))),
        })
    }

    fn voters(&self) -> BTreeSet<u64> {
        self.raft.server_metrics().borrow_watched().membership_config.voter_ids().collect()
    }

    fn member_ids(&self) -> BTreeSet<u64> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.nodes().map(|(id, _)| *id).collect()
    }

    fn member(&self, id: NodeId) -> Option<Member> {
        self.raft.server_metrics().borrow_watched().membership_config.get_node(&id.0).cloned()
    }

    fn peer(&self, id: NodeId) -> Peer {
        let metrics = self.raft.metrics();
        let metrics: &openraft::RaftMetrics<Types> = &metrics.borrow_watched();
        let matched = metrics.replication.as_ref().and_then(|r| r.get(&id.0).copied().flatten());
        let heard = metrics.heartbeat.as_ref().and_then(|h| h.get(&id.0).copied().flatten());
        let limit = self.config.timing.election_max_ms * u64::from(HEARD_TIMEOUTS);
        Peer {
            matched: matched.map(|m| m.index()),
            live: heard.is_some_and(|at| millis_since(*at) <= limit),
        }
    }
}
