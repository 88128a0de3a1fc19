//! The fencer ends or stops where it is: PostgreSQL goes with it, and no row that was promised is lost.

use std::path::{Path, PathBuf};
use std::time::Instant;

use regent_core::spec::Mode;
use regent_lab::databases::owned;
use regent_lab::process::{Fault, Process};

use super::load::Load;
use super::rig::Rig;

async fn without_its_fencer(what: &str, strike: impl FnOnce(&Process)) {
    let mut rig = Rig::up(what, Mode::Quorum).await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let postmaster = rig.postmaster(old).await;
    let pid = rig.seen(old).await.fencer_pid.expect("the agent has told its pid");
    let fencer = owned::if_of(&rig.cluster.lab, &rig.instances()[old], pid).expect("it lives");

    let began = Instant::now();
    strike(&fencer);
    let first = load.resumed(began, Some(old)).await;
    assert!(!postmaster.is_alive(), "PostgreSQL outlives its fencer");
    load.progress(100).await;
    assert_eq!(rig.heal().await, first.host);
    assert!(rig.seen(old).await.is_standby());
    load.progress(100).await;
    load.all_kept(&rig).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_ends_with_its_killed_fencer_and_is_succeeded() {
    without_its_fencer("fencer-killed", |it| assert!(it.signal(Fault::Kill).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_fencer_is_noticed_ended_with_all_it_guards_and_succeeded() {
    without_its_fencer("fencer-frozen", |it| assert!(it.signal(Fault::Freeze).unwrap())).await;
}

/// A cgroup whose processes get no time; removed when dropped.
struct Starved(PathBuf);

impl Starved {
    /// Where cgroups of the second version are, if one can be made there.
    fn make() -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
        let dir =
            Path::new(mount.split(' ').nth(1)?).join(format!("regent-{}", std::process::id()));
        std::fs::create_dir(&dir).ok()?;
        let made = Self(dir);
        std::fs::write(made.0.join("cgroup.freeze"), "1").ok()?;
        Some(made)
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Not stopped by a signal, which nothing would show: it is never run.
#[tokio::test(flavor = "multi_thread")]
async fn a_fencer_that_gets_no_cpu_is_noticed_ended_with_all_it_guards_and_succeeded() {
    let Some(starved) = Starved::make() else {
        eprintln!("NOT RUN: no cgroup (version 2) can be made here");
        return;
    };
    without_its_fencer("fencer-starved", |it| {
        std::fs::write(starved.0.join("cgroup.procs"), it.pid.to_string()).unwrap();
    })
    .await;
}
