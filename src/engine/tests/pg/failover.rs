//! Role changes from end to end.

use std::time::{Duration, Instant};

use regent_core::role::Lsn;
use regent_engine::{CommitError, Discovery, Engine, StartAs, SyncNames};

use crate::rig::{LONG, Rig, any, epoch};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_keeps_what_was_acknowledged_and_lists_what_was_not() {
    let rig = Rig::new();
    let mut old = rig.primary("a").await;
    let (new, third) = tokio::join!(rig.standby("b", &old), rig.standby("c", &old));
    old.pg.ensure_slots(&["b".to_owned(), "c".to_owned()], LONG).await.unwrap();
    let took = old.pg.set_sync_names(&any(1, &["b", "c"]), &old.handle(), LONG).await.unwrap();
    println!("set of names confirmed in {took:?}");
    println!("canary in {:?}", old.pg.canary(LONG).await.unwrap());
    println!("probe in {:?}", old.pg.probe(LONG).await.unwrap());
    let began = Instant::now();
    old.pg.observe(LONG).await.unwrap();
    println!("observed in {:?}", began.elapsed());
    let app = old.app(&rig).await;
    app.batch_execute("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
    let acknowledged = old.pg.observe(LONG).await.unwrap().position;
    assert_eq!(acknowledged.epoch, epoch(1));

    // The old primary is not asked: its standbys are taken from it. An agent has a session open.
    tokio::try_join!(new.pg.observe(LONG), third.pg.observe(LONG)).unwrap();
    let (new_handle, third_handle) = (new.handle(), third.handle());
    let began = Instant::now();
    let detached =
        tokio::join!(new.pg.detach(&new_handle, LONG), third.pg.detach(&third_handle, LONG));
    println!("detached in {:?} and {:?}", detached.0.unwrap(), detached.1.unwrap());
    let ends =
        tokio::join!(new.pg.recruit(&new_handle, LONG), third.pg.recruit(&third_handle, LONG));
    let (end, other) = (ends.0.unwrap(), ends.1.unwrap());
    println!("recruited {:?} after the start", began.elapsed());
    assert!(end.covers(&acknowledged) || other.covers(&acknowledged), "{end} {other}");
    let canary = old.pg.canary(Duration::from_millis(300)).await;
    assert!(matches!(canary, Err(CommitError::TimedOut)), "{canary:?}");
    let again = old.pg.canary(Duration::from_millis(100)).await;
    assert!(matches!(again, Err(CommitError::StillWaiting)), "{again:?}");
    app.batch_execute("SET synchronous_commit = local; INSERT INTO t VALUES (-1)").await.unwrap();
    app.batch_execute("INSERT INTO t VALUES (-2)").await.unwrap();

    new.pg.close_clients(&new_handle, LONG).await.unwrap();
    new.pg.set_sync_names(&any(1, &["c"]), &new_handle, LONG).await.unwrap();
    let began = Instant::now();
    let switch = new.pg.promote(2, LONG).await.unwrap();
    println!("promoted in {:?}", began.elapsed());
    assert_eq!((switch.timeline, switch.at), (2, end.end));
    third.pg.follow(&new.upstream_of("c"), &third_handle).await.unwrap();
    let took = new.pg.write_epoch(epoch(2), LONG).await.unwrap();
    println!("epoch acknowledged in {took:?}, {:?} after the promotion began", began.elapsed());
    new.pg.canary(LONG).await.unwrap();
    new.pg.open_clients(&[], &new_handle, LONG).await.unwrap();
    let seen = new.pg.observe(LONG).await.unwrap();
    assert_eq!((seen.position.timeline, seen.position.epoch), (2, epoch(2)));
    let rows = new.app(&rig).await.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
    assert_eq!(rows.get::<_, i64>(0), 1000);
    third.until("on timeline 2", |o| o.position.timeline == 2).await;

    old.crash();
    let history = new.history(2).await;
    assert!(old.pg.needs_rewind(2, &history).await.unwrap());
    let before = old.pg.check().await.unwrap();
    let Discovery::Cluster(before) = before else { panic!("{before:?}") };
    let began = Instant::now();
    let (generation, lost) = old.pg.rewind(&new.source(), 2, &history).await.unwrap();
    println!("rewound in {:?}: {} lost", began.elapsed(), lost.count);
    assert_ne!(Some(generation), before.generation);
    // Two rows and the canary.
    assert_eq!((lost.count, lost.listed.len(), lost.from), (3, 3, switch.at), "{lost:?}");
    assert!(lost.listed.iter().all(|l| l.time.contains("UTC")), "{lost:?}");
    assert!(!lost.cut_short);
    assert!(lost.kept_in.unwrap().read_dir().unwrap().count() > 0);
    old.start(&StartAs::Standby { upstream: Some(new.upstream_of("a")) }).await;
    new.streams_to("a").await;
    new.pg.set_sync_names(&any(2, &["a", "c"]), &new_handle, LONG).await.unwrap();
    let seen = old.until("at epoch 2", |o| o.position.epoch == epoch(2)).await;
    assert!(seen.in_recovery && seen.position.timeline == 2);
}

/// Segments of this timeline that were made for later, as a server does when one is three quarters full:
/// so many that a listing most likely begins with one that has nothing in it.
fn prepare_segments(data: &std::path::Path, timeline: u32) {
    for number in 0..40 {
        let name = format!("{timeline:08X}000000000000{:04X}", 0x80 + number);
        let file = std::fs::File::create(data.join("pg_wal").join(name)).unwrap();
        file.set_len(16 << 20).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_stop_names_its_end_and_a_standby_that_holds_it_takes_over() {
    let rig = Rig::new();
    let mut old = rig.primary("a").await;
    let mut new = rig.standby("b", &old).await;
    let app = old.app(&rig).await;
    app.batch_execute("INSERT INTO t SELECT generate_series(1, 100)").await.unwrap();
    old.pg.checkpoint(LONG).await.unwrap();
    assert_eq!(old.pg.observe(LONG).await.unwrap().client_count, 1);
    old.stop();
    prepare_segments(&old.options.data_dir, 1);
    let began = Instant::now();
    let stop = old.pg.clean_stop().await.unwrap().unwrap();
    println!("end of the shutdown record {} found in {:?}", stop.end, began.elapsed());
    assert_eq!(old.pg.wal_end().await.unwrap(), stop);
    new.until("holding the end", |o| o.position.end >= stop.end).await;
    new.pg.detach(&new.handle(), LONG).await.unwrap();
    let end = new.pg.recruit(&new.handle(), LONG).await.unwrap();
    assert_eq!(end.end, stop.end);

    // A standby that was restarted knows no received end, and still says how far it reaches.
    new.stop();
    assert_eq!(new.pg.clean_stop().await.unwrap(), None);
    new.start(&StartAs::Standby { upstream: None }).await;
    assert_eq!(new.pg.recruit(&new.handle(), LONG).await.unwrap(), end);
    new.pg.set_sync_names(&SyncNames::Unprotected, &new.handle(), LONG).await.unwrap();
    let switch = new.pg.promote(2, LONG).await.unwrap();
    new.pg.write_epoch(epoch(2), LONG).await.unwrap();
    assert_eq!(switch.at, stop.end);

    // The old one has nothing of its own: it follows as it is.
    let history = new.history(2).await;
    assert!(!old.pg.needs_rewind(2, &history).await.unwrap());
    old.start(&StartAs::Standby { upstream: Some(new.upstream_of("a")) }).await;
    new.streams_to("a").await;
    old.until("at epoch 2", |o| o.position.epoch == epoch(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_on_the_standby_does_not_hold_a_role_change_up() {
    let rig = Rig::new();
    let old = rig.primary("a").await;
    let new = rig.standby("b", &old).await;
    new.pg.open_clients(&[], &new.handle(), LONG).await.unwrap();
    let app = old.app(&rig).await;
    app.batch_execute("INSERT INTO t SELECT generate_series(1, 100)").await.unwrap();
    let at = old.pg.observe(LONG).await.unwrap().position.end;
    new.until("replayed", |o| o.replayed >= at).await;
    let reader = new.app(&rig).await;
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    reader.query("SELECT count(*) FROM t", &[]).await.unwrap();
    // Replay of this waits for the reader, by default for 30 s.
    app.batch_execute("DROP TABLE t").await.unwrap();
    let at = old.pg.observe(LONG).await.unwrap().position.end;
    let seen = new.until("received", |o| o.position.end >= at).await;
    assert!(seen.replayed < at && seen.replay_lag_bytes() > 0);
    let began = Instant::now();
    new.pg.detach(&new.handle(), LONG).await.unwrap();
    let end = new.pg.recruit(&new.handle(), LONG).await.unwrap();
    println!("recruited past a query in {:?}", began.elapsed());
    assert!(end.end >= at && began.elapsed() < Duration::from_secs(5));
    assert!(end.end > Lsn(0));
}
