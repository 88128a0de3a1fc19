//! Changing who is a member: allocate an id, add as learner once the node answers, promote, remove,
//! transfer. Each act is in the audit chain, refused ones as well.
//!
//! Ids come from the log and are never given twice (I9): a reused id would let an old disk vote.
//! An addition waits in this node's memory until the new node answers; if the leader changes
//! meanwhile, the same request sent again gets the same id (deduplicated by the log) and waits
//! there. Nothing is lost but the waiting.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use regent_core::authz::{Principal, Verb};
use regent_core::command::{Command, Request as RequestId};
use regent_core::id::{NodeId, Revision};
use regent_core::reply::Reply;
use regent_raft::api::{ConsensusError, ConsensusStatus, Member};
use regent_rpc::channel::{ChannelOptions, connect_lazy};
use regent_rpc::pb::raft::HelloResponse;
use regent_rpc::pb::v1::cluster_service_client::ClusterServiceClient;
use regent_rpc::pb::v1::{ListMembersRequest, ListMembersResponse};
use regent_rpc::tls::ExpectPeer;
use tokio::time::Instant;
use tonic::Status;

use crate::announced;
use crate::come_up::{HELLO_TIMEOUT, Welcome};
use crate::refuse;
use crate::shell::Shell;

/// How long an addition waits for the new node: time to issue its certificate and start it.
const ADDITION_PATIENCE: Duration = Duration::from_secs(30 * 60);
/// Additions at a time; members change one at a time anyway.
pub const MAX_ADDITIONS: usize = 16;
/// How often the new nodes are asked.
pub const ADDITION_INTERVAL: Duration = Duration::from_millis(500);

/// Subject of readiness under which a removed node says so.
pub const MEMBERSHIP: &str = "membership";
/// How often a node looks whether the cluster goes on without it.
const REMOVAL_LOOK: Duration = Duration::from_secs(1);
/// Longest time between two questions of a node to which nothing new comes: an idle cluster.
const REMOVAL_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Nodes with an id that are not members yet. Only the leader that promised an addition may carry
/// it out, and only while it has led without a pause: another leader may have added the node since,
/// and removed it, and an id is never used again.
#[derive(Default)]
pub struct Additions {
    waiting: Mutex<BTreeMap<NodeId, Addition>>,
}

struct Addition {
    member: Member,
    until: Instant,
    /// The term in which it was promised.
    term: u64,
    /// What the node at the address objected to last; logged once.
    objection: String,
}

impl Additions {
    /// This node does not lead: nothing that it promised is its business any more.
    pub fn forget(&self) {
        self.waiting.lock().clear();
    }

    /// The nodes that wait, each with what stands against it if its address answered.
    pub fn waiting(&self) -> Vec<(NodeId, String)> {
        let waiting = self.waiting.lock();
        waiting.iter().map(|(node, it)| (*node, it.objection.clone())).collect()
    }

    /// The leader of `term` will add the node once it answers.
    pub fn promise(&self, node: NodeId, member: Member, term: u64) {
        let until = Instant::now() + ADDITION_PATIENCE;
        let addition = Addition { member, until, term, objection: String::new() };
        self.waiting.lock().insert(node, addition);
    }

    /// Those of `term` that still have time; the others are dropped.
    pub fn due(&self, term: u64) -> Vec<(NodeId, Member)> {
        let now = Instant::now();
        let mut waiting = self.waiting.lock();
        waiting.retain(|node, it| {
            let late = it.until <= now;
            if late {
                tracing::warn!(%node, address = it.member.address,
                    "the node was not seen in time; add it again when it runs");
            }
            !late && it.term == term
        });
        waiting.iter().map(|(node, it)| (*node, it.member.clone())).collect()
    }

    /// Somebody answers at the node's address, and is not who is waited for.
    fn object(&self, node: NodeId, objection: String) {
        if let Some(it) = self.waiting.lock().get_mut(&node)
            && it.objection != objection
        {
            tracing::warn!(%node, address = it.member.address, objection,
                "a node that is to be added answers, but not as one of this cluster");
            it.objection = objection;
        }
    }
}

/// The member that a node becomes which answers a hello so: what the addition says of it, filled
/// with what its own configuration says.
///
/// # Errors
/// What speaks against it, for people.
fn as_announced(member: &Member, mut answer: HelloResponse) -> Result<Member, String> {
    let own = announced::read(answer.announced.take().unwrap_or_default())?;
    match Welcome::from(answer) {
        Welcome::Yes => announced::merge(member, &own).map_err(|wrong| wrong.to_string()),
        Welcome::Objects { why, .. } | Welcome::NotYet(why) => Err(why),
    }
}

