//! A node must keep what the cluster promised its leases (PROTOCOL.md C6).

use regent_core::authz::Role;
use regent_core::timing::Timing;
use regent_rpc::client::Client;
use regent_rpc::convert::cluster::timing_out;
use regent_rpc::pb::v1;
use regent_rpc::pb::v1::cluster_service_client::ClusterServiceClient;
use tonic::{Code, Status};

use super::rig::{PATIENCE, Rig};
use crate::config::Profile;

async fn set(client: &Client, timing: Timing) -> Result<u64, Status> {
    let (_, channel) = client.channels().swap_remove(0);
    let ask = v1::SetTimingRequest { timing: Some(timing_out(&timing)), ..Default::default() };
    let answer = ClusterServiceClient::new(channel).set_timing(ask).await?;
    Ok(answer.into_inner().least_ttl_ms)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_is_slower_than_the_cluster_promised_stops_until_the_promise_is_changed() {
    let mut rig = Rig::start(3).await;
    let leader = rig.leader().await;
    let slow = (1..=3).find(|id| *id != leader).unwrap();
    rig.kill(slow).await;
    rig.reconfigure(slow, |config| config.profile = Profile::Wan);
    rig.restart(slow).await.unwrap();
    let why = rig.failed(slow).await;
    for part in ["election_max_ms", "1000 ms", "300 ms", "set-timing"] {
        assert!(why.contains(part), "{part} is missing in {why}");
    }

    let here = |role| rig.client_of(role, &[rig.address(leader)]);
    let denied = set(&here(Role::Operator), Timing::WAN).await.expect_err("admins only");
    assert_eq!(denied.code(), Code::PermissionDenied);
    let admin = here(Role::Admin);
    let before = admin.status().await.unwrap().least_ttl_ms;
    let after = set(&admin, Timing::WAN).await.unwrap();
    assert!(after > before, "{after} is not above {before}");
    assert_eq!(admin.status().await.unwrap().least_ttl_ms, after);
    rig.restart(slow).await.unwrap();
    rig.node(slow).ready(PATIENCE).await.unwrap();

    // Back: not below what a member is configured with, nor while one does not say.
    let refused = set(&admin, Timing::LAN).await.expect_err("one member is slower");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains(&format!("node {slow}: election_max_ms")), "{refused}");
    rig.kill(slow).await;
    let refused = set(&admin, Timing::LAN).await.expect_err("one member is silent");
    assert!(refused.message().contains("did not say"), "{refused}");
    rig.reconfigure(slow, |config| config.profile = Profile::Lan);
    rig.restart(slow).await.unwrap();
    rig.node(slow).ready(PATIENCE).await.unwrap();
    assert_eq!(set(&admin, Timing::LAN).await.unwrap(), before);
}
