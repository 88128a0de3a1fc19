//! Getting an entry into the log from any node: proposed here if this node leads, else handed to
//! the leader.
//!
//! An entry that carries a request id may be sent twice: `apply` answers the second with the first
//! one's reply. So when the leader changes while an answer is awaited, such an entry goes to the
//! new leader at once; one without an id is never sent again after it may have arrived.

use std::sync::Arc;

use bytes::Bytes;
use regent_core::authz::Principal;
use regent_core::command::{Command, Entry, Request};
use regent_core::limits::MAX_ENTRY_BYTES;
use regent_core::reply::Reply;
use regent_raft::Consensus;
use regent_rpc::clock::Clock;
use regent_rpc::convert::status::{self, Leader};
use tokio::time::Instant;
use tonic::Status;

use crate::disks::Disks;
use crate::forward::{Forwarded, Forwarder};
use crate::leadership::Leadership;
use crate::peers::Peers;
use crate::refuse;

/// Leaders tried for one entry: the known one, the one it hints at, the one elected meanwhile.
const MAX_TRIES: usize = 3;

/// Proposes entries; clones share everything.
#[derive(Clone)]
pub struct Proposer {
    consensus: Consensus,
    leadership: Leadership,
    forwarder: Arc<Forwarder>,
    clock: Arc<dyn Clock>,
    disks: Arc<Disks>,
}

/// What became of one try.
enum Try {
    Answer(Result<Reply, Status>),
    /// The node does not lead; it did not take the entry.
    NotLeader(Option<Leader>),
    /// The entry may or may not have arrived.
    Lost(Status),
}

impl Proposer {
    /// Proposes through `consensus`, forwards through `peers`.
    pub fn new(
        consensus: Consensus,
        leadership: Leadership,
        peers: Arc<Peers>,
        clock: Arc<dyn Clock>,
        disks: Arc<Disks>,
    ) -> Self {
        Self { consensus, leadership, forwarder: Arc::new(Forwarder::new(peers)), clock, disks }
    }

    /// Proposes `command` in the name of `by`; answers when it was applied.
    ///
    /// # Errors
    /// Consensus errors as statuses. A rejection by the core is not an error here but a [`Reply`].
    pub async fn command(
        &self,
        by: Principal,
        request: Option<Request>,
        command: &Command,
        until: Instant,
    ) -> Result<Reply, Status> {
        let entry = Entry::new(self.clock.wall(), by, request, command).encode();
        if entry.len() > MAX_ENTRY_BYTES {
            return Err(status::quota(
                "entry_size",
                format!("the request takes {} bytes, the limit is {MAX_ENTRY_BYTES}", entry.len()),
            ));
        }
        self.entry(entry.into(), request.is_some(), until).await
    }

    /// Proposes an encoded entry. `again` says that it may be sent twice.
    ///
    /// # Errors
    /// Consensus errors as statuses.
    pub async fn entry(&self, entry: Bytes, again: bool, until: Instant) -> Result<Reply, Status> {
        // The way of most writes: this node leads, nothing to look up.
        if self.leadership.is_here() {
            match self.here(entry.clone(), until).await {
                Try::Answer(answer) => return answer,
                Try::Lost(status) => return Err(status),
                Try::NotLeader(_) => {}
            }
        }
        let give_up = self.leadership.give_up_at(until);
        let mut leader = self.leadership.other_than(None, give_up).await?;
        // An earlier try may take effect: no later refusal says that nothing was done.
        let mut lost = None;
        let mut last = None;
        for _ in 0..MAX_TRIES {
            let tried = if leader.node == self.leadership.node() {
                self.here(entry.clone(), until).await
            } else {
                self.there(&leader, entry.clone(), again, until).await
            };
            match tried {
                Try::Answer(answer) => return answer.map_err(|refused| lost.unwrap_or(refused)),
                Try::NotLeader(Some(hint)) if hint.node != leader.node => {
                    leader = hint;
                    continue;
                }
                Try::NotLeader(_) => last = Some(status::not_leader(None, refuse::RETRY_AFTER)),
                Try::Lost(status) if again => lost = Some(status),
                Try::Lost(status) => return Err(status),
            }
            // Nobody has heard of another leader yet; wait for the election to end.
            match self.leadership.other_than(Some(leader.node), give_up).await {
                Ok(next) => leader = next,
                Err(none) => return Err(lost.or(last).unwrap_or(none)),
            }
        }
        Err(lost.or(last).unwrap_or_else(|| status::not_leader(None, refuse::RETRY_AFTER)))
    }

    /// Proposes on this node, which must lead; for entries that another node handed over.
    ///
    /// # Errors
    /// Consensus errors as statuses, UNAVAILABLE with a hint when another node leads.
    pub async fn as_leader(&self, entry: Bytes, until: Instant) -> Result<Reply, Status> {
        self.disks.allow()?;
        let left = until.saturating_duration_since(Instant::now());
        self.consensus.propose(entry, left).await.map_err(refuse::consensus)
    }

    async fn here(&self, entry: Bytes, until: Instant) -> Try {
        match self.as_leader(entry, until).await {
            Ok(reply) => Try::Answer(Ok(reply)),
            Err(status) => match refuse::not_leader(&status) {
                Some(hint) => Try::NotLeader(hint),
                None => Try::Answer(Err(status)),
            },
        }
    }

    async fn there(&self, leader: &Leader, entry: Bytes, again: bool, until: Instant) -> Try {
        let call = self.forwarder.hand_over(leader, entry, until);
        let outcome = if again {
            tokio::select! {
                outcome = call => outcome,
                () = self.leadership.moved_from(leader.node) => {
                    let what = "the leader changed before it answered; it may still take effect";
                    return Try::Lost(status::outcome_unknown(what));
                }
            }
        } else {
            call.await
        };
        match outcome {
            Forwarded::Answer(Ok(reply)) => Try::Answer(Ok(reply)),
            Forwarded::Answer(Err(status)) => match refuse::not_leader(&status) {
                Some(hint) => Try::NotLeader(hint),
                None => Try::Answer(Err(status)),
            },
            Forwarded::NotSent => Try::NotLeader(None),
            Forwarded::Lost => {
                let what = "the leader did not answer; it may still take effect";
                Try::Lost(status::outcome_unknown(what))
            }
        }
    }
}
