//! `on_too_few_sync = "degrade"`: both standbys are gone, and writes go on without protection.

use regent_core::spec::{Mode, TooFewSync};

use super::load::Load;
use super::rig::Rig;
use crate::cluster::until;

#[tokio::test(flavor = "multi_thread")]
async fn without_standbys_a_degraded_service_goes_on_unprotected_until_one_is_back() {
    let mut rig = Rig::up("degraded", Mode::Quorum).await;
    let primary = rig.redundant().await;
    rig.declare(|policy| policy.on_too_few_sync = TooFewSync::Degrade).await;
    let load = Load::start(&rig).await;

    let standbys: Vec<usize> = (0..3).filter(|at| *at != primary).collect();
    standbys.iter().for_each(|at| rig.kill_host(*at));
    until("the degraded set", async || rig.role().await.unprotected).await;
    load.progress(100).await;
    let said = rig.cluster.verb(&["explain", "orders"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("UNPROTECTED") && said.contains("none (unprotected)"), "{said}");
    let role = rig.role().await;
    assert_eq!(role.holder, rig.name(primary).as_str(), "nothing was promoted");

    assert_eq!(rig.heal().await, primary);
    until("the protected set", async || {
        let role = rig.role().await;
        !role.unprotected && role.set.is_some_and(|set| set.k == 1 && set.members.len() == 2)
    })
    .await;
    // Protected again means that a failover loses nothing of what is promised from here on, and of
    // what was promised before either: the standbys have all of it.
    load.progress(100).await;
    rig.kill_host(primary);
    let fault = std::time::Instant::now();
    let next = load.resumed(fault, Some(primary)).await.host;
    assert_eq!(rig.heal().await, next);
    load.all_kept(&rig).await;
}