/// Whether a list of members, made after a round among a quorum, says that `node` was removed. Only
/// what is committed counts: a removal under way may come to nothing, and then the node must still
/// vote.
fn says_removed(list: &ListMembersResponse, node: NodeId) -> bool {
    !list.committed.is_empty()
        && !list.committed.contains(&node.0)
        && list.members.iter().all(|member| member.id != node.0)
}

impl Shell {
    /// Allocates an id and waits (in the background) for the node to answer at its address.
    ///
    /// # Errors
    /// Consensus errors as statuses; RESOURCE_EXHAUSTED when too many additions wait.
    pub async fn add_member(
        &self,
        by: &Principal,
        request: Option<RequestId>,
        member: Member,
        until: Instant,
    ) -> Result<NodeId, Status> {
        self.must_lead()?;
        let known = self.leadership.status();
        if let Some((id, _, _)) = known.members.iter().find(|(_, m, _)| m.address == member.address)
        {
            return Err(regent_rpc::convert::status::refused(
                "already_member",
                format!("node {id} has the address {}", member.address),
                "give the new node its own address, or remove the old one first",
            ));
        }
        let command = Command::AllocateNode { label: member.label.clone() };
        let reply = self.propose_accepted(by.clone(), request, &command, until).await?;
        let Reply::NodeAllocated { node, .. } = reply else {
            return Err(Status::internal(format!("an odd reply to AllocateNode: {reply:?}")));
        };
        if known.members.iter().any(|(id, _, _)| *id == node) {
            return Ok(node);
        }
        let waiting = self.additions.waiting.lock();
        if waiting.len() >= MAX_ADDITIONS && !waiting.contains_key(&node) {
            return Err(regent_rpc::convert::status::quota(
                "additions",
                format!("{MAX_ADDITIONS} additions wait for their nodes already"),
            ));
        }
        drop(waiting);
        // In doubt of an older term: then the next look drops it, and the caller asks again.
        self.additions.promise(node, member, known.term);
        Ok(node)
    }

    /// One look at the nodes that wait to be added; called on the leader of `term`.
    pub async fn continue_additions(&self, term: u64) {
        let waiting = self.additions.due(term);
        // At once: one that never answers costs a timeout, and there may be many.
        let asked = waiting.iter().map(|(node, member)| self.hello_answer(*node, &member.address));
        let answers = join_all(asked).await;
        for ((node, member), answer) in waiting.into_iter().zip(answers) {
            let member = match answer.map(|answer| as_announced(&member, answer)) {
                Ok(Ok(member)) => member,
                Ok(Err(objection)) => {
                    self.additions.object(node, objection);
                    continue;
                }
                Err(why) => {
                    tracing::debug!(%node, address = member.address, why, "a new node is not there");
                    continue;
                }
            };
            let wanted = || self.additions.waiting.lock().contains_key(&node);
            if self.leadership.status().term != term || !wanted() {
                continue;
            }
            let outcome = self.consensus.add_learner(node, member.clone()).await;
            if let Err(ConsensusError::NotLeader { .. }) = outcome {
                self.additions.forget();
                return;
            }
            let resource = format!("node {node} at {}", member.address);
            match &outcome {
                Ok(()) => tracing::info!(%node, address = member.address, "added as a learner"),
                Err(error) => tracing::warn!(%node, %error, "adding a node failed"),
            }
            self.additions.waiting.lock().remove(&node);
            self.record_act(&Principal::cluster(), "add", &resource, &outcome).await;
        }
    }

    /// Gives a caught-up learner a vote.
    ///
    /// # Errors
    /// FAILED_PRECONDITION says what it lacks.
    pub async fn promote_member(&self, by: &Principal, node: NodeId) -> Result<(), Status> {
        self.must_lead()?;
        let outcome = self.consensus.promote(node).await;
        self.record_act(by, "promote", &format!("node {node}"), &outcome).await;
        outcome.map_err(refuse::consensus)
    }

    /// Removes a member.
    ///
    /// # Errors
    /// FAILED_PRECONDITION when the rest could not elect a leader.
    pub async fn remove_member(&self, by: &Principal, node: NodeId) -> Result<(), Status> {
        if self.additions.waiting.lock().remove(&node).is_some() {
            self.record_act(by, "remove", &format!("node {node}"), &Ok(())).await;
            return Ok(());
        }
        self.must_lead()?;
        let outcome = self.consensus.remove(node).await;
        self.record_act(by, "remove", &format!("node {node}"), &outcome).await;
        outcome.map_err(refuse::consensus)
    }

