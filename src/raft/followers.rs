//! What followers acknowledged to this leader, and whether they still have it.
//!
//! An entry is committed because a majority said that it is on their disks. A follower that later
//! tells the same leader that it does not have such an entry has a disk that lies or went back in
//! time: what it says must not be counted again, or entries that were acknowledged to clients could
//! be lost with the next disk. openraft is told not to allow this (`allow_log_reversion`), but only
//! asserts it in debug builds; so the rule is enforced here, on every answer.

use std::collections::BTreeMap;

use openraft::raft::{StreamAppendError, StreamAppendResult};
use parking_lot::Mutex;
use regent_core::id::NodeId;

use crate::types::{LogId, Types, Vote};

/// What was known when a request was sent, to judge its answer by: a conflict that crossed with
/// another answer on the way is none.
#[derive(Clone, Copy)]
pub(crate) struct Sent {
    vote: Vote,
    acknowledged: Option<LogId>,
}

struct Follower {
    /// The leadership that it answered; a later one begins anew.
    vote: Vote,
    acknowledged: Option<LogId>,
    lost: bool,
}

#[derive(Default)]
struct Book {
    followers: BTreeMap<NodeId, Follower>,
    /// Kept until this node restarts: somebody has to look at that disk.
    reports: BTreeMap<NodeId, String>,
}

/// The book of all followers; one for all links of a node.
#[derive(Default)]
pub(crate) struct Followers(Mutex<Book>);

impl Book {
    /// The page of `id` in the leadership of `vote`; `None` when a later one has begun.
    fn page(&mut self, id: NodeId, vote: &Vote) -> Option<&mut Follower> {
        let fresh = || Follower { vote: *vote, acknowledged: None, lost: false };
        let page = self.followers.entry(id).or_insert_with(fresh);
        if page.vote.leader_id() < vote.leader_id() {
            *page = fresh();
        }
        (page.vote.leader_id() == vote.leader_id()).then_some(page)
    }
}

impl Followers {
    /// A request of the leadership of `vote` goes out to `id`.
    pub fn sent(&self, id: NodeId, vote: &Vote) -> Sent {
        let mut book = self.0.lock();
        let acknowledged = book.page(id, vote).and_then(|page| page.acknowledged);
        Sent { vote: *vote, acknowledged }
    }

    /// Judges an answer of `id`; the error says why it must not be counted.
    pub fn judge(
        &self,
        id: NodeId,
        sent: &Sent,
        answer: &StreamAppendResult<Types>,
    ) -> Result<(), String> {
        let mut book = self.0.lock();
        let Some(page) = book.page(id, &sent.vote) else { return Ok(()) };
        match answer {
            Ok(upto) if !page.lost => {
                page.acknowledged = page.acknowledged.max(*upto);
                return Ok(());
            }
            Err(StreamAppendError::Conflict(at)) if Some(*at) <= sent.acknowledged => {
                page.lost = true;
            }
            Err(_) if !page.lost => return Ok(()),
            Ok(_) | Err(_) => {}
        }
        let upto = page.acknowledged.map_or(0, |last| last.index());
        let what = format!(
            "node {id} lost entries that it had acknowledged (up to index {upto}): its disk lies or \
             went back in time. It is not counted; remove it and add an empty one under a new node id"
        );
        if book.reports.insert(id, what.clone()).is_none() {
            tracing::error!(node = %id, "{what}");
        }
        Err(what)
    }

    /// Refuses to count on `id` at all, if it has lost something.
    pub fn check(&self, id: NodeId, vote: &Vote) -> Result<(), String> {
        let mut book = self.0.lock();
        match book.page(id, vote) {
            Some(page) if page.lost => Err(format!("node {id} lost entries that it acknowledged")),
            _ => Ok(()),
        }
    }

    /// For people: which nodes lost something; empty when none did.
    pub fn trouble(&self) -> String {
        self.0.lock().reports.values().cloned().collect::<Vec<_>>().join("; ")
    }
}
