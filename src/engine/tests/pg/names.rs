//! Whose acknowledgements a commit waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use regent_engine::{CommitError, Engine, SyncNames};

use crate::rig::{LONG, Rig, any, epoch};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sets_change_under_load_and_each_is_confirmed() {
    let rig = Rig::new();
    let primary = rig.primary("a").await;
    let (_b, _c) = tokio::join!(rig.standby("b", &primary), rig.standby("c", &primary));
    let stop = Arc::new(AtomicBool::new(false));
    let client = primary.app(&rig).await;
    let writer = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            let (mut worst, mut count) = (Duration::ZERO, 0);
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
                worst = worst.max(began.elapsed());
                count += 1;
            }
            (worst, count)
        }
    });
    let sets = [
        any(1, &["b", "c"]),
        any(2, &["b", "c"]),
        any(1, &["c"]),
        any(1, &["b"]),
        SyncNames::Unprotected,
        any(1, &["b", "c"]),
    ];
    let mut took = Vec::new();
    for set in &sets {
        let done = primary.pg.set_sync_names(set, &primary.handle(), LONG).await;
        let Ok(done) = done else {
            let seen = primary.pg.observe(LONG).await;
            panic!("{set:?}: {done:?} {seen:#?}\n{}", primary.log());
        };
        took.push(done);
    }
    stop.store(true, Ordering::Relaxed);
    let (worst, count) = writer.await.unwrap();
    println!("changes of the set took {took:?}; longest of {count} commits meanwhile {worst:?}");
    let seen = primary.pg.observe(LONG).await.unwrap();
    assert_eq!(seen.sync_names, "ANY 1 (\"b\",\"c\")");
    assert!(seen.senders.iter().all(|s| s.sync_state == "quorum"), "{:?}", seen.senders);
    assert!(primary.pg.set_sync_names(&any(2, &["b"]), &primary.handle(), LONG).await.is_err());

    // A set whose member is not there is never confirmed, and nothing is acknowledged under it.
    let within = Duration::from_millis(700);
    let absent = primary.pg.set_sync_names(&any(1, &["z"]), &primary.handle(), within).await;
    assert!(absent.is_err());
    let canary = primary.pg.canary(Duration::from_millis(200)).await;
    assert!(canary.is_err(), "{canary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_wait_is_no_acknowledgement_and_a_lowered_promise_is_seen() {
    let rig = Rig::new();
    let primary = rig.primary("a").await;
    primary.pg.set_sync_names(&SyncNames::Blocked, &primary.handle(), LONG).await.unwrap();
    let agent = primary.agent(&rig).await;
    let cancel = async {
        let sql = "SELECT coalesce(bool_or(pg_cancel_backend(pid)), false) FROM pg_stat_activity
            WHERE wait_event = 'SyncRep' AND query LIKE '%id = 1%' AND pid <> pg_backend_pid()";
        while !agent.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {}
    };
    let (canary, ()) = tokio::join!(primary.pg.canary(LONG), cancel);
    assert!(
        matches!(&canary, Err(CommitError::Warned { code, .. }) if code == "01000"),
        "{canary:?}"
    );

    agent.batch_execute("SET synchronous_commit = local").await.unwrap();
    agent.batch_execute("ALTER ROLE regent_agent SET synchronous_commit = off").await.unwrap();
    let seen = primary.pg.observe(LONG).await.unwrap();
    let found = seen.overrides.iter().map(|o| (o.role.as_str(), o.value.as_str()));
    assert_eq!(found.collect::<Vec<_>>(), [("regent_agent", "off")]);
    // The canary asks for the promise itself.
    let canary = primary.pg.canary(Duration::from_millis(200)).await;
    assert!(matches!(canary, Err(CommitError::TimedOut)), "{canary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_epoch_is_written_before_the_server_has_read_the_names_on_disk() {
    let rig = Rig::new();
    let primary = rig.primary("a").await;
    // Names that nobody satisfies, on disk only: the server still waits for nobody.
    primary.pg.erase_upstream().await.unwrap();
    let early = primary.pg.write_epoch(epoch(2), Duration::from_millis(300)).await;
    assert!(matches!(early, Err(CommitError::Sql(_))), "{early:?}");
    assert_eq!(primary.pg.observe(LONG).await.unwrap().position.epoch, epoch(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_lowers_for_itself_is_seen_from_outside_for_as_long_as_it_lasts() {
    let rig = Rig::new();
    let primary = rig.primary("a").await;
    let app = primary.app(&rig).await;
    let values = async |pid| {
        let seen = primary.pg.lowered(pid, LONG).await.unwrap();
        assert_eq!(seen.unseen.is_some(), pid.is_none(), "{:?}", seen.unseen);
        let roles =
            seen.sessions.iter().all(|one| (one.role.as_str(), one.by_signal) == ("app", false));
        assert!(roles, "{seen:?}");
        seen.sessions.into_iter().map(|one| one.value).collect::<Vec<_>>()
    };
    let pid = Some(primary.pid());
    assert!(values(pid).await.is_empty());
    for (lower, value) in [
        ("SET synchronous_commit = off", "off"),
        ("SELECT set_config('synchronous_commit', 'local', false)", "local"),
        ("SET synchronous_commit TO remote_write", "remote_write"),
        ("SET synchronous_commit = on; BEGIN; SET LOCAL synchronous_commit = off", "off"),
    ] {
        app.batch_execute(lower).await.unwrap();
        // Its last text says nothing of it.
        app.batch_execute("SELECT 1").await.unwrap();
        assert_eq!(values(pid).await, [value], "{lower}");
    }
    app.batch_execute("COMMIT; SET synchronous_commit = remote_apply").await.unwrap();
    assert!(values(pid).await.is_empty(), "more than on is no less");
    // What was over before anybody looked: the text is all that is left, for a while.
    app.batch_execute(
        "BEGIN; SET LOCAL synchronous_commit TO off; INSERT INTO t VALUES (1); COMMIT",
    )
    .await
    .unwrap();
    assert_eq!(values(pid).await, ["lower, as its statement says"]);
    assert_eq!(values(None).await, ["lower, as its statement says"]);
    let declare = "ALTER ROLE app SET synchronous_commit = off";
    app.batch_execute(declare).await.unwrap();
    assert!(values(pid).await.is_empty(), "that is another fact, and not of this session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_shut_out_is_ended_and_refused_until_let_in_again() {
    let rig = Rig::new();
    let primary = rig.primary("a").await;
    let handle = primary.handle();
    let (lowered, other) = (primary.app(&rig).await, primary.app(&rig).await);
    lowered.batch_execute("SET synchronous_commit = off").await.unwrap();
    let seen = primary.pg.lowered(Some(primary.pid()), LONG).await.unwrap();
    primary.pg.shut_out(&[], &seen.sessions, &handle, LONG).await.unwrap();
    until_closed(&lowered).await;
    other.batch_execute("SELECT 1").await.unwrap();

    let role = |role: &str| regent_engine::Override {
        role: role.to_owned(),
        database: String::new(),
        value: "off".to_owned(),
    };
    primary.pg.shut_out(&[role("app")], &[], &handle, LONG).await.unwrap();
    until_closed(&other).await;
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(primary.options.port).user("app").dbname("app");
    config.password(rig.password.reveal());
    let refused = async || config.connect(tokio_postgres::NoTls).await.is_err();
    wait_until(async || refused().await).await;
    primary.pg.shut_out(&[], &[], &handle, LONG).await.unwrap();
    wait_until(async || !refused().await).await;
}

async fn until_closed(client: &tokio_postgres::Client) {
    wait_until(async || client.batch_execute("SELECT 1").await.is_err()).await;
}

async fn wait_until(mut holds: impl AsyncFnMut() -> bool) {
    let began = std::time::Instant::now();
    while !holds().await {
        assert!(began.elapsed() < LONG);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
