//! A person starts the old primary's data directory by hand: it must not take a write.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use regent_core::spec::Mode;
use regent_lab::process::Fault;
use regent_lab::writer::Pace;

use super::load::Load;
use super::rig::{Rig, bound};
use crate::cluster::until;

/// Started with `pg_ctl`, as whoever owns the directory; killed when dropped.
struct ByHand<'r> {
    rig: &'r Rig,
    at: usize,
    /// Its log, and how long that was before.
    log: (PathBuf, u64),
}

impl<'r> ByHand<'r> {
    fn start(rig: &'r Rig, at: usize, options: &str) -> Self {
        let data = rig.instances()[at].data_dir();
        let log = rig.instances()[at].dir.join("by-hand.log");
        let by_hand = Self { rig, at, log: (log.clone(), written(&log)) };
        let mut words = vec!["start", "-W", "-D", data.to_str().unwrap()];
        words.extend(["-l", log.to_str().unwrap(), "-o", options]);
        let out = pg_ctl(rig, &words, &rig.instances()[at].dir);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        by_hand
    }
}

/// How much is in a file; nothing if there is none.
fn written(log: &Path) -> u64 {
    std::fs::metadata(log).map_or(0, |file| file.len())
}

impl ByHand<'_> {
    /// Whether it came up, be it only to say why it does not stay: one without any address ends at once.
    fn has_tried(&self) -> bool {
        !self.rig.postgres(self.at).is_empty() || written(&self.log.0) > self.log.1
    }
}

impl Drop for ByHand<'_> {
    fn drop(&mut self) {
        for process in self.rig.postgres(self.at) {
            let _ = process.signal(Fault::Kill);
        }
    }
}

fn pg_ctl(rig: &Rig, words: &[&str], home: &Path) -> Output {
    let databases = rig.cluster.lab.databases.as_ref().unwrap();
    let program = databases.bin_dir.join("pg_ctl");
    let mut command = match &databases.run_as {
        Some(owner) => {
            let mut command = Command::new("runuser");
            command.args(["-u", owner, "--"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.args(words).current_dir(home).output().unwrap()
}

async fn started_by_hand(what: &str, mode: Mode) {
    let mut rig = Rig::up(what, mode).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let fault = Instant::now();
    rig.kill_host(old);
    rig.host_gone(old).await;
    let new = load.resumed(fault, Some(old)).await.host;

    let port = rig.instances()[old].port;
    let host = rig.instances()[old].host.clone();
    // As it lies on disk; and by somebody who wants it to be reached.
    for options in [String::new(), format!("-h {host} -p {port}")] {
        let by_hand = ByHand::start(&rig, old, &options);
        until("PostgreSQL to try", async || by_hand.has_tried()).await;
        let taken = rig
            .access
            .writable_within(Pace::STEADY, new, Duration::from_secs(1))
            .await
            .expect("the primary takes writes");
        assert_eq!(taken.1, new);
        // For a while: a server that was killed replays its WAL first.
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline && !rig.postgres(old).is_empty() {
            let insert = format!("INSERT INTO {} (id) VALUES (-1)", load.table.name());
            if let Ok(session) = rig.access.writable_host(old, Pace::STEADY.connect).await {
                let said = session.batch(&insert, Pace::STEADY.statement).await;
                assert!(said.is_err() || session.warnings() > 0, "{options:?}: it took a row");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        drop(by_hand);
        rig.host_gone(old).await;
    }
    load.progress(100).await;
    assert_eq!(rig.heal().await, new);
    load.progress(100).await;
    match mode {
        Mode::Quorum => drop(load.all_kept(&rig).await),
        // Rows of the moment before the host died may be lost; what was started by hand took none.
        Mode::Lease => {
            let operation = rig.finished().await;
            load.kept_within(&rig, bound(&operation), fault + Duration::from_secs(1)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_started_by_hand_takes_no_write() {
    started_by_hand("by-hand", Mode::Quorum).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_lease_mode_an_old_primary_started_by_hand_takes_no_write() {
    started_by_hand("by-hand-lease", Mode::Lease).await;
}
