//! Directories without a running node: a log that is lost, a new life that is written half-way.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use regent_core::command::{Command, Entry};
use regent_core::id::{Incarnation, NodeId, Revision};
use regent_core::state::State;
use regent_core::time::WallMs;
use regent_core::timing::Timing;

use super::mesh::{Cluster, member, principal, start_alone};
use crate::offline::{Holding, NewLife};
use crate::runtime::SimNode;
use crate::store::identity::{Identity, LogState, open_identity};
use crate::store::sim_disk::SimDisk;
use crate::store::vfs::Vfs;
use crate::{ConsensusConfig, RunMode, offline};

fn config(disk_had_a_log: bool) -> ConsensusConfig {
    let mut config = ConsensusConfig::new(NodeId(1), "/data", Timing::LAN);
    config.mode = RunMode::INSTANT;
    config.segment_bytes = 64 * 1024;
    config.has_log = disk_had_a_log;
    config
}

fn segments(disk: &SimDisk) -> usize {
    let names = disk.list(Path::new("/data/log")).unwrap_or_default();
    names.iter().filter(|name| name.starts_with("wal-") && name.ends_with(".log")).count()
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lost_its_log_does_not_start_and_makes_no_other() {
    let mut cluster = Cluster::of(1, |_| {}).await;
    cluster.write("x").await;
    cluster.node(1).snapshot_now().await.unwrap();
    cluster.crash(1, 1);
    let disk = cluster.disks[&1].clone();
    disk.lose(Path::new("/data/log/wal-0000000000000001.log"));
    let error = start_alone(&cluster, config(true), &disk).await.err().unwrap().to_string();
    assert!(error.contains("there is no log in /data/log"), "{error}");
    assert_eq!(segments(&disk), 0);
}

#[tokio::test(start_paused = true)]
async fn reading_a_directory_without_a_log_is_refused_and_makes_none() {
    let disk = SimDisk::new();
    for had in [false, true] {
        let config = config(had);
        let read = offline::read(&config, Arc::new(disk.clone()));
        let error = SimNode::new().scope(1, read).await.err().unwrap().to_string();
        assert!(error.contains("there is no log in /data/log"), "{error}");
        assert_eq!(disk.operations(), 0);
    }
}

const ROOT: &str = "/node";
const SECOND_LIFE: Incarnation = Incarnation { counter: 2, id: 22 };

/// What a backup of a bootstrapped cluster holds.
fn backup() -> State {
    let mut state = State::default();
    let incarnation = Incarnation { counter: 1, id: 11 };
    let command = Command::Bootstrap { incarnation, cluster: "prod".into(), timing: Timing::LAN };
    let entry = Entry::new(WallMs(1), principal(), None, &command).encode();
    state.apply(Revision(1), &entry);
    assert!(state.cluster().is_bootstrapped());
    state
}

fn restored() -> ConsensusConfig {
    ConsensusConfig { id: NodeId(4), dir: Path::new(ROOT).join("raft"), ..config(false) }
}

/// Restores the backup onto `disk`; whether it says that it is done.
async fn restore(disk: &SimDisk) -> bool {
    let life = NewLife {
        node: NodeId(4),
        member: member(4),
        incarnation: SECOND_LIFE,
        hold_ms: Some(0),
        reason: "a test".into(),
        by: principal(),
        at: WallMs(2),
    };
    let own = Identity::new("prod", NodeId(4), 7);
    let (config, vfs) = (restored(), Arc::new(disk.clone()));
    let process = SimNode::new();
    let holding = Holding::of_backup(backup());
    let found = holding.found(&life, Path::new(ROOT), own, &config, vfs);
    let done = process.scope(1, found).await.is_ok();
    process.kill();
    done
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_is_interrupted_anywhere_is_complete_or_nothing_or_does_not_start() {
    let (mut nothing, mut refused, mut complete) = (0, 0, 0);
    for changes in 0.. {
        let disk = SimDisk::new();
        disk.power_off_after(changes);
        let done = restore(&disk).await;
        for seed in 0..12 {
            let crashed = disk.fork();
            crashed.crash(seed);
            let raft = Path::new(ROOT).join("raft");
            let opened = open_identity(&crashed, Path::new(ROOT), &raft, "prod", NodeId(4), 9);
            let context = format!("after {changes} changes, seed {seed}");
            match opened {
                Err(error) => {
                    let text = error.to_string();
                    assert!(!done && text.contains("restore again"), "{context}: {text}");
                    refused += 1;
                }
                Ok(identity) if identity.log == LogState::None => {
                    assert!(!done && crashed.list(&raft.join("log")).is_err(), "{context}");
                    assert!(crashed.list(&raft.join("snapshots")).is_err(), "{context}");
                    nothing += 1;
                }
                Ok(identity) => {
                    assert_eq!((identity.log, identity.disk), (LogState::Made, 7), "{context}");
                    let config = restored();
                    let read = crate::offline::read(&config, Arc::new(crashed));
                    let held = SimNode::new().scope(1, read).await.unwrap();
                    assert_eq!(held.state.incarnation(), SECOND_LIFE, "{context}");
                    complete += 1;
                }
            }
        }
        if done {
            break;
        }
    }
    assert!(nothing > 0 && refused > 50 && complete > 0, "{nothing} {refused} {complete}");
}
