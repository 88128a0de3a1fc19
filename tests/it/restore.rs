//! Backup and restore: epochs rise, incarnations differ, what was held before is void (S3, G).

use std::path::{Path, PathBuf};
use std::process::Command;

use regent_core::id::Epoch;
use regent_lab::process::Fault;
use regent_rpc::client::{CampaignOptions, Session, SessionOptions};

use crate::cluster::{Cluster, PATIENCE, REGENT, election, mark, marks};

/// Ends every node, replaces the data of all by a restore of `backup`, and starts them again.
async fn restore(cluster: &mut Cluster, backup: &Path) {
    for node in &cluster.lab.nodes {
        regent_lab::signal(node, Fault::Kill).unwrap();
    }
    for node in &cluster.lab.nodes {
        assert!(node.process.as_ref().unwrap().wait_gone(PATIENCE).await);
    }
    let ids: Vec<_> = cluster.lab.nodes.iter().map(|n| n.id).collect();
    for id in &ids {
        let node = cluster.lab.node(*id).unwrap();
        std::fs::rename(&node.data_dir, node.data_dir.with_extension(unique())).unwrap();
        // One node is restored; the others begin empty and are sent the snapshot.
        if *id == ids[0] {
            let out = Command::new(REGENT)
                .args(["restore", "--config"])
                .arg(&node.config)
                .arg("--from")
                .arg(backup)
                .arg("--yes")
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.success(), "restore: {text}");
        }
    }
    for id in ids {
        cluster.restart(id);
    }
    cluster.ready().await;
}

fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("old{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

async fn incarnation(cluster: &Cluster) -> (u64, u64) {
    let stamp = cluster.connections.status(1).await.unwrap().stamp.unwrap();
    (stamp.incarnation, stamp.incarnation_id)
}

async fn campaign(cluster: &Cluster) -> (Session, Epoch) {
    let session = Session::open(&cluster.client("client"), SessionOptions::default()).await.unwrap();
    let lease = session
        .campaign(&election("job"), b"v", CampaignOptions::default())
        .await
        .unwrap();
    let epoch = lease.epoch();
    std::mem::forget(lease);
    (session, epoch)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_restores_of_one_backup_raise_epochs_differ_and_void_what_was_held() {
    let mut cluster = Cluster::up("restore", 3).await;
    mark(&cluster.client("admin"), "mark/before").await.unwrap();
    let (session, first) = campaign(&cluster).await;
    let backup: PathBuf = cluster.scratch.path().join("backup.regent");
    let out = cluster.verb(&["backup", "-o", backup.to_str().unwrap()]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    mark(&cluster.client("admin"), "mark/after").await.unwrap();
    let life = incarnation(&cluster).await;

    restore(&mut cluster, &backup).await;
    let second_life = incarnation(&cluster).await;
    assert!(second_life.0 > life.0, "{life:?} -> {second_life:?}");
    assert!(!session.is_live(), "a session outlived a restore");
    assert_eq!(marks(&cluster.client("admin"), "mark/").await, ["mark/before"]);
    let (_, second) = campaign(&cluster).await;
    assert!(second > first, "S3 over a restore: {first} -> {second}");

    restore(&mut cluster, &backup).await;
    let third_life = incarnation(&cluster).await;
    assert_ne!(third_life.1, second_life.1, "two restores of one backup look alike");
    let (_, third) = campaign(&cluster).await;
    assert!(third > first);
}
