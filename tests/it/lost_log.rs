//! A node that forgot its votes must not start as if it had never voted (PROTOCOL.md B).

use crate::cluster::Cluster;
use crate::own::{Own, said};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_log_was_deleted_does_not_start_until_it_is_put_back() {
    let mut cluster = Cluster::up("lost-log", 3).await;
    let node = cluster.lab.nodes[2].clone();
    cluster.kill(node.id).await;
    let log = node.data_dir.join("raft");
    let aside = node.data_dir.join("raft.aside");
    std::fs::rename(&log, &aside).unwrap();
    let mut own = Own::instead(&mut cluster, node.id);
    let status = own.exit().await;
    assert!(!status.success(), "it started without its log");
    let text = said(&node);
    assert!(text.contains("the log is missing"), "{text}");
    assert!(text.contains("new node id"), "no way out is named: {text}");
    // It refused before it made anything that would look like a log.
    assert!(!log.join("log").exists(), "an empty log was made");
    let _ = std::fs::remove_dir_all(&log);
    std::fs::rename(&aside, &log).unwrap();
    let _own = Own::instead(&mut cluster, node.id);
    cluster.ready().await;
}
