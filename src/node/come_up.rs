//! From "it serves" to "it is ready": hello to the other voters, then votes, then the first entry.
//!
//! A node that was not admitted must neither vote nor campaign, and a node without any state must
//! not begin a cluster where one of those that it would begin it with has a life already: the
//! survivor of a recovery would then be a voter of two clusters (PROTOCOL.md B, G).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use regent_core::id::{Incarnation, NodeId};
use regent_core::state::version::FEATURE_LEVEL;
use regent_raft::api::Member;
use regent_raft::held::Held;
use regent_rpc::pb::raft::{HelloRequest, HelloResponse};

use crate::admission::Standing;
use crate::identity::mark_quarantined;
use crate::shell::Shell;

/// Time for one hello, dialling included.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two tries to note a quarantine on a disk that does not take it.
const MARK_AGAIN: Duration = Duration::from_millis(500);
/// Subject of readiness until the node has come up.
const START: &str = "start";

/// What another node says to this one's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Welcome {
    /// Nothing speaks against it.
    Yes,
    /// It does not know this node, which has no state; it may later.
    NotYet(String),
    /// This node must not vote.
    Objects {
        /// Why.
        why: String,
        /// Because of its disk.
        disk: bool,
    },
}

impl From<HelloResponse> for Welcome {
    fn from(answer: HelloResponse) -> Self {
        if !answer.refused.is_empty() {
            return Self::Objects { why: answer.refused, disk: answer.disk_went_back };
        }
        if answer.not_yet.is_empty() { Self::Yes } else { Self::NotYet(answer.not_yet) }
    }
}

/// Runs once per start; returns when the node is ready, or never will be.
pub async fn come_up(shell: Arc<Shell>) {
    shell.clone().ask_admission().await;
    if shell.admission.quarantine().is_some() {
        return;
    }
    shell.clone().initialize_if_first().await;
    shell.record_boot().await;
    if shell.admission.quarantine().is_none() {
        shell.health.set(START, None);
        tracing::info!(node = %shell.node, "ready");
    }
}

impl Shell {
    /// The node with the lowest id of a list that no cluster has come from yet begins it.
    async fn initialize_if_first(self: Arc<Self>) {
        let initial = &self.config.initial_members;
        let first = initial.iter().map(|m| m.id).min();
        if first != Some(self.node) {
            return;
        }
        match self.consensus.is_initialized().await {
            Ok(false) => {}
            Ok(true) => return,
            Err(error) => {
                tracing::error!(%error, "cannot tell whether there is a cluster already");
                return;
            }
        }
        if let Some((node, life)) = self.admission.life_elsewhere() {
            let why = format!(
                "a cluster was not begun: node {node} belongs to incarnation {life} of it already; \
                 add this node to that one under a new id (`regent members add`)"
            );
            tracing::error!(why, "NOT BEGUN");
            self.health.set(START, Some(&why));
            return;
        }
        let members: BTreeMap<NodeId, Member> = initial
            .iter()
            .map(|m| {
                let member = Member {
                    address: m.address.clone(),
                    http_address: m.http_address.clone(),
                    locality: m.locality.clone().into(),
                    label: m.label.clone(),
                };
                (m.id, member)
            })
            .collect();
        match self.consensus.initialize(members).await {
            Ok(()) => tracing::info!("initialized a new cluster"),
            Err(error) => tracing::warn!(%error, "a cluster was not initialized"),
        }
    }

    /// Shows this node's start to another one.
    ///
    /// # Errors
    /// Why there was no answer.
    pub async fn hello(&self, to: NodeId, address: &str) -> Result<Welcome, String> {
        self.hello_answer(to, address).await.map(Welcome::from)
    }

