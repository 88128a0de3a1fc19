//! Commits whose wait is cut short, or does not end (RELIABILITY.md 6.3, holes 1, 3 and 4): a client that
//! reads its warnings is promised nothing, and what is seen of such rows later is kept from then on.

use std::time::{Duration, Instant};

use regent_core::spec::Mode;
use regent_lab::databases::SERVICE;
use regent_lab::process::{Fault, Process};
use regent_lab::writer::access::{AccessError, Session};
use tokio::task::JoinHandle;

use super::load::Load;
use super::rig::Rig;
use crate::cluster::{PATIENCE, until};

/// Standbys that live, whose agents report, and that receive nothing.
struct Deaf(Vec<Process>);

impl Deaf {
    async fn make(rig: &Rig, primary: usize) -> Self {
        let receives = |process: &Process| {
            let title = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
            String::from_utf8_lossy(&title).contains("walreceiver")
        };
        let standbys = (0..rig.instances().len()).filter(|at| *at != primary);
        let all = standbys.flat_map(|at| rig.postgres(at).into_iter().filter(receives));
        let deaf = Self(all.collect());
        assert_eq!(deaf.0.len(), 2, "both stream");
        deaf.0.iter().for_each(|one| assert!(one.signal(Fault::Freeze).unwrap()));
        // What was sent may lie in a socket; what is written once nobody is sent to lies nowhere else.
        until("the end of the streams", async || {
            rig.access.replication(primary, PATIENCE).await.is_ok_and(|(count, _)| count == 0)
        })
        .await;
        deaf
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        for one in &self.0 {
            let _ = one.signal(Fault::Thaw);
        }
    }
}

fn say(rig: &Rig, verb: &str) {
    let out = rig.cluster.verb(&[verb, SERVICE, "--reason", "a test"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// An insert that waits, in a session that nothing is said to but `before`.
struct Waits {
    ended: JoinHandle<(Result<(), AccessError>, u64)>,
    insert: String,
}

impl Waits {
    async fn begin(rig: &Rig, load: &Load, at: usize, before: &str, id: i64) -> Self {
        let session = rig.access.writable_host(at, PATIENCE).await.unwrap();
        session.batch(before, PATIENCE).await.unwrap();
        let insert = format!("INSERT INTO {} (id) VALUES ({id})", load.table.name());
        let sql = insert.clone();
        let ended = tokio::spawn(async move {
            let said = session.batch(&sql, 2 * PATIENCE).await;
            (said, session.warnings())
        });
        let waits = Self { ended, insert };
        let watcher = rig.access.host(at, PATIENCE).await.unwrap();
        until("the commit to wait", async || waits.pid(&watcher).await.is_some()).await;
        waits
    }

    /// Which process waits in it.
    async fn pid(&self, watcher: &Session) -> Option<i32> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = $1";
        let row = watcher.client().query_opt(sql, &[&self.insert]).await.unwrap();
        row.map(|row| row.get(0))
    }
}

/// Which of these rows a host shows.
async fn shown(rig: &Rig, load: &Load, at: usize, ids: &[i64]) -> Vec<i64> {
    let session = rig.access.host(at, PATIENCE).await.unwrap();
    let sql = format!("SELECT id FROM {} WHERE id = ANY($1) ORDER BY id", load.table.name());
    let rows = session.client().query(&sql, &[&ids]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Begins one with a short `statement_timeout` (`waits`) and one that is cancelled (`cancelled`).
async fn cut_short(rig: &Rig, load: &Load, at: usize, waits: i64, cancelled: i64) -> Waits {
    let patient = Waits::begin(rig, load, at, "SET statement_timeout = '300ms'", waits).await;

    // Hole 1: the commit stands on this host alone, and its client is told so.
    let cut = Waits::begin(rig, load, at, "SELECT 1", cancelled).await;
    let watcher = rig.access.host(at, PATIENCE).await.unwrap();
    let pid = cut.pid(&watcher).await.expect("it waits");
    let cancel = format!("SELECT pg_cancel_backend({pid})");
    watcher.batch(&cancel, PATIENCE).await.unwrap();
    let (said, warnings) = cut.ended.await.unwrap();
    assert!(said.is_ok() && warnings == 1, "{said:?}, {warnings} warnings");

    // Hole 4: the time that is tried is several times the timeout.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(!patient.ended.is_finished(), "a timeout ended the wait");
    assert_eq!(shown(rig, load, at, &[waits, cancelled]).await, [cancelled]);
    patient
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_cancelled_or_never_returned_is_kept_once_it_was_seen_and_else_promised_to_nobody()
 {
    let mut rig = Rig::up("holes", Mode::Quorum).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;

    // It crashes with them, and can only be started again in place (hole 3).
    say(&rig, "pause");
    let deaf = Deaf::make(&rig, old).await;
    let patient = cut_short(&rig, &load, old, -2, -1).await;
    rig.kill_postmaster(old).await;
    assert!(patient.ended.await.unwrap().0.is_err(), "nobody was told anything");
    until("it to run again", async || {
        rig.log(old).matches("step=StartPrimary").count() == 2 && !rig.postgres(old).is_empty()
    })
    .await;
    // The rows are in its WAL, and visible to whoever gets in: nobody does while no standby has them.
    let closed = Instant::now() + Duration::from_secs(2);
    while Instant::now() < closed {
        let said = rig.access.host(old, Duration::from_secs(1)).await;
        assert!(said.is_err(), "somebody got in before a standby has what is there");
    }
    drop(deaf);
    load.resumed(closed, None).await;
    assert_eq!(shown(&rig, &load, old, &[-2, -1]).await, [-2, -1]);
    say(&rig, "resume");
    assert_eq!(rig.redundant().await, old);
    load.progress(100).await;

    // The same again, and this time its host is gone and another one takes over.
    let deaf = Deaf::make(&rig, old).await;
    let patient = cut_short(&rig, &load, old, -12, -11).await;
    let fault = Instant::now();
    rig.kill_host(old);
    drop(deaf);
    assert!(patient.ended.await.unwrap().0.is_err(), "nobody was told anything");
    let first = load.resumed(fault, Some(old)).await;
    let rows = shown(&rig, &load, first.host, &[-12, -11, -2, -1]).await;
    assert_eq!(rows, [-2, -1], "what was seen is kept, what only the old one had is nobody's");
    assert_eq!(rig.heal().await, first.host);
    assert!(rig.seen(old).await.is_standby() && rig.log(old).contains("rewound"));
    load.all_kept(&rig).await;
}
