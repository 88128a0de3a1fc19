//! Watches against fake nodes: resumed, each change told once.

use regent_core::id::Revision;
use tonic::Status;

use super::fake::Fake;
use crate::client::Seen;
use crate::convert::common::From;
use crate::convert::election::ObserveScope;
use crate::convert::status::compacted;
use crate::pb::v1;
use crate::pb::v1::observe_response::Event;

fn told(event: Event) -> Result<v1::ObserveResponse, Status> {
    Ok(v1::ObserveResponse { event: Some(event) })
}

fn stamp(revision: u64) -> v1::Stamp {
    v1::Stamp { incarnation: 1, incarnation_id: 7, revision, ..v1::Stamp::default() }
}

fn change(revision: u64, name: &str) -> Result<v1::ObserveResponse, Status> {
    let name = name.to_owned();
    told(Event::Change(v1::ElectionChange { revision, name, election: None }))
}

/// The same row with a holder, who is believed live.
fn held(revision: u64, name: &str) -> Result<v1::ObserveResponse, Status> {
    let election = Some(v1::Election {
        name: name.to_owned(),
        holder: Some(v1::Holder::default()),
        ..v1::Election::default()
    });
    let name = name.to_owned();
    told(Event::Change(v1::ElectionChange { revision, name, election }))
}

/// What was seen, in short.
fn short(seen: &Seen<v1::ElectionChange>) -> String {
    match seen {
        Seen::Restart => "restart".to_owned(),
        Seen::Change(change) => {
            let held = change.election.as_ref().is_some_and(|row| row.holder.is_some());
            format!("{}@{}{}", change.name, change.revision, if held { "+" } else { "" })
        }
        Seen::SnapshotEnd(Revision(at)) => format!("end@{at}"),
        Seen::Bookmark(Revision(at)) => format!("mark@{at}"),
    }
}

#[tokio::test]
async fn a_broken_watch_goes_on_and_tells_every_change_once() {
    let fake = Fake::start(2).await;
    fake.state().scripts.extend([
        // The snapshot breaks off: it begins anew.
        vec![change(3, "a")],
        vec![change(3, "a"), change(4, "b"), told(Event::SnapshotEnd(stamp(5)))],
        // One revision with several rows, cut in the middle.
        vec![change(6, "a"), change(8, "a"), change(8, "b"), Err(Status::unavailable("gone"))],
        vec![change(8, "a"), change(8, "b"), change(8, "c"), told(Event::Bookmark(stamp(9)))],
        // Too far back.
        vec![Err(compacted("compacted"))],
        vec![told(Event::SnapshotEnd(stamp(20))), change(21, "z")],
    ]);
    let mut watch = fake.any().observe(ObserveScope::All, From::Snapshot);
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| last != "z@21") {
        seen.push(short(&watch.next().await.unwrap()));
    }
    let expected = "restart a@3 restart a@3 b@4 end@5 a@6 a@8 b@8 c@8 mark@9 restart end@20 z@21";
    assert_eq!(seen.join(" "), expected);
    let asked: Vec<_> =
        fake.state().asked.iter().map(|from| from.map_or(0, |from| from.revision)).collect();
    assert_eq!(asked, [0, 0, 5, 7, 9, 0]);
}

#[tokio::test]
async fn a_holder_that_is_no_longer_believed_live_is_told_although_nothing_was_committed() {
    let fake = Fake::start(2).await;
    fake.state().scripts.extend([
        vec![
            told(Event::SnapshotEnd(stamp(5))),
            held(6, "a"),
            // The node is cut off, and then not any more.
            change(6, "a"),
            held(6, "a"),
            Err(Status::unavailable("gone")),
        ],
        // Another node tells the entry again, in which it believes; then it is cut off itself.
        vec![held(6, "a"), change(6, "a"), Err(Status::unavailable("gone"))],
        // A third one never believed in it.
        vec![held(6, "a"), held(7, "b"), Err(Status::unavailable("gone"))],
        vec![change(6, "a"), change(7, "b"), change(8, "z")],
    ]);
    let mut watch = fake.any().observe(ObserveScope::All, From::Snapshot);
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last| last != "z@8") {
        seen.push(short(&watch.next().await.unwrap()));
    }
    assert_eq!(seen.join(" "), "restart end@5 a@6+ a@6 a@6+ a@6 a@6+ b@7+ a@6 b@7 z@8");
}
