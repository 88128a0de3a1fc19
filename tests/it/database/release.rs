//! Regent lets go of a service: its instances go on as ordinary PostgreSQL, with one primary.

use std::process::Command;
use std::time::Duration;

use regent_core::spec::Mode;
use regent_lab::databases::{Front, Ground, SERVICE, Wanted, signal_agent};
use regent_lab::process::Fault;

use super::adopt::Plain;
use super::load::Load;
use super::rig::{Rig, TTL};
use crate::cluster::{REGENT, until};

/// `regent agent release` of one instance: what it said, and whether it did it.
fn release(rig: &Rig, at: usize, words: &[&str]) -> (serde_json::Value, bool) {
    let out = Command::new(REGENT)
        .args(["-o", "json", "agent", "release", "--config"])
        .arg(rig.instances()[at].config())
        .args(words)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let value = serde_json::from_str(&said)
        .unwrap_or_else(|_| panic!("{said}: {}", String::from_utf8_lossy(&out.stderr)));
    (value, out.status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_service_goes_on_as_ordinary_servers_with_one_primary_and_every_row() {
    let rig = Rig::up("release", Mode::Quorum).await;
    let wanted = Wanted {
        instances: 3,
        mode: Mode::Quorum,
        ttl: TTL,
        haproxy: Front::Off,
        envoy: None,
        keep: false,
    };
    let ground = Ground::survey(&wanted).unwrap();
    let primary = rig.redundant().await;
    let load = Load::start(&rig).await;

    let says = |at: usize, words: &[&str], what: &str| {
        let (said, done) = release(&rig, at, words);
        assert!(!done && said["obstacles"].to_string().contains(what), "{what}: {said}");
    };
    says(primary, &["--yes"], "its agent runs");
    says(primary, &["--yes"], "is not paused");
    load.progress(100).await;

    let verb = |args: &[&str]| rig.cluster.verb(args);
    assert!(verb(&["pause", SERVICE, "--reason", "it is released"]).status.success());
    // The standbys first: the primary hands them all of its WAL when it stops.
    let order: Vec<_> = (0..3).filter(|at| *at != primary).chain([primary]).collect();
    for at in &order {
        assert!(signal_agent(&rig.instances()[*at], Fault::Kill).unwrap());
    }
    for at in order.iter().rev() {
        let (said, done) = release(&rig, *at, &["--yes"]);
        assert!(done && said["stopped"] == true && said["released"] == false, "{said}");
        assert_eq!(said["standby"] == false, *at == primary, "{said}");
        assert!(rig.postgres(*at).is_empty());
    }

    let mut plain: Vec<_> =
        rig.instances().iter().map(|instance| Plain::new(&ground, instance)).collect();
    let data = plain[primary].data.to_str().unwrap().to_owned();
    assert!(!plain[primary].run("postgres", &["-D", &data]).status.success(), "still closed");

    until("the end of the lease, and the service deleted", async || {
        verb(&["services", "delete", SERVICE, "--yes"]).status.success()
    })
    .await;
    for at in &order {
        let (said, done) = release(&rig, *at, &["--yes"]);
        assert!(done && said["released"] == true, "{said}");
        plain[*at].start();
    }
    load.progress(100).await;
    let session = rig.access.writable_host(primary, Duration::from_secs(5)).await.unwrap();
    until("both standbys", async || {
        let sql = "SELECT count(*) FROM pg_stat_replication";
        let row = session.client().query_one(sql, &[]).await.unwrap();
        row.get::<_, i64>(0) == 2
    })
    .await;

    // Regent keeps its hands off what is not its any more.
    let agent = Command::new(REGENT)
        .args(["agent", "--config", rig.instances()[primary].config().to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&agent.stderr);
    assert!(!agent.status.success() && said.contains("did not start runs here"), "{said}");
    load.progress(100).await;
    load.all_kept(&rig).await;
    plain.clear();
}
