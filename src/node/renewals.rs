//! Renewals between this node, the leader and the log: the way the [`crate::sessions`] batches take.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::RwLock;
use regent_core::authz::Principal;
use regent_core::command::{Command, Entry, FullRenewal};
use regent_core::reply::{RenewalOutcome, Reply};
use regent_core::state::State;
use regent_raft::api::ConsensusError;
use regent_rpc::clock::Clock;
use regent_rpc::pb::raft::RenewRequest;
use tonic::Code;

use crate::leadership::Leadership;
use crate::peers::Peers;
use crate::refuse;
use crate::sessions::{EntryProposer, Merger, RenewError, RenewalSink};

/// Proposes merged renewals on this node.
pub struct RenewalEntries {
    /// Raft.
    pub consensus: regent_raft::Consensus,
    /// For the entry's wall time.
    pub clock: Arc<dyn Clock>,
    /// For what every member can read.
    pub state: Arc<RwLock<State>>,
}

impl EntryProposer for RenewalEntries {
    fn propose_renewals(
        &self,
        renewals: Vec<FullRenewal>,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Vec<RenewalOutcome>, RenewError>> {
        let level = self.state.read().cluster().feature_level;
        let command = Command::renew(&renewals, level);
        let entry = Entry::new(self.clock.wall(), Principal::cluster(), None, &command).encode();
        let consensus = self.consensus.clone();
        async move {
            match consensus.propose(entry.into(), deadline).await {
                Ok(Reply::Renewed { outcomes, .. }) => Ok(outcomes),
                Ok(Reply::Rejected(why)) => Err(RenewError::NotProposed(why.to_string())),
                Ok(other) => Err(RenewError::Unknown(format!("an odd reply: {other:?}"))),
                Err(
                    error @ (ConsensusError::Unknown
                    | ConsensusError::Storage(_)
                    | ConsensusError::Stopped(_)),
                ) => Err(RenewError::Unknown(error.to_string())),
                Err(error) => Err(RenewError::NotProposed(error.to_string())),
            }
        }
        .boxed()
    }
}

/// Takes a node's batch to the leader.
pub struct RenewalRoute {
    /// Where the leader is.
    pub leadership: Leadership,
    /// Channels to it.
    pub peers: Arc<Peers>,
    /// For when it is this node.
    pub merger: Merger,
}

impl RenewalSink for RenewalRoute {
    fn renew_batch(
        &self,
        renewals: Vec<FullRenewal>,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Vec<RenewalOutcome>, RenewError>> {
        let leader = match self.leadership.now() {
            Some(leader) => leader,
            None => {
                return async { Err(RenewError::NotProposed("there is no leader".into())) }.boxed();
            }
        };
        if leader.node == self.leadership.node() {
            let merger = self.merger.clone();
            return async move { merger.submit(renewals, deadline).await }.boxed();
        }
        let client = self.peers.peer(leader.node, &leader.address);
        let count = renewals.len();
        let (renewals, reports) = FullRenewal::split(&renewals);
        let bytes = postcard::to_stdvec(&renewals).expect("renewals are plain numbers");
        let reports = match reports.is_empty() {
            true => Vec::new(),
            false => postcard::to_stdvec(&reports).expect("reports are plain numbers"),
        };
        let request = RenewRequest { renewals: bytes.into(), reports: reports.into() };
        let request = self.peers.request(request, deadline);
        async move {
            let mut client = client.map_err(|bad| RenewError::NotProposed(bad.to_string()))?;
            let answer = match client.renew(request).await {
                Ok(answer) => answer.into_inner(),
                Err(status) if refuse::not_leader(&status).is_some() => {
                    return Err(RenewError::NotProposed(status.message().to_owned()));
                }
                Err(status) if status.code() == Code::ResourceExhausted => {
                    return Err(RenewError::NotProposed(status.message().to_owned()));
                }
                Err(status) => return Err(RenewError::Unknown(status.message().to_owned())),
            };
            let outcomes: Vec<RenewalOutcome> = postcard::from_bytes(&answer.outcomes)
                .map_err(|_| RenewError::Unknown("the leader's answer is unreadable".into()))?;
            if outcomes.len() != count {
                return Err(RenewError::Unknown("the leader answered another batch".into()));
            }
            Ok(outcomes)
        }
        .boxed()
    }
}
