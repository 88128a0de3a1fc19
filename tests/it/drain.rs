//! SIGTERM on the leader under load: it hands over first, and clients hardly notice.

use std::time::Duration;

use regent_lab::process::Fault;

use crate::cluster::{Cluster, until};
use crate::own::{Own, said};
use crate::writers::{Writers, assert_all_there, assert_same_state};

/// No client may wait longer for its next acknowledgement, on however busy a machine. A handover
/// itself takes milliseconds; an attempt that was under way at the old leader costs a client one
/// timeout (250 ms).
const LONGEST_GAP: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_told_to_stop_hands_over_first_and_ends_with_exit_code_0() {
    let mut cluster = Cluster::up("drain", 3).await;
    let writers = Writers::start(&cluster, 2);
    // The leader must be a process of the test's own, for its exit code.
    let first = cluster.leader().await;
    let own_id = cluster.lab.nodes.iter().map(|n| n.id).find(|id| *id != first).unwrap();
    cluster.kill(own_id).await;
    let mut own = Own::instead(&mut cluster, own_id);
    cluster.ready().await;
    until("the leadership of the test's own node", async || {
        let to = own_id.to_string();
        cluster.verb(&["members", "transfer-leader", "--to", &to]).status.success()
            && cluster.leader().await == own_id
    })
    .await;
    writers.progress(20).await;

    writers.longest_gap();
    cluster.signal(own_id, Fault::Terminate);
    let status = own.exit().await;
    writers.progress(50).await;
    let gap = writers.longest_gap();
    assert!(status.success(), "SIGTERM ended the node with {status}");
    let text = said(cluster.lab.node(own_id).unwrap());
    assert!(text.contains("leadership handed over"), "nothing was handed over: {text}");
    assert_ne!(cluster.leader().await, own_id);
    assert!(gap < LONGEST_GAP, "writes stood still for {gap:?}");
    cluster.restart(own_id);
    cluster.ready().await;
    let acknowledged = writers.finish().await;
    assert_all_there(&cluster, &acknowledged).await;
    assert_same_state(&cluster).await;
}
