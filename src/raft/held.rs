//! What a node's disk holds of its promises: its vote, and the log under that vote.
//!
//! A promise is a vote that was given, or entries that were acknowledged. Both only grow: a vote is
//! replaced by a higher one, and under one vote a log that agrees with that leader's is never cut.
//! So promises are ordered by vote first and log second, and a disk that holds less than it once
//! promised went back in time (PROTOCOL.md B). What is remembered here must be on the disk already,
//! or a power cut would make an honest disk look like an old one.

use openraft::raft::VoteResponse;
use regent_core::id::{NodeId, Revision};

use crate::api::RpcKind;
use crate::consensus::Consensus;
use crate::types::{LogId, Types, Vote, revision_of};
use crate::wire;

/// Promises up to a point; the order of the fields is their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// Term of the vote.
    pub term: u64,
    /// Whom it was given to.
    pub leader: NodeId,
    /// Last entry of the log that is known to agree with that leader's; 0: none is.
    pub last: Revision,
}

impl Held {
    /// A vote, and the log up to `last`.
    pub(crate) fn of(vote: Option<Vote>, last: Option<LogId>) -> Self {
        let (term, leader) =
            vote.map_or((0, 0), |vote| (vote.leader_id().term, vote.leader_id().node_id));
        Self { term, leader: NodeId(leader), last: revision_of(last) }
    }
}

/// What an answer to a call says that the answering node has promised; `None`: nothing new.
pub fn promised(kind: RpcKind, answer: &[u8]) -> Option<Held> {
    if kind != RpcKind::Vote {
        return None;
    }
    let answer: VoteResponse<Types> = wire::decode(answer).ok()?;
    answer.vote_granted.then(|| Held::of(Some(answer.vote), None))
}

impl Consensus {
    /// What the disk held when this node started: all of it, what a later leader may cut as well.
    pub fn held_at_start(&self) -> Held {
        self.inner.held_at_start
    }

    /// What this node has promised and is on its disk.
    pub fn held(&self) -> Held {
        self.inner.log.held()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vote_counts_more_than_any_log_under_a_lower_one() {
        let held = |term, leader, last| Held { term, leader: NodeId(leader), last: Revision(last) };
        let rising = [held(0, 0, 0), held(1, 2, 9), held(1, 3, 0), held(1, 3, 4), held(2, 1, 0)];
        assert!(rising.is_sorted());
    }

    #[test]
    fn only_a_vote_that_was_granted_is_a_promise() {
        for granted in [true, false] {
            let vote = Vote::new(7, 2);
            let answer = VoteResponse::<Types>::new(vote, None, granted);
            let heard = promised(RpcKind::Vote, &wire::encode(&answer));
            let due = Held { term: 7, leader: NodeId(2), last: Revision(0) };
            assert_eq!(heard, granted.then_some(due));
            assert_eq!(promised(RpcKind::PreVote, &wire::encode(&answer)), None);
        }
        assert_eq!(promised(RpcKind::Vote, b"nonsense"), None);
    }
}
