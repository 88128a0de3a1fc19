//! Timeline numbers that repeat: two standbys of the same primary, each promoted without the other
//! knowing of it.

use regent_engine::{Engine, RebuildError, StartAs, SyncNames};

use crate::rig::{LONG, Node, Rig, epoch};

/// Takes a standby off its upstream, as far as it is, and makes it a primary.
async fn promote(node: &Node, number: u64, timeline: u32) -> u32 {
    let handle = node.handle();
    node.pg.detach(&handle, LONG).await.unwrap();
    node.pg.recruit(&handle, LONG).await.unwrap();
    node.pg.set_sync_names(&SyncNames::Unprotected, &handle, LONG).await.unwrap();
    let switch = node.pg.promote(timeline, LONG).await.unwrap();
    node.pg.write_epoch(epoch(number), LONG).await.unwrap();
    switch.timeline
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_timelines_of_one_number_are_told_apart_and_only_a_clone_helps() {
    let rig = Rig::new();
    let old = rig.primary("a").await;
    let (mut first, second) = tokio::join!(rig.standby("b", &old), rig.standby("c", &old));
    assert_eq!(promote(&first, 2, 2).await, 2);
    // The second one leaves the common timeline later.
    let app = old.app(&rig).await;
    app.batch_execute("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
    let end = old.pg.observe(LONG).await.unwrap().position.end;
    second.until("as far", |o| o.position.end >= end).await;
    assert_eq!(promote(&second, 3, 2).await, 2, "nobody told it that 2 is taken");

    first.crash();
    let history = second.history(2).await;
    assert!(first.pg.needs_rewind(2, &history).await.unwrap());
    // pg_rewind would say that there is nothing to do: it compares the numbers.
    let refused = first.pg.rewind(&second.source(), 2, &history).await;
    assert!(matches!(refused, Err(RebuildError::CannotRewind(_))), "{refused:?}");
    first.pg.clone_from(&second.source(), &|_| ()).await.unwrap();
    first.start(&StartAs::Standby { upstream: Some(second.upstream_of("b")) }).await;
    second.streams_to("b").await;
    first.until("at epoch 3", |o| o.position.epoch == epoch(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_passes_over_numbers_that_others_may_have_taken() {
    let rig = Rig::new();
    let mut old = rig.primary("a").await;
    let (new, mut third) = tokio::join!(rig.standby("b", &old), rig.standby("c", &old));
    // First, so that it holds nothing that the new primary lacks.
    third.pg.detach(&third.handle(), LONG).await.unwrap();
    assert_eq!(promote(&new, 2, 5).await, 5);
    third.pg.follow(&new.upstream_of("c"), &third.handle()).await.unwrap();
    third.until("on timeline 5", |o| o.position.timeline == 5).await;
    // Files that keep numbers came with the stream; a standby that starts must not follow them.
    let kept = third.pg.read_history().await.unwrap();
    assert_eq!(kept.iter().map(|file| file.timeline).collect::<Vec<_>>(), [2, 3, 4, 5]);
    third.crash();
    third.start(&StartAs::Standby { upstream: Some(new.upstream_of("c")) }).await;
    new.streams_to("c").await;
    let app = old.app(&rig).await;
    app.batch_execute("INSERT INTO t VALUES (-1)").await.unwrap();
    old.crash();
    let history = new.history(5).await;
    assert!(old.pg.needs_rewind(5, &history).await.unwrap());
    let (_, lost) = old.pg.rewind(&new.source(), 5, &history).await.unwrap();
    assert_eq!(lost.count, 1, "{lost:?}");
    old.start(&StartAs::Standby { upstream: Some(new.upstream_of("a")) }).await;
    new.streams_to("a").await;
    old.until("at epoch 2", |o| o.position.epoch == epoch(2)).await;
}
