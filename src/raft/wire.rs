//! The bodies of Raft calls: one version byte, then postcard.
//!
//! The format of openraft's types changes between its releases, hence the version byte: a node
//! refuses what it cannot read instead of misreading it. Decoding must never panic, and what was
//! decoded is checked before openraft sees it, because openraft asserts what a peer that follows
//! the protocol cannot violate, and a failed assertion would stop the node.

use bytes::Bytes;
use openraft::entry::RaftEntry as _;
use openraft::raft::AppendEntriesRequest;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::TransportError;
use crate::types::{LogId, SnapshotMeta, Types, Vote};

/// The only format so far: the types of openraft 0.10.0-alpha.37.
pub(crate) const WIRE_VERSION: u8 = 1;

/// What comes before a snapshot's data.
pub(crate) type SnapshotHead = (Vote, SnapshotMeta);

/// Wraps `body`.
pub(crate) fn encode<T: Serialize>(body: &T) -> Bytes {
    let bytes = postcard::to_extend(body, vec![WIRE_VERSION]);
    Bytes::from(bytes.expect("Raft messages have no type postcard refuses"))
}

/// Unwraps a body.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, TransportError> {
    match bytes.split_first() {
        None => Err(TransportError("the body is empty".into())),
        Some((&WIRE_VERSION, body)) => postcard::from_bytes(body)
            .map_err(|e| TransportError(format!("the body is not readable: {e}"))),
        Some((version, _)) => Err(TransportError(format!(
            "the body has version {version}, this node reads {WIRE_VERSION}"
        ))),
    }
}

fn broken(what: &str) -> TransportError {
    TransportError(format!("the body breaks the protocol: {what}"))
}

/// Unwraps an append request and checks what openraft takes for granted.
pub(crate) fn decode_append(bytes: &[u8]) -> Result<AppendEntriesRequest<Types>, TransportError> {
    let request: AppendEntriesRequest<Types> = decode(bytes)?;
    check_vote(&request.vote)?;
    let leader = request.vote.leader_id();
    let mut before: Option<LogId> = request.prev_log_id;
    for entry in &request.entries {
        let id = entry.log_id();
        // An absent predecessor means "the very beginning": index 0.
        let due = before.map_or(Some(0), |b| b.index().checked_add(1));
        if Some(id.index()) != due {
            return Err(broken("the entries have a hole"));
        }
        if before.is_some_and(|b| b.committed_leader_id() > id.committed_leader_id())
            || id.committed_leader_id() > leader
        {
            return Err(broken("an entry is of a later leader than what follows it"));
        }
        if let openraft::EntryPayload::Membership(members) = &entry.payload {
            let known = members.voter_ids().all(|id| members.get_node(&id).is_some());
            let empty = members.get_joint_config().iter().any(|voters| voters.is_empty());
            if !known || empty || members.get_joint_config().is_empty() {
                return Err(broken("a membership names voters it does not describe"));
            }
        }
        before = Some(id);
    }
    for id in [request.prev_log_id, request.leader_commit].into_iter().flatten() {
        if id.committed_leader_id() > leader || id.index() == u64::MAX {
            return Err(broken("a log id is beyond its leader"));
        }
    }
    Ok(request)
}

/// Only an elected leader sends entries and snapshots.
pub(crate) fn check_vote(vote: &Vote) -> Result<(), TransportError> {
    if vote.is_committed() { Ok(()) } else { Err(broken("the sender was not elected")) }
}

/// Unwraps the head of a snapshot and checks what openraft asserts about it, given what is
/// committed here.
pub(crate) fn decode_head(
    bytes: &[u8],
    committed: Option<LogId>,
) -> Result<SnapshotHead, TransportError> {
    let (vote, meta): SnapshotHead = decode(bytes)?;
    check_vote(&vote)?;
    let Some(last) = meta.last_log_id else {
        return Err(broken("the snapshot covers nothing"));
    };
    if last.committed_leader_id() > vote.leader_id() || last.index() == u64::MAX {
        return Err(broken("the snapshot is beyond its leader"));
    }
    if committed.is_some_and(|c| last > c && last.index() <= c.index()) {
        return Err(broken("the snapshot contradicts what is committed here"));
    }
    Ok((vote, meta))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use openraft::EntryPayload;
    use openraft::impls::leader_id_adv::LeaderId;
    use openraft::vote::RaftLeaderId as _;
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Entry, Payload};

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(LeaderId::new(term, 1), index)
    }

    fn request(indexes: &[u64]) -> AppendEntriesRequest<Types> {
        AppendEntriesRequest {
            vote: Vote::new_committed(2, 1),
            prev_log_id: Some(id(1, 4)),
            entries: indexes
                .iter()
                .map(|i| Entry::new(id(2, *i), EntryPayload::Normal(Payload(Bytes::from("x")))))
                .collect(),
            leader_commit: Some(id(1, 4)),
        }
    }

    #[test]
    fn an_append_request_survives_the_wire_and_one_with_a_hole_is_refused() {
        let good = encode(&request(&[5, 6]));
        assert_eq!(decode_append(&good).unwrap().entries.len(), 2);
        for bad in [&[6][..], &[5, 7], &[4], &[5, 5]] {
            decode_append(&encode(&request(bad))).unwrap_err();
        }
    }

    #[test]
    fn a_candidate_may_not_append() {
        let mut bad = request(&[5]);
        bad.vote = Vote::new(2, 1);
        decode_append(&encode(&bad)).unwrap_err();
    }

    #[test]
    fn a_body_of_another_version_is_refused_by_name() {
        let text = decode::<Vote>(&[9, 0, 0]).unwrap_err().to_string();
        assert!(text.contains("version 9"), "{text}");
    }

    #[test]
    fn a_snapshot_that_contradicts_what_is_committed_is_refused() {
        let meta = SnapshotMeta { last_log_id: Some(id(2, 7)), ..Default::default() };
        let head = encode(&(Vote::new_committed(2, 1), meta));
        decode_head(&head, None).unwrap();
        decode_head(&head, Some(id(1, 6))).unwrap();
        decode_head(&head, Some(id(1, 7))).unwrap_err();
        decode_head(&head, Some(id(1, 8))).unwrap_err();
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(first) = bytes.first_mut() {
                *first = WIRE_VERSION;
            }
            let _ = decode_append(&bytes);
            let _ = decode_head(&bytes, Some(id(1, 1)));
            let _ = decode::<openraft::raft::VoteRequest<Types>>(&bytes);
            let _ = decode::<openraft::raft::TransferLeaderRequest<Types>>(&bytes);
        }
    }
}
