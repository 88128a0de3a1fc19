//! Which requests of a replication stream are left out, and that none of the others is.
#![allow(clippy::unwrap_used)]

use openraft::EntryPayload;
use openraft::alias::LogIdOf;
use openraft::entry::RaftEntry as _;
use openraft::impls::leader_id_adv::LeaderId;
use openraft::vote::RaftLeaderId as _;

use super::*;
use crate::types::{Entry, Payload};

fn id(index: u64) -> LogIdOf<Types> {
    LogIdOf::<Types>::new(LeaderId::new(2, 1), index)
}

/// A request of `term` with the commit and, if any, one entry.
fn request(term: u64, commit: u64, entry: Option<u64>) -> AppendEntriesRequest<Types> {
    let payload = || EntryPayload::Normal(Payload(bytes::Bytes::from_static(b"x")));
    AppendEntriesRequest {
        vote: Vote::new_committed(term, 1),
        prev_log_id: Some(id(1)),
        leader_commit: Some(id(commit)),
        entries: entry.map(|index| Entry::new(id(index), payload())).into_iter().collect(),
    }
}

fn seen(request: &AppendEntriesRequest<Types>) -> (u64, usize) {
    (request.leader_commit.as_ref().unwrap().index, request.entries.len())
}

#[tokio::test(start_paused = true)]
async fn a_commit_travels_with_the_entries_that_follow() {
    let input =
        [request(2, 5, None), request(2, 6, Some(7)), request(2, 7, Some(8)), request(2, 8, None)];
    let sent: Vec<_> = coalesced(stream::iter(input)).collect().await;
    let sent: Vec<_> = sent.iter().map(seen).collect();
    // The last one has nothing to travel with: it comes before the stream ends.
    assert_eq!(sent, [(6, 1), (7, 1), (8, 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_nothing_follows_goes_out_by_itself_and_soon() {
    let begun = Instant::now();
    let input = stream::iter([request(2, 5, None)]).chain(stream::pending());
    let mut sent = Box::pin(coalesced(input));
    assert_eq!(seen(&sent.next().await.unwrap()), (5, 0));
    assert_eq!(begun.elapsed(), COMMIT_HOLD);
}

#[tokio::test(start_paused = true)]
async fn commits_alone_do_not_hold_each_other_up() {
    let input = Box::pin(stream::unfold(1, |commit| async move {
        tokio::time::sleep(COMMIT_HOLD / 3).await;
        Some((request(2, commit, None), commit + 1))
    }));
    let begun = Instant::now();
    let mut sent = Box::pin(coalesced(input));
    sent.next().await.unwrap();
    assert!(begun.elapsed() <= 2 * COMMIT_HOLD, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_another_leadership_says_is_not_left_out() {
    let input = [request(2, 5, None), request(3, 6, Some(7))];
    let sent: Vec<_> = coalesced(stream::iter(input)).collect().await;
    assert_eq!(sent.len(), 2);
}
