//! Directories without a running node: a log that is lost, a new life that is written half-way.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use regent_core::id::NodeId;
use regent_core::timing::Timing;

use super::mesh::{Cluster, start_alone};
use crate::runtime::SimNode;
use crate::store::sim_disk::SimDisk;
use crate::store::vfs::Vfs;
use crate::{ConsensusConfig, RunMode, offline};

fn config(disk_had_a_log: bool) -> ConsensusConfig {
    let mut config = ConsensusConfig::new(NodeId(1), "/data", Timing::LAN);
    config.mode = RunMode::INSTANT;
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