    /// Hands leadership over; returns the new leader.
    ///
    /// # Errors
    /// FAILED_PRECONDITION when there is nobody to hand it to.
    pub async fn transfer(&self, by: &Principal, to: Option<NodeId>) -> Result<NodeId, Status> {
        self.must_lead()?;
        let outcome = self.consensus.transfer_leader(to).await;
        let resource = to.map_or("leader".to_owned(), |to| format!("leader to node {to}"));
        let plain = outcome.as_ref().map(|_| ()).map_err(Clone::clone);
        self.record_act(by, "transfer", &resource, &plain).await;
        outcome.map_err(refuse::consensus)
    }

    fn must_lead(&self) -> Result<(), Status> {
        if self.leadership.is_here() {
            return Ok(());
        }
        Err(regent_rpc::convert::status::not_leader(self.leadership.now(), refuse::RETRY_AFTER))
    }

    /// Puts what was done, or refused, into the audit chain. A failure to do so is logged: the act
    /// itself is in the log of Raft already.
    async fn record_act(
        &self,
        by: &Principal,
        what: &str,
        resource: &str,
        outcome: &Result<(), ConsensusError>,
    ) {
        if matches!(outcome, Err(ConsensusError::NotLeader { .. })) {
            return;
        }
        let outcome = match outcome {
            Ok(()) => "done".to_owned(),
            Err(error) => format!("refused: {error}"),
        };
        self.record(by, Verb::MembersWrite, resource, what, outcome).await;
    }

    /// Puts an act that no table holds into the audit chain.
    pub async fn record(
        &self,
        by: &Principal,
        verb: Verb,
        resource: &str,
        reason: &str,
        outcome: String,
    ) {
        let command = Command::RecordAct {
            verb,
            resource: resource.to_owned(),
            outcome,
            reason: reason.to_owned(),
        };
        let until = Instant::now() + Duration::from_secs(3);
        if let Err(error) = self.propose(by.clone(), None, &command, until).await {
            tracing::warn!(%error, %verb, resource, "an act could not be recorded");
        }
    }

    /// Finds out that this node was removed, and says so. Nobody tells it: the entry that removes a
    /// member is not sent to it any more. So it asks while nothing new comes, and rarely when that
    /// is because nothing happens.
    pub async fn notice_removal(self: Arc<Self>) {
        let (mut pause, mut ask_at, mut applied) = (REMOVAL_LOOK, Instant::now(), Revision(0));
        loop {
            tokio::time::sleep(REMOVAL_LOOK).await;
            let status = self.leadership.status();
            if status.is_leader || status.applied != applied {
                (pause, ask_at, applied) = (REMOVAL_LOOK, Instant::now(), status.applied);
                continue;
            }
            if Instant::now() < ask_at {
                continue;
            }
            if self.is_removed(&status).await {
                break;
            }
            ask_at = Instant::now() + pause;
            pause = (pause * 2).min(REMOVAL_PAUSE_MAX);
        }
        // It would ask for votes for ever, and ids are never used again.
        self.consensus.set_votes_allowed(false);
        let why =
            format!("node {} is no member of the cluster any more: it was removed", self.node);
        tracing::error!(why, "REMOVED: stop this node; its data directory is of no more use");
        self.health.set(MEMBERSHIP, Some(&why));
    }

    /// Whether a member that this node knows of says, after a round among a quorum, that this node
    /// is none. Silence says nothing.
    async fn is_removed(&self, status: &ConsensusStatus) -> bool {
        for (node, member, _) in status.members.iter().filter(|(id, _, _)| *id != self.node) {
            let (tls, expect) = (self.tls.clone(), ExpectPeer::Node(*node));
            let options = ChannelOptions::default();
            let Ok(channel) = connect_lazy(&member.address, tls, expect, options) else { continue };
            let mut client = ClusterServiceClient::new(channel);
            let asked =
                client.list_members(self.peers.request(ListMembersRequest {}, HELLO_TIMEOUT));
            if let Ok(Ok(answer)) = tokio::time::timeout(HELLO_TIMEOUT, asked).await {
                return says_removed(answer.get_ref(), self.node);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use regent_rpc::pb::v1::Member;

    use super::*;

    #[test]
    fn only_a_removal_that_is_committed_takes_a_nodes_vote() {
        let list = |members: &[u64], committed: &[u64]| ListMembersResponse {
            stamp: None,
            members: members.iter().map(|id| Member { id: *id, ..Member::default() }).collect(),
            committed: committed.to_vec(),
        };
        for (members, committed, removed) in [
            (&[1, 2][..], &[1, 2][..], true),
            // Under way: it may be undone by the next leader.
            (&[1, 2], &[1, 2, 3], false),
            // Being added, or said by a node that has applied nothing yet.
            (&[1, 2, 3], &[1, 2], false),
            (&[1, 2], &[], false),
        ] {
            let found = says_removed(&list(members, committed), NodeId(3));
            assert_eq!(found, removed, "{members:?} {committed:?}");
        }
    }
}
