//! A follower whose disk goes back in time under the leader that counted on it.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::mesh::{Cluster, note, until};
use crate::api::ConsensusError;

#[tokio::test(start_paused = true)]
async fn a_follower_that_lost_what_it_acknowledged_is_named_and_no_longer_counted() {
    let mut cluster = Cluster::of(3, |_| {}).await;
    let leader = cluster.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let (bad, good) = (others[0], others[1]);
    cluster.converge(cluster.write("before").await).await;
    let old = cluster.disks[&bad].fork();
    old.crash_keeping(|_| true);
    for i in 0..20 {
        cluster.converge(cluster.write(&format!("{i}")).await).await;
    }
    let (term, trouble) = (cluster.status(leader).term, cluster.status(leader).trouble);
    assert_eq!(trouble, "");
    // A restart alone loses nothing, and nobody is blamed.
    cluster.crash(bad, 1);
    cluster.start(bad).await;
    cluster.converge(cluster.write("restarted").await).await;
    assert_eq!(cluster.status(leader).trouble, "");
    cluster.crash(bad, 2);
    cluster.disks.insert(bad, old);
    cluster.start(bad).await;
    let name = format!("node {bad} lost entries");
    until("it is named", || cluster.status(leader).trouble.contains(&name)).await;
    // With the other one the leader goes on, in the same term.
    let last = cluster.write("without it").await;
    let status = cluster.status(leader);
    assert_eq!((status.term, status.storage_problem.as_str()), (term, ""));
    assert!(cluster.status(bad).applied < last, "it is given nothing more");
    // With it alone nothing is acknowledged.
    cluster.crash(good, 3);
    let node = cluster.node(leader);
    let error = node.propose(note("alone"), Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, ConsensusError::Unknown | ConsensusError::NoQuorum), "{error}");
    let error = node.read_index(Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, ConsensusError::NoQuorum), "{error}");
    // An honest majority is enough again.
    cluster.start(good).await;
    cluster.write("together").await;
}
