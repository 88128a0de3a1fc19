//! Who holds most may be an instance that is never promoted: the next primary fetches from it.

use std::time::Instant;

use regent_core::spec::Mode;
use regent_lab::network::Cut;

use super::cut::{can_cut, network};
use super::load::Load;
use super::rig::{Rig, bound};
use crate::cluster::until;

#[tokio::test(flavor = "multi_thread")]
async fn the_next_primary_fetches_what_only_an_instance_that_is_never_promoted_holds() {
    if !can_cut() {
        return;
    }
    let mut rig = Rig::up_on_network("fetch", Mode::Quorum).await;
    let old = rig.redundant().await;
    let (keeper, next) = ((old + 1) % 3, (old + 2) % 3);
    let never = rig.name(keeper);
    rig.declare_all(|spec| {
        spec.instances.iter_mut().find(|one| one.name == never).unwrap().priority = 0;
    })
    .await;

    // The link between the primary and the one that may follow it breaks; the other one confirms.
    let load = Load::start(&rig).await;
    let id = |at: usize| rig.instances()[at].id.clone();
    let link = Cut { who: id(old), from: vec![id(next)], one_way: false };
    network(&rig).cut(&[link]).unwrap();
    load.progress(200).await;
    until("a set without the one that is cut off", async || {
        let set = rig.role().await.set.unwrap_or_default();
        set.members == [rig.name(keeper).to_string()]
    })
    .await;
    load.progress(100).await;

    let fault = Instant::now();
    rig.kill_host(old);
    let first = load.resumed(fault, Some(old)).await;
    assert_eq!(first.host, next);
    assert!(rig.log(next).contains("fetch from"), "it had to fetch");
    network(&rig).mend().unwrap();
    assert_eq!(rig.heal().await, next);
    let operation = rig.finished().await;
    assert_eq!(bound(&operation).as_millis(), 0, "{operation:?}");
    load.progress(100).await;
    load.all_kept(&rig).await;
}
