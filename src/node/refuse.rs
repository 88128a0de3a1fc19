//! What a failed proposal or read looks like to the caller: consensus errors as statuses.

use std::time::Duration;

use regent_raft::api::ConsensusError;
use regent_rpc::convert::status::{self, Leader, Refused, rule};
use tonic::{Code, Status};

/// Advice when to come back while there is no leader: well below an election.
pub const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Advice when storage is full or failing: it does not heal in milliseconds.
const STORAGE_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The status for an error of consensus.
pub fn consensus(error: ConsensusError) -> Status {
    match error {
        ConsensusError::NotLeader { leader } => {
            let leader = leader.map(|(node, member)| Leader { node, address: member.address });
            status::not_leader(leader, RETRY_AFTER)
        }
        ConsensusError::NoQuorum => {
            status::unavailable(rule::NOT_LEADER, "no quorum answers the leader", RETRY_AFTER)
        }
        ConsensusError::Unknown => {
            status::outcome_unknown("no answer in time; what was asked may still take effect")
        }
        ConsensusError::Overloaded => {
            status::overloaded("too many proposals are under way", RETRY_AFTER)
        }
        ConsensusError::Storage(problem) => storage(format!("this node cannot write: {problem}")),
        ConsensusError::Membership(problem) => {
            status::refused("membership", problem, "see `regent members list`")
        }
        ConsensusError::Stopped(why) => status::unavailable(
            rule::NOT_READY,
            format!("this node has stopped: {why}"),
            RETRY_AFTER,
        ),
    }
}

/// The status for what cannot be written anywhere that counts.
pub fn storage(what: String) -> Status {
    status::unavailable(rule::STORAGE, what, STORAGE_RETRY_AFTER)
}

/// If `status` says that the answering node does not lead: where the leader is, if it knew.
pub fn not_leader(status: &Status) -> Option<Option<Leader>> {
    if status.code() != Code::Unavailable {
        return None;
    }
    let refused = Refused::from_status(status)?;
    (refused.rule == rule::NOT_LEADER).then_some(refused.leader)
}
