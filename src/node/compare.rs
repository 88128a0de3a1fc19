//! Clocks and state hashes, compared with every other voter once a second; each also says whether it
//! can write ([`Disks`]).
//!
//! Two things can go wrong without any error message: a clock that runs differently (C9), and a
//! state that came out differently (S9). A node whose clock a majority contradicts abstains from
//! proposing expiry. A node whose state hash a majority contradicts stops: whatever it would answer
//! or vote from now on is wrong, and nobody could tell.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use regent_core::id::{NodeId, Nonce, Revision};
use regent_core::lease::Skew;
use regent_core::lease::skew::{Exchange, SkewVerdict};
use regent_core::state::State;
use regent_core::state::version::FEATURE_LEVEL;
use regent_core::time::Reading;
use regent_rpc::pb::raft::{CompareRequest, CompareResponse};
use tonic::Status;

use crate::disks::Disks;
use crate::shell::Shell;

/// How often.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// A slower answer says little about a clock.
const CALL_TIMEOUT: Duration = Duration::from_millis(800);
/// Hashes of this many entries are remembered: more than a second's worth at full speed.
const MAX_HASHES: usize = 32_768;

/// The rolling hash after one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// After this entry.
    pub revision: Revision,
    /// The hash.
    pub hash: [u8; 16],
}

/// What was compared, and what came out.
#[derive(Default)]
pub struct Comparison {
    hashes: Mutex<VecDeque<Hashed>>,
    /// The newest hash at the time of the last round: by now the others have applied it, too.
    candidate: Mutex<Option<Hashed>>,
    skew: Mutex<Skew>,
    levels: Mutex<BTreeMap<NodeId, u32>>,
    /// Which voters cannot write.
    pub disks: Arc<Disks>,
}

impl Comparison {
    /// An entry was applied.
    pub fn applied(&self, state: &State) {
        let mut hashes = self.hashes.lock();
        if hashes.len() == MAX_HASHES {
            hashes.pop_front();
        }
        hashes.push_back(Hashed { revision: state.revision(), hash: state.rolling_hash() });
    }

    /// The state was replaced; hashes of before may belong to another history.
    pub fn installed(&self, state: &State) {
        self.hashes.lock().clear();
        *self.candidate.lock() = None;
        self.applied(state);
    }

    /// The hash after `revision`, if it is remembered.
    pub fn hash_at(&self, revision: Revision) -> Option<[u8; 16]> {
        let hashes = self.hashes.lock();
        let at = hashes.binary_search_by_key(&revision, |h| h.revision).ok()?;
        Some(hashes[at].hash)
    }

    /// What C9 says of this node's clock.
    pub fn skew(&self) -> SkewVerdict {
        self.skew.lock().verdict()
    }

    /// Largest proven difference of clock rates, in parts per million.
    pub fn worst_ppm(&self) -> u64 {
        self.skew.lock().worst_ppm()
    }

    /// The feature level that every one of `members` has reported, this binary's own included;
    /// `None` while one is missing.
    pub fn common_level(&self, members: impl IntoIterator<Item = NodeId>) -> Option<u32> {
        let levels = self.levels.lock();
        members.into_iter().try_fold(FEATURE_LEVEL, |least, id| Some(least.min(*levels.get(&id)?)))
    }
}

/// What a round found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing wrong.
    Agree,
    /// A majority has the same state, and this node has another one: it must stop.
    Minority(String),
    /// Somebody else differs, or nobody knows who is right.
    Differ(String),
}

/// Judges the hashes of all voters at one revision. `mine` counts as one of `voters`.
pub fn judge(mine: Hashed, others: &[(NodeId, [u8; 16])], voters: usize) -> Finding {
    let majority = voters / 2 + 1;
    let mut votes: BTreeMap<[u8; 16], usize> = BTreeMap::new();
    *votes.entry(mine.hash).or_default() += 1;
    for (_, hash) in others {
        *votes.entry(*hash).or_default() += 1;
    }
    if votes.len() == 1 {
        return Finding::Agree;
    }
    let differing: Vec<String> = others
        .iter()
        .filter(|(_, hash)| *hash != mine.hash)
        .map(|(node, _)| node.to_string())
        .collect();
    let text = format!(
        "after revision {} this node's state differs from that of node {}",
        mine.revision,
        differing.join(", ")
    );
    let outvoted = votes.iter().any(|(hash, count)| *hash != mine.hash && *count >= majority);
    if outvoted { Finding::Minority(text) } else { Finding::Differ(text) }
}