    /// The same, with all that the other node answers.
    ///
    /// # Errors
    /// Why there was no answer.
    pub async fn hello_answer(&self, to: NodeId, address: &str) -> Result<HelloResponse, String> {
        let mut client = self.peers.peer(to, address).map_err(|bad| bad.to_string())?;
        let start = self.peers.start();
        let hello = HelloRequest {
            node: self.node.0,
            disk: start.disk,
            boot: start.boot,
            nonce: start.nonce.0,
            feature_level: FEATURE_LEVEL,
            cluster: self.config.cluster.clone(),
        };
        let call = client.hello(self.peers.request(hello, HELLO_TIMEOUT));
        match tokio::time::timeout(HELLO_TIMEOUT, call).await {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                let life = Incarnation { counter: answer.life_counter, id: answer.life_id };
                self.admission.heard_life(to, life);
                Ok(answer)
            }
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err("no answer in time".into()),
        }
    }

    /// Remembers what the other nodes acknowledge to this one while it leads, until the node stops.
    /// What they promise to others they say themselves, once a second (see [`crate::compare`]).
    pub async fn remember_promises(self: Arc<Self>) {
        let mut status = self.leadership.watch();
        loop {
            let (term, matched) = {
                let status = status.borrow_and_update();
                // Nothing acknowledged yet does not even mean that the vote is known there.
                let known = status.matched.iter().filter(|(id, at)| *id != self.node && at.0 > 0);
                let known = known.copied().filter(|_| status.is_leader);
                (status.term, known.collect::<Vec<_>>())
            };
            for (node, last) in matched {
                self.admission.heard_promise(node, Held { term, leader: self.node, last });
            }
            if status.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes the votes of a quarantined node, and notes it on its disk. One that finds out before it
    /// was admitted stays, to say so; one that voted already stops: returns then, with the reason.
    pub async fn keep_quarantine(&self) -> String {
        let mut standing = self.admission.standing();
        let mut voted = false;
        loop {
            let mut again = false;
            match &*standing.borrow_and_update() {
                Standing::Asking => {}
                Standing::Admitted => voted = true,
                Standing::Quarantined { why, disk } => {
                    self.consensus.set_votes_allowed(false);
                    if *disk && let Err(error) = mark_quarantined(&self.config.data_dir, why) {
                        tracing::error!(%error, "the quarantine could not be noted on disk yet");
                        again = true;
                    }
                    if voted && !again {
                        return format!("quarantined: {why}");
                    }
                }
            }
            // A mark that is not there is forgotten with this process, which votes no more either way.
            if again {
                tokio::time::sleep(MARK_AGAIN).await;
                continue;
            }
            if standing.changed().await.is_err() {
                // Only the end of the node ends this channel.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Asks the voters until a majority (this node included) has not objected, or one has.
    pub async fn ask_admission(self: Arc<Self>) {
        let mut pause = Duration::from_millis(20);
        loop {
            if self.admission.quarantine().is_some() {
                return;
            }
            let Some(others) = self.voters_to_ask() else {
                // A node that was told to join has nobody to ask until the cluster speaks to it.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let voters = others.len() + 1;
            let asked = others.iter().map(|(id, address)| self.hello(*id, address));
            let answers = join_all(asked).await;
            let mut content = 1;
            for ((id, _), answer) in others.iter().zip(answers) {
                match answer {
                    Ok(Welcome::Yes) => content += 1,
                    Ok(Welcome::Objects { why, disk: true }) => {
                        self.admission.quarantine_self(format!("node {id} says: {why}"));
                    }
                    Ok(Welcome::Objects { why, disk: false }) => {
                        self.admission.stand_aside(format!("node {id} says: {why}"));
                    }
                    Ok(Welcome::NotYet(why)) | Err(why) => {
                        tracing::debug!(node = %id, why, "no hello yet")
                    }
                }
            }
            // Too slow for this cluster, it is about to stop; it must not be elected before.
            if self.too_slow().is_none() && content > voters / 2 && self.admission.admit() {
                self.consensus.set_votes_allowed(true);
                tracing::info!(content, voters, "admitted: this node votes");
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// The other voters by membership; before there is one, those of the configuration. `None`:
    /// there is neither.
    fn voters_to_ask(&self) -> Option<Vec<(NodeId, String)>> {
        let status = self.leadership.status();
        let members = status.members.iter().filter(|(_, _, voter)| *voter);
        let mut voters: Vec<_> =
            members.map(|(id, member, _)| (*id, member.address.clone())).collect();
        if voters.is_empty() {
            let initial = self.config.initial_members.iter();
            voters = initial.map(|m| (m.id, m.address.clone())).collect();
        }
        let known = !voters.is_empty();
        voters.retain(|(id, _)| *id != self.node);
        known.then_some(voters)
    }
}
