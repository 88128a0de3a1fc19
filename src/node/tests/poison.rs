//! A poisoned entry in the log of a real cluster: one service stands still on all nodes alike, and
//! everything else goes on until a person has looked at it.

use std::time::Duration;

use regent_core::authz::{Principal, Role};
use regent_core::command::{Command, Entry, Expect};
use regent_core::id::ElectionName;
use regent_core::reply::{Rejection, Reply};
use regent_core::time::WallMs;
use regent_rpc::client::CallErrorKind;
use regent_rpc::convert::common::Freshness;

use super::figures::{page, service};
use super::rig::{PATIENCE, Rig, eventually};

const FAMILY: &str = "regent_topology_services_quarantined_count";

/// Waits until all nodes stand at one revision; their state hashes.
async fn hashes(rig: &Rig) -> Vec<[u8; 16]> {
    let mut seen = Vec::new();
    eventually("one revision on all nodes", || {
        seen = (1..=3)
            .map(|id| {
                let state = rig.node(id).shell().state.read();
                (state.revision(), state.rolling_hash())
            })
            .collect();
        seen.iter().all(|(revision, _)| *revision == seen[0].0)
    })
    .await;
    seen.into_iter().map(|(_, hash)| hash).collect()
}

/// Waits until every node's page shows the family as moved, or not.
async fn shown(rig: &Rig, moved: bool) {
    let until = tokio::time::Instant::now() + PATIENCE;
    for id in 1..=3 {
        while page(rig.node(id).http_addr()).await[FAMILY] != moved {
            assert!(tokio::time::Instant::now() < until, "node {id}: {FAMILY} is not {moved}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_corrupted_entry_in_the_log_stops_one_service_on_all_nodes_until_it_is_released() {
    let rig = Rig::start(3).await;
    let operator = rig.client(Role::Operator);
    let mut other = service();
    other.name = "bills".parse().unwrap();
    for spec in [&service(), &other] {
        operator.apply_service(spec, Expect::Absent, false).await.unwrap();
    }
    shown(&rig, false).await;

    // Half a command in a readable envelope: what a defect of a future version would look like.
    let by = Principal::new(Role::Operator, "eve");
    let put = Command::PutService { spec: Box::new(service()), expect: Expect::Any };
    let mut entry = Entry::new(WallMs(5), by, None, &put);
    entry.body.truncate(entry.body.len() / 2);
    let leader = rig.node(rig.leader().await).shell().clone();
    let reply = leader.consensus.propose(entry.encode().into(), PATIENCE).await.unwrap();
    assert!(matches!(reply, Reply::Rejected(Rejection::Poisoned { .. })), "{reply:?}");

    let all = hashes(&rig).await;
    assert!(all.iter().all(|hash| *hash == all[0]), "S9: {all:?}");
    for id in 1..=3 {
        let asked = rig.client_of(Role::Observer, &[rig.address(id)]);
        let seen = asked.list_services(Freshness::Linearizable).await.unwrap().services;
        let stands = |name: &str| {
            let row = seen.iter().find(|row| row.spec.as_ref().is_some_and(|s| s.name == name));
            row.unwrap().quarantine.is_some()
        };
        assert!(stands("orders") && !stands("bills"), "on node {id}: {seen:?}");
    }
    shown(&rig, true).await;

    // It stands still; everything else goes on, and no node has stopped.
    let mut changed = service();
    changed.description = "changed".into();
    let refused = operator.apply_service(&changed, Expect::Any, false).await.unwrap_err();
    assert_eq!(refused.kind(), CallErrorKind::Refused, "{refused}");
    other.description = "changed".into();
    operator.apply_service(&other, Expect::Any, false).await.unwrap();
    let mark = ElectionName::parse("mark").unwrap();
    operator.put_election(&mark, &Default::default(), Expect::Absent).await.unwrap();

    operator.release_quarantine(&changed.name, "looked at it").await.unwrap();
    operator.apply_service(&changed, Expect::Any, false).await.unwrap();
    shown(&rig, false).await;
    let all = hashes(&rig).await;
    assert!(all.iter().all(|hash| *hash == all[0]), "S9: {all:?}");
}
