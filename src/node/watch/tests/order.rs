//! Snapshots, filters, resuming, endings, bounds.

use super::*;
use tonic::Code;

#[tokio::test]
async fn a_watch_begins_with_what_is_there_and_goes_on_with_what_changes() {
    let mut world = World::new(quick(4));
    let session = world.open();
    world.campaign("a/x", session);
    world.campaign("b/y", session);
    let at = world.revision();
    let mut seen = world.observe(all()).unwrap();
    let (rows, stamp) = seen.snapshot().await;
    let names: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.revision)).collect();
    assert_eq!(names, [("a/x", 0), ("b/y", 0)], "a snapshot is resumable only as a whole");
    assert_eq!((stamp.revision, stamp.node, stamp.age_ms), (at.0, 4, 3));
    assert_eq!(stamp.incarnation_id, INCARNATION.id);
    let held = rows[0].election.as_ref().unwrap().holder.as_ref().unwrap();
    assert_eq!((held.session, held.owner.as_str()), (session.0, "admin/test"));
    assert_eq!((held.label.as_str(), held.ttl_ms, held.confirmed), ("here", 10_000, false));

    world.proclaim("a/x", session, b"new");
    let change = seen.change().await;
    assert_eq!((change.name.as_str(), change.revision), ("a/x", world.revision().0));
    let value = change.election.unwrap().holder.unwrap().value;
    assert_eq!(value.as_ref(), b"new");
}

#[tokio::test]
async fn a_deleted_election_is_told_as_gone() {
    let mut world = World::new(quick(1));
    let session = world.open();
    world.campaign("a", session);
    world.resign("a", session);
    let mut seen = world.observe(one("a")).unwrap();
    seen.snapshot().await;
    let expect = regent_core::command::Expect::Any;
    world.apply(Command::DeleteElection { election: name("a"), expect });
    let change = seen.change().await;
    assert_eq!((change.election, change.revision), (None, world.revision().0));
}

#[tokio::test]
async fn a_change_reaches_those_who_watch_it_and_wakes_nobody_else() {
    let mut world = World::new(quick(1));
    let session = world.open();
    let mut exact = world.observe(one("a/x")).unwrap();
    let mut within = world.observe(prefix("a/")).unwrap();
    let mut other = world.observe(one("a/y")).unwrap();
    let mut elsewhere = world.observe(prefix("b")).unwrap();
    for observer in [&mut exact, &mut within, &mut other, &mut elsewhere] {
        observer.snapshot().await;
    }
    world.campaign("a/x", session);
    assert_eq!(exact.change().await.name, "a/x");
    assert_eq!(within.change().await.name, "a/x");
    assert_eq!(world.metrics.watch_deliveries.get(), 2);
    assert!(other.ready().is_none() && elsewhere.ready().is_none());
}

#[tokio::test]
async fn a_watch_goes_on_where_it_left_even_on_a_revision_that_changed_nothing() {
    let mut world = World::new(quick(1));
    let session = world.open();
    world.campaign("a", session);
    let left = world.revision();
    world.proclaim("a", session, b"1");
    world.open();
    world.proclaim("b", session, b"no such election");
    world.proclaim("a", session, b"2");
    let mut seen = world.observe(after(one("a"), left.0)).unwrap();
    for value in [b"1", b"2"] {
        let change = seen.change().await;
        assert_eq!(change.election.unwrap().holder.unwrap().value.as_ref(), value);
    }
    let Event::Bookmark(stamp) = seen.next().await.unwrap() else { panic!("a bookmark") };
    assert_eq!(stamp.revision, world.revision().0);
}

#[tokio::test]
async fn a_revision_of_another_life_or_not_kept_or_not_reached_is_refused_with_its_reason() {
    let config = HubConfig { ring_events: 2, ..quick(1) };
    let mut world = World::new(config);
    let session = world.open();
    world.campaign("a", session);
    let early = world.revision().0;
    for value in [b"1", b"2", b"3"] {
        tokio::task::yield_now().await;
        world.proclaim("a", session, value);
    }
    let code = |request| world.observe(request).err().map(|status| status.code());
    assert_eq!(code(after(one("a"), early)), Some(Code::OutOfRange));
    assert_eq!(code(after(one("a"), early + 1)), None, "what comes after it is kept");
    let mut other_life = after(one("a"), world.revision().0);
    other_life.from.as_mut().unwrap().incarnation_id = 1;
    assert_eq!(code(other_life), Some(Code::OutOfRange));
    let ahead = after(one("a"), world.revision().0 + 1);
    assert_eq!(code(ahead), Some(Code::Unavailable));
    assert_eq!(code(v1::ObserveRequest::default()), Some(Code::InvalidArgument));
}

