//! A node whose disk went back in time gets no vote (PROTOCOL.md B).

use regent_lab::process::Fault;

use crate::cluster::{Cluster, PATIENCE, copy_dir, mark, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_brought_back_from_an_old_disk_image_is_quarantined() {
    let mut cluster = Cluster::up("old-disk", 3).await;
    let admin = cluster.client("admin");
    mark(&admin, "mark/1").await.unwrap();
    let leader = cluster.leader().await;
    let victim = cluster.lab.nodes.iter().map(|n| n.id).find(|id| *id != leader).unwrap();
    // An image of the disk as it is now.
    cluster.kill(victim).await;
    let data = cluster.lab.node(victim).unwrap().data_dir.clone();
    let image = data.with_extension("image");
    copy_dir(&data, &image);
    // The node goes on with another start, so its boot counter is ahead of the image.
    cluster.restart(victim);
    cluster.ready().await;
    mark(&admin, "mark/2").await.unwrap();
    cluster.signal(victim, Fault::Terminate);
    let process = cluster.lab.node(victim).unwrap().process.clone().unwrap();
    assert!(process.wait_gone(PATIENCE).await);
    // The image comes back.
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&image, &data).unwrap();
    cluster.restart(victim);
    until("quarantine of the old disk", async || match cluster.connections.status(victim).await {
        Some(status) => status.node.is_some_and(|n| n.role == "quarantined"),
        None => false,
    })
    .await;
    // With the third node gone too there is no honest majority: nobody may be elected by its vote.
    let third =
        cluster.lab.nodes.iter().map(|n| n.id).find(|id| *id != leader && *id != victim).unwrap();
    cluster.kill(third).await;
    let alone = cluster.client("admin").with_timeout(std::time::Duration::from_secs(3));
    assert!(mark(&alone, "mark/3").await.is_err(), "a write was acknowledged by an old disk");
}
