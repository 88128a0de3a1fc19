//! Envoy in front of the databases, as `routes export` has it started: it gets everything from the
//! nodes, over xDS.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use regent_core::spec::Mode;
use regent_lab::databases::SERVICE;
use regent_lab::ports;
use regent_lab::process::Fault;
use regent_lab::writer::{Access, Pace};

use super::load::Load;
use super::rig::{Rig, TTL, turn};
use crate::cluster::{REGENT, Scratch, until};

/// Where `scripts/setup` puts it.
pub fn program() -> PathBuf {
    let lib = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/venv/lib");
    let places = std::fs::read_dir(lib).expect("scripts/setup was run");
    let envoy = |dir: std::fs::DirEntry| dir.path().join("site-packages/envoy/_bin/envoy");
    let found = places.flatten().map(envoy).find(|path| path.is_file());
    found.expect("scripts/setup installs Envoy")
}

/// An Envoy with a certificate of a router.
struct Envoy {
    child: Child,
    write: u16,
    read: u16,
}

impl Envoy {
    fn start(rig: &Rig) -> Self {
        let [write, read] = ports::free(2).unwrap()[..] else { panic!("two ports") };
        let (write_at, read_at) = (format!("127.0.0.1:{write}"), format!("127.0.0.1:{read}"));
        let mut args = vec!["routes", "export", SERVICE, "--format", "envoy", "--id", "envoy-1"];
        args.extend(["--write", &write_at, "--read", &read_at]);
        let out = rig.cluster.verb_as("router", &args);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let config = rig.cluster.scratch.path().join("envoy.json");
        std::fs::write(&config, out.stdout).unwrap();
        let log = std::fs::File::create(rig.cluster.scratch.path().join("envoy.log")).unwrap();
        let child = Command::new(program())
            .arg("-c")
            .arg(config)
            .args(["--concurrency", "1", "-l", "warning", "--disable-hot-restart"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, write, read }
    }

    fn access(&self, rig: &Rig) -> Access {
        Access { via: Some(("127.0.0.1".into(), self.write)), ..rig.access.clone() }
    }

    /// Whether a session through the read port is one of a standby.
    fn reads_of_a_standby(&self, rig: &Rig) -> bool {
        is_of_a_standby(rig, self.read)
    }
}

/// Whether a session through this port is one of a standby.
fn is_of_a_standby(rig: &Rig, port: u16) -> bool {
    let Access { user, password, dbname, .. } = &rig.access;
    let whole =
        format!("host=127.0.0.1 port={port} user={user} password={password} dbname={dbname}");
    let ask = ["-XAtc", "SELECT pg_is_in_recovery()"];
    let psql = Command::new("psql").args(ask).arg(whole).output().unwrap();
    String::from_utf8_lossy(&psql.stdout).trim() == "t"
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `regent routes` says of it.
fn router(rig: &Rig) -> Option<serde_json::Value> {
    let out = rig.cluster.verb(&["routes", SERVICE, "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_slice(&out.stdout).ok()?;
    let current = shown["routes"]["epoch"]["text"].clone();
    let routers = shown["routers"].as_array()?;
    let it = routers.iter().find(|one| one["name"] == "envoy-1")?;
    assert_eq!(it["refused"], serde_json::Value::Null, "{shown:#}");
    (it["epoch"]["text"] == current).then(|| it.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_follows_a_switchover_and_a_failover_and_cuts_old_sessions() {
    let mut rig = Rig::up("envoy", Mode::Quorum).await;
    let first = rig.redundant().await;
    let envoy = Envoy::start(&rig);
    rig.access = envoy.access(&rig);
    let ready = rig.access.writable_within(Pace::STEADY, 0, Duration::from_secs(20)).await;
    assert_eq!(ready.unwrap().1, first);
    let load = Load::start(&rig).await;
    until("it acknowledges the epoch", async || router(&rig).is_some()).await;
    until("reads reach a standby", async || envoy.reads_of_a_standby(&rig)).await;

    let (idle, at) = rig.access.writable(Pace::STEADY, 0).await.unwrap();
    assert_eq!(at, first);
    let second = (first + 1) % 3;
    let name = rig.name(second).to_string();
    let asked = Instant::now();
    let out = rig.cluster.verb(&["switchover", SERVICE, "--to", &name, "--reason", "a test"]);
    assert!(out.status.success());
    assert_eq!(load.resumed(asked, Some(first)).await.host, second);
    until("the end of the old session", async || idle.client().is_closed()).await;
    until("it acknowledges the next epoch", async || {
        rig.role().await.holder == name && router(&rig).is_some()
    })
    .await;
    assert_eq!(rig.redundant().await, second);
    until("reads reach a standby", async || envoy.reads_of_a_standby(&rig)).await;

    // A frozen host ends no session by itself: that is Envoy's part, and its agent says nothing.
    let (idle, at) = rig.access.writable(Pace::STEADY, 0).await.unwrap();
    assert_eq!(at, second);
    let fault = Instant::now();
    regent_lab::databases::signal_host(&rig.cluster.lab, &rig.instances()[second], Fault::Freeze)
        .unwrap();
    let third = load.resumed(fault, Some(second)).await.host;
    until("the end of the old session", async || idle.client().is_closed()).await;
    assert_eq!(rig.heal().await, third);

    // With the coordinators gone it goes on with what it knows, and the primary holds.
    for node in &rig.cluster.lab.nodes {
        node.process.as_ref().unwrap().signal(Fault::Kill).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    load.progress(100).await;
    let (_, at) = rig.access.writable(Pace::STEADY, 0).await.unwrap();
    assert_eq!(at, third);
    assert!(envoy.reads_of_a_standby(&rig));
    assert_eq!(rig.heal().await, third);
    until("it is back at a node", async || router(&rig).is_some()).await;
    load.progress(100).await;
    load.all_kept(&rig).await;
}

/// In lease mode nobody takes writes beyond the lease; whoever reads goes on, through either proxy.
#[tokio::test(flavor = "multi_thread")]
async fn with_all_coordinators_gone_in_lease_mode_writes_stop_and_reads_go_on() {
    let mut rig = Rig::up_behind_haproxy("gone", Mode::Lease).await;
    let first = rig.redundant().await;
    let envoy = Envoy::start(&rig);
    rig.access = envoy.access(&rig);
    let databases = rig.cluster.lab.databases.clone().unwrap();
    let through_haproxy = databases.through_haproxy().unwrap();
    let port = databases.haproxy.unwrap().read.port;
    let reads = || envoy.reads_of_a_standby(&rig) && is_of_a_standby(&rig, port);
    for access in [&rig.access, &through_haproxy] {
        let ready = access.writable_within(Pace::STEADY, 0, Duration::from_secs(20)).await;
        assert_eq!(ready.unwrap().1, first);
    }
    until("reads reach a standby", async || reads()).await;
    until("it acknowledges the epoch", async || router(&rig).is_some()).await;
    let load = Load::start(&rig).await;
    load.progress(100).await;
    let postmaster = rig.postmaster(first).await;
    for node in &rig.cluster.lab.nodes {
        node.process.as_ref().unwrap().signal(Fault::Kill).unwrap();
    }
    assert!(postmaster.wait_gone(2 * TTL).await, "PostgreSQL outlives its lease");
    // Longer than a standby is patient where somebody could tell it whom to follow.
    let (since, mut read) = (Instant::now(), Instant::now());
    while since.elapsed() < Duration::from_secs(6) {
        for access in [&rig.access, &through_haproxy] {
            assert!(access.writable(Pace::STEADY, 0).await.is_err(), "somebody takes writes");
        }
        // A check may come late on a busy machine: that is over with the next one.
        if reads() {
            read = Instant::now();
        }
        assert!(read.elapsed() < Duration::from_secs(2), "after {:?}", since.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    rig.heal().await;
    load.progress(100).await;
    load.all_kept(&rig).await;
}

/// Envoy has itself ended with whoever started it, unless told otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn the_envoy_of_a_lab_outlives_the_verb_that_made_it() {
    let _turn = turn().await;
    let scratch = Scratch::new("lab-envoy");
    let dir = scratch.path().join("lab");
    let lab = |args: &[&str]| {
        let verb = Command::new(REGENT).arg("lab").args(args).arg("--dir").arg(&dir).output();
        let verb = verb.unwrap();
        assert!(verb.status.success(), "{args:?}: {}", String::from_utf8_lossy(&verb.stderr));
    };
    lab(&["up", "--haproxy", "off", "--envoy", program().to_str().unwrap()]);
    let made = regent_lab::Lab::open(&dir).unwrap();
    let access = made.databases.unwrap().through_envoy().unwrap();
    let reached = access.writable_within(Pace::STEADY, 0, Duration::from_secs(10)).await;
    lab(&["down"]);
    assert!(reached.is_ok(), "{:?}", reached.err());
}
