//! A real node whose disk runs full: it says so, the others go on, and with space it recovers by
//! itself.
//!
//! The disk is a small tmpfs that only the node's own process sees (a mount namespace), filled
//! through `/proc/<pid>/root`. The log is copied onto it without the space that was reserved for
//! it, as a file system does it that copies on write or overcommits: so a write inside the log's
//! file fails as well, not only the next file.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::cluster::{Cluster, REGENT, mark, marks, until};
use crate::http_port::readiness;
use crate::own::{Own, said};
use crate::writers::{Writers, assert_all_there, assert_same_state};

const ON_A_SMALL_DISK: &str = r#"set -e
mount -t tmpfs -o size=24m regent-small-disk "$1"
cp -a --sparse=always "$2/." "$1"
exec "$3" server --config "$4""#;

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Uid:") && line.split('\t').nth(2) == Some("0"))
}

/// Node `id`, which must be dead, goes on with its data on a small disk.
fn on_a_small_disk(cluster: &mut Cluster, id: u64) -> Own {
    let node = cluster.lab.node(id).unwrap().clone();
    let aside = node.data_dir.with_extension("aside");
    std::fs::rename(&node.data_dir, &aside).unwrap();
    std::fs::create_dir(&node.data_dir).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", ON_A_SMALL_DISK, "sh"]);
    command.args([&node.data_dir, &aside]).arg(REGENT).arg(&node.config);
    Own::run(cluster, id, command)
}

/// Takes all the space there is; the path of the file that does.
fn fill(cluster: &Cluster, id: u64) -> PathBuf {
    let node = cluster.lab.node(id).unwrap();
    let root = PathBuf::from(format!("/proc/{}/root", node.process.as_ref().unwrap().pid));
    let ballast = root.join(node.data_dir.join("ballast").strip_prefix("/").unwrap());
    let mut file = std::fs::File::create(&ballast).unwrap();
    let full = loop {
        if let Err(error) = file.write_all(&[1; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
    ballast
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_a_full_disk_says_so_and_recovers_by_itself_when_there_is_space() {
    if !is_root() {
        eprintln!("NOT RUN: mounting a small disk for one node needs root");
        return;
    }
    let mut cluster = Cluster::up("full-disk", 3).await;
    let victim = 1 + cluster.leader().await % 3;
    cluster.kill(victim).await;
    let _own = on_a_small_disk(&mut cluster, victim);
    cluster.ready().await;
    // The leader is the hardest case: nobody else may acknowledge until it has stepped aside.
    until("the node with the small disk to lead", async || {
        let to = victim.to_string();
        cluster.verb(&["members", "transfer-leader", "--to", &to]).status.success()
            && cluster.leader().await == victim
    })
    .await;
    let writers = Writers::start(&cluster, 2);
    writers.progress(20).await;

    let ballast = fill(&cluster, victim);
    until("the status to say that the disk is full", async || {
        let out = cluster.verb(&["status", "-o", "json"]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let Ok(status) = serde_json::from_str::<serde_json::Value>(&text) else { return false };
        let warnings = status["warnings"].to_string();
        warnings.contains(&format!("node {victim}: storage: no space left"))
    })
    .await;
    until("the node to call itself not ready", async || {
        let (code, why) = readiness(&cluster, victim);
        code == 503 && why.contains("storage: no space left")
    })
    .await;
    // The others go on without it, and are well.
    until("another leader", async || cluster.leader().await != victim).await;
    writers.progress(50).await;
    let other = cluster.lab.nodes.iter().map(|n| n.id).find(|id| *id != victim).unwrap();
    assert_eq!(readiness(&cluster, other).0, 200);

    std::fs::remove_file(ballast).unwrap();
    until("the node to be ready again", async || readiness(&cluster, victim).0 == 200).await;
    writers.progress(20).await;
    let acknowledged = writers.finish().await;
    assert_all_there(&cluster, &acknowledged).await;
    assert_same_state(&cluster).await;
    let text = said(cluster.lab.node(victim).unwrap());
    assert!(!text.contains("panicked"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_majority_has_full_disks_writes_are_refused_by_name_and_go_on_with_space() {
    if !is_root() {
        eprintln!("NOT RUN: mounting small disks for two nodes needs root");
        return;
    }
    let mut cluster = Cluster::up("full-disks", 3).await;
    let mut own = Vec::new();
    for victim in [2, 3] {
        cluster.kill(victim).await;
        own.push(on_a_small_disk(&mut cluster, victim));
        cluster.ready().await;
    }
    let admin = cluster.client("admin");
    mark(&admin, "mark/before").await.unwrap();
    let ballast = [2, 3].map(|victim| fill(&cluster, victim));
    let brief = admin.with_timeout(Duration::from_secs(2));
    let mut tried = 0;
    until("writes to be refused because of the disks", async || {
        tried += 1;
        let refused = mark(&brief, &format!("mark/full/{tried}")).await;
        refused.is_err_and(|error| {
            let text = error.to_string();
            text.contains("a majority of the nodes cannot write")
                && text.contains("node 2: no space left")
                && text.contains("node 3: no space left")
        })
    })
    .await;
    for file in ballast {
        std::fs::remove_file(file).unwrap();
    }
    // Another name each time: a try whose outcome is unknown may have taken effect.
    until("writes to go on", async || {
        tried += 1;
        mark(&brief, &format!("mark/after/{tried}")).await.is_ok()
    })
    .await;
    let there = marks(&admin, "mark/").await;
    assert!(there.contains(&"mark/before".to_owned()), "{there:?}");
    assert_same_state(&cluster).await;
}
