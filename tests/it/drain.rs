//! SIGTERM on the leader under load: it hands over first, and clients hardly notice.

use std::time::Duration;

use regent_lab::process::Fault;

use crate::cluster::{Cluster, until};
use crate::own::{Own, said};
use crate::writers::{Writers, assert_all_there, assert_same_state};

/// Without a handover no follower campaigns before it has missed the leader for this long
/// (profile `lan`), so every gap would be longer.
const SHORTEST_ELECTION: Duration = Duration::from_millis(150);
/// A busy machine may spoil a round, but not all of them.
const ROUNDS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_told_to_stop_hands_over_first_and_ends_with_exit_code_0() {
    let mut cluster = Cluster::up("drain", 3).await;
    let writers = Writers::start(&cluster, 2);
    let mut gaps = Vec::new();
    for _ in 0..ROUNDS {
        // The leader must be a process of the test's own, for its exit code.
        let leader = cluster.leader().await;
        let next = cluster.lab.nodes.iter().map(|n| n.id).find(|id| *id != leader).unwrap();
        cluster.kill(next).await;
        let mut own = Own::instead(&mut cluster, next);
        cluster.ready().await;
        until("the leadership of the test's own node", async || {
            let to = next.to_string();
            cluster.verb(&["members", "transfer-leader", "--to", &to]).status.success()
                && cluster.leader().await == next
        })
        .await;
        writers.progress(20).await;

        writers.longest_gap();
        cluster.signal(next, Fault::Terminate);
        let status = own.exit().await;
        writers.progress(50).await;
        gaps.push(writers.longest_gap());
        assert!(status.success(), "SIGTERM ended the node with {status}");
        let text = said(cluster.lab.node(next).unwrap());
        assert!(text.contains("leadership handed over"), "nothing was handed over: {text}");
        assert_ne!(cluster.leader().await, next);
        cluster.restart(next);
        cluster.ready().await;
    }
    let shortest = gaps.iter().min().unwrap();
    assert!(
        *shortest < SHORTEST_ELECTION,
        "writes stood still as if nothing was handed over: {gaps:?}"
    );
    let acknowledged = writers.finish().await;
    assert_all_there(&cluster, &acknowledged).await;
    assert_same_state(&cluster).await;
    eprintln!("gaps in writes: {gaps:?}");
}