impl Shell {
    /// One round with every other voter.
    pub async fn compare_round(&self) -> Finding {
        let status = self.leadership.status();
        let others: Vec<_> = status
            .members
            .iter()
            .filter(|(id, _, _)| *id != self.node)
            .map(|(id, member, voter)| (*id, member.address.clone(), *voter))
            .collect();
        let voters = || others.iter().filter(|(_, _, voter)| *voter).map(|(id, _, _)| *id);
        self.comparison.skew.lock().set_peers(voters());
        self.comparison.levels.lock().retain(|id, _| others.iter().any(|(o, _, _)| o == id));
        let mine = *self.comparison.candidate.lock();
        let asked = others.iter().map(|(id, address, _)| self.compare_with(*id, address, mine));
        let answers = join_all(asked).await;
        *self.comparison.candidate.lock() = self.comparison.hashes.lock().back().copied();
        let voices: Vec<(NodeId, CompareResponse)> = others
            .iter()
            .zip(answers)
            .filter(|((_, _, voter), _)| *voter)
            .filter_map(|((id, _, _), answer)| Some((*id, answer?)))
            .collect();
        let own = (self.node, status.storage_problem.clone());
        let told = voices.iter().map(|(id, answer)| (*id, answer.storage_problem.clone()));
        let problems = told.chain([own]).filter(|(_, problem)| !problem.is_empty()).collect();
        self.comparison.disks.heard(voters().count() + 1, &problems);
        let Some(mine) = mine else { return Finding::Agree };
        let known = |(id, answer): &(NodeId, CompareResponse)| {
            Some((*id, answer.hash.as_ref().try_into().ok()?))
        };
        let hashes: Vec<_> = voices.iter().filter_map(known).collect();
        judge(mine, &hashes, voters().count() + 1)
    }

    /// One exchange with one node; what it said, if it was heard.
    async fn compare_with(
        &self,
        node: NodeId,
        address: &str,
        mine: Option<Hashed>,
    ) -> Option<CompareResponse> {
        let mut client = self.peers.peer(node, address).ok()?;
        let sent = self.clock.now();
        let held = self.consensus.held();
        let message = CompareRequest {
            boottime_us: sent.boottime_us,
            raw_us: sent.raw_us,
            hash_revision: mine.map_or(0, |h| h.revision.0),
            hash: mine.map_or_else(Vec::new, |h| h.hash.to_vec()).into(),
            nonce: self.peers.start().nonce.0,
            feature_level: FEATURE_LEVEL,
            held_term: held.term,
            held_leader: held.leader.0,
            held_last: held.last.0,
        };
        let call = client.compare(self.peers.request(message, CALL_TIMEOUT));
        let answer = tokio::time::timeout(CALL_TIMEOUT, call).await.ok()?.ok()?.into_inner();
        let received = self.clock.now();
        let peer = Reading { boottime_us: answer.boottime_us, raw_us: answer.raw_us };
        let exchange = Exchange { sent, received, peer, nonce: Nonce(answer.nonce) };
        self.comparison.skew.lock().exchanged(node, exchange);
        self.comparison.levels.lock().insert(node, answer.feature_level);
        Some(answer)
    }

    /// The other side of it.
    ///
    /// # Errors
    /// Never for a readable request.
    pub fn compare_answer(&self, request: &CompareRequest) -> Result<CompareResponse, Status> {
        let now = self.clock.now();
        let hash = match request.hash_revision {
            0 => None,
            revision => self.comparison.hash_at(Revision(revision)),
        };
        Ok(CompareResponse {
            boottime_us: now.boottime_us,
            raw_us: now.raw_us,
            nonce: self.peers.start().nonce.0,
            hash: hash.map_or_else(Vec::new, |h| h.to_vec()).into(),
            feature_level: FEATURE_LEVEL,
            storage_problem: self.leadership.status().storage_problem.clone(),
        })
    }

    /// Compares until the node is stopping; returns the reason if this node must stop.
    pub async fn compare_forever(self: Arc<Self>) -> String {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut skewed = false;
        loop {
            ticks.tick().await;
            match self.compare_round().await {
                Finding::Agree => {}
                Finding::Minority(text) => return text,
                Finding::Differ(text) => {
                    tracing::error!("{text}; no majority says who is right");
                }
            }
            let verdict = self.comparison.skew();
            let differs = verdict != SkewVerdict::Agrees;
            if differs != skewed {
                skewed = differs;
                match verdict {
                    SkewVerdict::Differs { against, peers } => tracing::error!(
                        against,
                        peers,
                        "this node's clock runs differently from its peers': it proposes no expiry \
                         until they agree again; look at the machine's clock"
                    ),
                    SkewVerdict::Agrees => tracing::info!("the clocks agree again"),
                }
                // What was counted with a clock that cannot be trusted is void either way (C9).
                self.clocks.restart();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 16] = [1; 16];
    const B: [u8; 16] = [2; 16];
    const C: [u8; 16] = [3; 16];

    fn mine(hash: [u8; 16]) -> Hashed {
        Hashed { revision: Revision(9), hash }
    }

    #[test]
    fn only_the_node_in_the_minority_stops() {
        let (two, three) = (NodeId(2), NodeId(3));
        assert_eq!(judge(mine(A), &[(two, A), (three, A)], 3), Finding::Agree);
        assert!(matches!(judge(mine(B), &[(two, A), (three, A)], 3), Finding::Minority(_)));
        assert!(matches!(judge(mine(A), &[(two, B), (three, A)], 3), Finding::Differ(_)));
        assert!(matches!(judge(mine(A), &[(two, B), (three, C)], 3), Finding::Differ(_)));
        // One of three is silent: one against one is no majority.
        assert!(matches!(judge(mine(A), &[(two, B)], 3), Finding::Differ(_)));
    }
}