#[tokio::test]
async fn of_an_entry_that_changed_many_rows_only_the_last_lets_a_watch_go_on_behind_it() {
    let mut world = World::new(quick(1));
    let session = world.open();
    for election in ["a/1", "a/2", "b/3"] {
        world.campaign(election, session);
    }
    let mut everything = world.observe(all()).unwrap();
    let mut part = world.observe(prefix("a/")).unwrap();
    let mut single = world.observe(one("a/1")).unwrap();
    for observer in [&mut everything, &mut part, &mut single] {
        observer.snapshot().await;
    }
    world.close(session);
    let at = world.revision().0;
    let mut labels = Vec::new();
    for _ in 0..3 {
        labels.push(everything.change().await.revision);
    }
    assert_eq!(labels, [at - 1, at - 1, at]);
    assert_eq!([part.change().await.revision, part.change().await.revision], [at - 1, at]);
    assert_eq!(single.change().await.revision, at);
    // Gone on from the first of the three, the other two are not missed.
    let mut again = world.observe(after(all(), at - 1)).unwrap();
    let names = [again.change().await.name, again.change().await.name, again.change().await.name];
    assert_eq!(names, ["a/1", "a/2", "b/3"]);
}

#[tokio::test]
async fn a_slow_watcher_is_cut_off_with_a_reason_and_nobody_waits_for_it() {
    let config = HubConfig { mailbox_messages: 10, ..quick(1) };
    let mut world = World::new(config);
    let session = world.open();
    world.campaign("a", session);
    let mut slow = world.observe(one("a")).unwrap();
    let mut quick = world.observe(one("a")).unwrap();
    quick.snapshot().await;
    slow.snapshot().await;
    for round in 0..30_u8 {
        world.proclaim("a", session, &[round]);
        let change = quick.change().await;
        assert_eq!(change.election.unwrap().holder.unwrap().value.as_ref(), [round]);
    }
    let refused = slow.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(matches!(slow.ready(), Some(None)), "it is told once, then the stream ends");
    assert_eq!(world.hub.watcher_count(), 1);
    let text = world.metrics.render();
    assert!(text.contains("regent_watch_cut_off_watchers_count_total{kind=\"slow\"} 1"), "{text}");
    assert!(text.contains("regent_watch_watchers_count{kind=\"elections\"} 1"), "{text}");
}

#[tokio::test]
async fn after_a_snapshot_was_installed_or_a_new_life_began_every_watch_begins_anew() {
    let mut world = World::new(quick(1));
    let mut seen = world.observe(all()).unwrap();
    seen.snapshot().await;
    world.hub.installed(&world.state.read());
    assert_eq!(seen.next().await.unwrap_err().code(), Code::OutOfRange);
    eventually("the ended watch is gone", || world.hub.watcher_count() == 0).await;

    let mut seen = world.observe(all()).unwrap();
    seen.snapshot().await;
    let incarnation = Incarnation { counter: 2, id: 9 };
    world.apply(Command::BeginIncarnation {
        incarnation,
        reason: "restored".into(),
        hold_ms: Some(0),
    });
    assert_eq!(seen.next().await.unwrap_err().code(), Code::OutOfRange);
    let old = world.observe(after(all(), world.revision().0));
    assert_eq!(old.err().map(|status| status.code()), Some(Code::OutOfRange));
}

#[tokio::test]
async fn closing_ends_every_watch_and_takes_no_new_one() {
    let world = World::new(quick(1));
    let mut seen = world.observe(all()).unwrap();
    seen.snapshot().await;
    world.hub.close();
    assert_eq!(seen.next().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(world.observe(all()).err().map(|s| s.code()), Some(Code::Unavailable));
}

#[tokio::test]
async fn the_number_of_watchers_is_bounded_and_a_dropped_one_makes_room() {
    let world = World::new(HubConfig { max_watchers: 2, ..quick(1) });
    let first = world.observe(all()).unwrap();
    let _second = world.observe(one("a")).unwrap();
    let refused = world.observe(one("b")).err().map(|status| status.code());
    assert_eq!(refused, Some(Code::ResourceExhausted));
    drop(first);
    assert!(world.observe(one("b")).is_ok());
}

#[tokio::test]
async fn an_idle_watcher_is_told_how_far_it_is() {
    let config = HubConfig { bookmark_interval: Duration::from_millis(20), ..quick(1) };
    let mut world = World::new(config);
    let mut seen = world.observe(one("quiet")).unwrap();
    seen.snapshot().await;
    let session = world.open();
    world.campaign("loud", session);
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let Event::Bookmark(stamp) = seen.next().await.unwrap() else { panic!("a bookmark") };
        if stamp.revision == world.revision().0 {
            break;
        }
        assert!(tokio::time::Instant::now() < until, "bookmarks stand still");
    }
    // Whoever was told so can go on from there, although nothing of its own happened.
    let at = world.revision().0;
    assert!(world.observe(after(one("quiet"), at)).is_ok());
}

#[tokio::test]
async fn services_are_watched_with_their_partitions() {
    let world = World::new(quick(1));
    let request = v1::WatchServicesRequest { name: "orders".into(), from: None };
    let stream = world.hub.watch_services(&world.state, &request).unwrap();
    let mut stream = Box::pin(stream.services());
    let first = stream.next().await.unwrap().unwrap();
    use v1::watch_services_response::Event;
    assert!(matches!(first.event, Some(Event::SnapshotEnd(_))));
    let bad = v1::WatchServicesRequest { name: "two words".into(), from: None };
    let refused = world.hub.watch_services(&world.state, &bad).err().map(|s| s.code());
    assert_eq!(refused, Some(Code::InvalidArgument));
}
