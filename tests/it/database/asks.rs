//! A failover that could lose more than its service allows: people are asked, and their word counts.

use std::time::{Duration, Instant};

use regent_core::spec::Mode;
use regent_lab::databases::SERVICE;
use regent_rpc::pb::v1;

use super::load::Load;
use super::rig::Rig;
use crate::cluster::{Cluster, until};

/// A service in lease mode that may lose nothing without being asked.
async fn strict(what: &str) -> Rig {
    let rig = Rig::up(what, Mode::Lease).await;
    rig.declare(|policy| (policy.loss_bound.max_ms, policy.loss_bound.max_bytes) = (0, 0)).await;
    rig
}

async fn question(rig: &Rig) -> v1::Operation {
    let mut asked = None;
    until("a question", async || {
        asked = rig.questions().await.pop();
        asked.is_some()
    })
    .await;
    asked.unwrap()
}

fn answer(cluster: &Cluster, verb: &str, operation: &v1::Operation) {
    let approval = operation.approval.as_ref().unwrap();
    let id = approval.id.to_string();
    let listed = cluster.verb(&["approvals", "list"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains(&id) && listed.contains(&approval.candidate), "{listed}");
    let out = cluster.verb(&[verb, SERVICE, &id, "--reason", "a test"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_beyond_the_bound_is_asked_for_and_an_approval_promotes() {
    let mut rig = strict("approve").await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let fault = Instant::now();
    rig.kill_host(old);

    let asked = question(&rig).await;
    let at = rig.at(&asked.approval.as_ref().unwrap().candidate);
    assert_ne!(at, old);
    assert!(load.writer.ledger().first_ack_not_of(fault, Some(old)).is_none(), "{asked:?}");
    // One role change at a time, whoever asks for the next.
    for args in [
        &["switchover", SERVICE, "--to", rig.name((old + 1) % 3).as_str(), "--reason", "a test"][..],
        &["failover", SERVICE, "--yes", "--reason", "a test"][..],
    ] {
        let out = rig.cluster.verb(args);
        let why = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && why.contains(&asked.id.to_string()), "{args:?}: {why}");
    }
    assert_eq!(rig.questions().await.len(), 1, "and the first is as it was");
    answer(&rig.cluster, "approve", &asked);
    assert_eq!(load.resumed(fault, Some(old)).await.host, at);
    load.progress(100).await;
    assert_eq!(rig.heal().await, at);

    let operation = rig.finished().await;
    assert_eq!(operation.complete, "an approval allows the loss", "{operation:?}");
    assert_eq!(operation.out, "its armed lease lapsed", "{operation:?}");
    let said = operation.approval.unwrap().answer.unwrap();
    assert!(said.granted && said.reason == "a test", "{said:?}");
    // What was approved is bytes and time nobody could bound; here the processes alone died, and
    // what they had sent is all there.
    let (_, verdict) = load.ended(&rig).await;
    assert!(verdict.twice.is_empty() && verdict.refused_but_there.is_empty(), "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_loss_promotes_nobody_and_the_old_primary_goes_on_when_it_is_back() {
    let mut rig = strict("deny").await;
    let old = rig.redundant().await;
    let load = Load::start(&rig).await;
    let fault = Instant::now();
    rig.kill_host(old);

    let asked = question(&rig).await;
    answer(&rig.cluster, "deny", &asked);
    until("the denial to be known", async || {
        rig.operations().await.iter().any(|one| {
            let answer = one.approval.as_ref().and_then(|approval| approval.answer.as_ref());
            answer.is_some_and(|answer| !answer.granted)
        })
    })
    .await;
    // The time itself is what is tried: longer than a question or a grant would take.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(load.writer.ledger().first_ack(fault + Duration::from_secs(1)).is_none());
    assert!(rig.view().await.primary().is_none());

    assert_eq!(rig.heal().await, old, "it holds everything: it is primary again");
    load.progress(100).await;
    load.all_kept(&rig).await;
}
