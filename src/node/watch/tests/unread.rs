//! Watchers that do not read what they are served on joining.

use tonic::Code;

use super::*;

/// A world of `elections` elections in which no more than as many rows wait to be read.
fn world(elections: usize, bookmark_interval: Duration) -> (World, SessionId) {
    let config = HubConfig { unread_rows: elections, bookmark_interval, ..quick(1) };
    let mut world = World::new(config);
    let session = world.open();
    for at in 0..elections {
        world.campaign(&format!("e{at:03}"), session);
    }
    (world, session)
}

#[tokio::test]
async fn snapshots_that_nobody_reads_take_no_more_than_their_bound_and_reading_gives_room() {
    let (world, _) = world(100, Duration::from_secs(3_600));
    let mut first = world.observe(all()).unwrap();
    let refused = world.observe(one("e007")).err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("not read their snapshots"), "{refused}");
    assert_eq!(world.hub.watcher_count(), 1, "one that is refused is not kept");
    assert_eq!(first.snapshot().await.0.len(), 100);
    let mut second = world.observe(one("e007")).unwrap();
    assert_eq!(second.snapshot().await.0.len(), 1);
    drop(second);
    let third = world.observe(all()).unwrap();
    assert!(world.observe(one("e007")).is_err());
    drop(third);
    assert!(world.observe(all()).is_ok(), "a watcher that goes away takes its rows with it");
}

#[tokio::test]
async fn a_watcher_that_is_cut_off_gives_its_rows_back_though_nobody_polls_it() {
    let config = HubConfig { unread_rows: 100, mailbox_messages: 8, ..quick(1) };
    let mut world = World::new(config);
    let session = world.open();
    for at in 0..100 {
        world.campaign(&format!("e{at:03}"), session);
    }
    let _unread = world.observe(all()).unwrap();
    assert!(world.observe(all()).is_err());
    for at in 0..20_u8 {
        world.proclaim("e001", session, &[at]);
    }
    eventually("it is cut off", || world.hub.watcher_count() == 0).await;
    assert!(world.observe(all()).is_ok());
}

#[tokio::test]
async fn in_a_quiet_cluster_a_watcher_that_never_reads_its_snapshot_is_cut_off_too() {
    let (world, _) = world(10, Duration::from_millis(20));
    let mut unread = world.observe(all()).unwrap();
    eventually("it is cut off", || world.hub.watcher_count() == 0).await;
    let told = unread.next().await.unwrap_err();
    assert_eq!(told.code(), Code::ResourceExhausted);
    // One that reads is not, however long nothing changes.
    let mut reader = world.observe(all()).unwrap();
    reader.snapshot().await;
    for _ in 0..8 {
        assert!(matches!(reader.next().await, Ok(Event::Bookmark(_))));
    }
}
