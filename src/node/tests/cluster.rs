//! What a cluster of three must do, seen from outside.

use std::time::Duration;

use futures::StreamExt as _;
use regent_core::authz::{Principal, Role};
use regent_core::command::Command;
use regent_core::id::{ElectionName, NodeId, Nonce, Revision};
use regent_rpc::client::{CallErrorKind, CampaignOptions, Session, SessionOptions};
use regent_rpc::convert::common::Freshness;
use regent_rpc::pb::v1;
use tokio::time::Instant;

use super::rig::{PATIENCE, Rig, copy_dir, eventually};

fn election(name: &str) -> ElectionName {
    ElectionName::parse(name).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_value_proclaimed_through_any_node_is_read_on_every_node() {
    let rig = Rig::start(3).await;
    let name = election("orders");
    for writer in 1..=3 {
        let client = rig.client_of(Role::Client, &[rig.address(writer)]);
        let session = Session::open(&client, SessionOptions::default()).await.unwrap();
        let lease = session.campaign(&name, b"first", CampaignOptions::default()).await.unwrap();
        let value = format!("from {writer}");
        lease.proclaim(value.as_bytes()).await.unwrap();
        for reader in 1..=3 {
            let client = rig.client_of(Role::Observer, &[rig.address(reader)]);
            let read = client.leader(&name, Freshness::Linearizable).await.unwrap();
            let stamp = read.stamp.unwrap();
            assert_eq!((stamp.node, stamp.age_ms), (reader, 0));
            let row = read.election.unwrap();
            if let Some(holder) = row.holder {
                assert_eq!(holder.value.as_ref(), value.as_bytes(), "read on {reader}");
            }
        }
        lease.resign().await.unwrap();
        session.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_is_stamped_only_once_its_entry_is_applied_on_the_node_that_answers() {
    let rig = Rig::start(1).await;
    let shell = rig.node(1).shell().clone();
    let ahead = Revision(shell.state.read().revision().0 + 3);
    let early = shell.stamp_applied(ahead, Instant::now() + Duration::from_millis(50)).await;
    assert_eq!(early.unwrap_err().code(), tonic::Code::DeadlineExceeded);
    let waiting = shell.clone();
    let stamped =
        tokio::spawn(async move { waiting.stamp_applied(ahead, Instant::now() + PATIENCE).await });
    let operator = rig.client(Role::Operator);
    for name in ["a", "b", "c"] {
        let (place, expect) = Default::default();
        operator.put_election(&election(name), &place, expect).await.unwrap();
    }
    let stamp = stamped.await.unwrap().unwrap();
    assert!(shell.state.read().revision() >= ahead);
    assert_eq!((stamp.incarnation, stamp.revision), (1, ahead.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writes_go_on_after_the_leader_was_killed_and_it_comes_back_with_everything() {
    let mut rig = Rig::start(3).await;
    let operator = rig.client(Role::Operator);
    operator
        .put_election(&election("before"), &Default::default(), Default::default())
        .await
        .unwrap();
    let leader = rig.leader().await;
    rig.kill(leader).await;
    operator
        .put_election(&election("meanwhile"), &Default::default(), Default::default())
        .await
        .unwrap();
    rig.restart(leader).await.unwrap();
    rig.node(leader).ready(PATIENCE).await.unwrap();
    let observer = rig.client_of(Role::Observer, &[rig.address(leader)]);
    let all = observer.list_elections("", Freshness::Linearizable).await.unwrap();
    let names: Vec<_> = all.elections.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["before", "meanwhile"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_role_may_not_do_is_refused_and_stands_in_the_audit_chain() {
    let rig = Rig::start(1).await;
    let observer = rig.client(Role::Observer);
    for _ in 0..5 {
        let refused = observer
            .put_election(&election("mine"), &Default::default(), Default::default())
            .await
            .expect_err("an observer writes nothing");
        assert_eq!(refused.kind(), CallErrorKind::NotAllowed);
    }
    let auditor = rig.client(Role::Auditor);
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let ask = v1::ListAuditRequest::default();
        let stream = auditor.list_audit(ask).await.unwrap();
        let records: Vec<_> = stream.map(|r| r.unwrap()).collect().await;
        let found = records.iter().any(|r| r.who == "observer/tester" && r.resource == "mine");
        if found {
            return;
        }
        assert!(tokio::time::Instant::now() < until, "no record: {records:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Starts node `victim` once more, then on an image of its disk from before; waits until it is in
/// quarantine, and returns why.
async fn go_back_in_time(rig: &mut Rig, victim: u64) -> String {
    rig.kill(victim).await;
    let dir = rig.data_dir(NodeId(victim));
    let image = dir.with_extension("image");
    copy_dir(&dir, &image);
    rig.restart(victim).await.unwrap();
    rig.node(victim).ready(PATIENCE).await.unwrap();
    rig.kill(victim).await;
    std::fs::remove_dir_all(&dir).unwrap();
    copy_dir(&image, &dir);
    rig.restart(victim).await.unwrap();
    let admission = rig.node(victim).shell().admission.clone();
    eventually("the quarantine", || admission.quarantine().is_some()).await;
    admission.quarantine().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_on_an_old_image_of_its_disk_gets_no_vote() {
    let mut rig = Rig::start(3).await;
    let leader = rig.leader().await;
    let victim = (1..=3).find(|id| *id != leader).unwrap();
    go_back_in_time(&mut rig, victim).await;
    let observer = rig.client_of(Role::Observer, &[rig.address(victim)]);
    let status = observer.status().await.unwrap();
    assert_eq!(status.node.unwrap().role, "quarantined");
    assert!(rig.node(victim).ready(Duration::ZERO).await.unwrap_err().contains("quarantined"));
    // The two others still have their majority.
    rig.client(Role::Operator)
        .put_election(&election("after"), &Default::default(), Default::default())
        .await
        .unwrap();
    assert_elects_nobody(&mut rig, victim).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_quarantine_outlives_the_process_although_nobody_is_left_who_knows() {
    let mut rig = Rig::start(3).await;
    let victim = 2;
    let why = go_back_in_time(&mut rig, victim).await;
    let mark = rig.data_dir(NodeId(victim)).join("quarantined");
    eventually("the mark", || mark.exists()).await;
    for id in 1..=3 {
        rig.kill(id).await;
    }
    // Its boot counter rises above what the others have seen of the disk that went back.
    for _ in 0..2 {
        rig.restart(victim).await.unwrap();
        assert_eq!(rig.node(victim).shell().admission.quarantine(), Some(why.clone()));
        rig.kill(victim).await;
    }
    rig.restart(victim).await.unwrap();
    rig.restart(1).await.unwrap();
    let brief = rig.client(Role::Operator).with_timeout(Duration::from_secs(3));
    let lost = brief.put_election(&election("lost"), &Default::default(), Default::default()).await;
    lost.expect_err("a leader was elected by an old disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_objection_that_is_not_about_the_disk_ends_with_its_cause() {
    let mut rig = Rig::start(3).await;
    rig.kill(2).await;
    rig.kill(3).await;
    // Installed anew, with a slip of the pen.
    std::fs::remove_dir_all(rig.data_dir(NodeId(3))).unwrap();
    rig.reconfigure(3, |config| config.cluster = "tset".into());
    rig.restart(3).await.unwrap();
    rig.restart(2).await.unwrap();
    let shell = rig.node(2).shell().clone();
    eventually("the objection", || shell.admission.quarantine().is_some()).await;
    let why = shell.admission.quarantine().unwrap();
    assert!(why.contains("this is cluster \"tset\""), "{why}");
    rig.kill(3).await;
    rig.kill(2).await;
    assert!(!rig.data_dir(NodeId(2)).join("quarantined").exists());
    rig.restart(2).await.unwrap();
    rig.node(2).ready(PATIENCE).await.unwrap();
}

/// Without the leader there is a majority only with the quarantined node: it must not be one.
async fn assert_elects_nobody(rig: &mut Rig, quarantined: u64) {
    let leader = rig.leader().await;
    rig.kill(leader).await;
    let third = (1..=3).find(|id| ![leader, quarantined].contains(id)).unwrap();
    let brief = rig.client(Role::Operator).with_timeout(Duration::from_secs(3));
    let lost = brief.put_election(&election("lost"), &Default::default(), Default::default()).await;
    lost.expect_err("a leader was elected by an old disk");
    for id in [third, quarantined] {
        let status = rig.node(id).shell().leadership.status();
        assert!(!status.is_leader && status.leader.is_none_or(|it| it.0 == leader), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_taken_during_the_newest_boot_gets_no_vote_either() {
    let mut rig = Rig::start(3).await;
    let leader = rig.leader().await;
    let victim = (1..=3).find(|id| *id != leader).unwrap();
    let dir = rig.data_dir(NodeId(victim));
    let image = dir.with_extension("image");
    copy_dir(&dir, &image);
    // It acknowledges more, and does not start once more before its disk goes back in time.
    let operator = rig.client(Role::Operator);
    for name in ["a", "b", "c"] {
        operator
            .put_election(&election(name), &Default::default(), Default::default())
            .await
            .unwrap();
    }
    let last = rig.node(leader).shell().state.read().revision();
    let shell = rig.node(leader).shell().clone();
    eventually("the acknowledgement", || {
        shell.admission.promised(NodeId(victim)).is_some_and(|held| held.last >= last)
    })
    .await;
    rig.kill(victim).await;
    std::fs::remove_dir_all(&dir).unwrap();
    copy_dir(&image, &dir);
    rig.restart(victim).await.unwrap();
    let old = rig.node(victim).shell().clone();
    eventually("the quarantine", || old.admission.quarantine().is_some()).await;
    let why = old.admission.quarantine().unwrap();
    assert!(why.contains("has promised"), "{why}");
    operator
        .put_election(&election("after"), &Default::default(), Default::default())
        .await
        .unwrap();
    assert_elects_nobody(&mut rig, victim).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn more_elections_than_fit_a_page_are_listed_page_after_page() {
    let rig = Rig::start(1).await;
    let operator = rig.client(Role::Operator);
    let count = 1_003;
    let put = |n| {
        let (operator, name) = (operator.clone(), election(&format!("many/{n:04}")));
        async move { operator.put_election(&name, &Default::default(), Default::default()).await }
    };
    let puts = futures::stream::iter((0..count).map(put)).buffer_unordered(32);
    let refused: Vec<_> = puts.filter_map(|put| async { put.err() }).collect().await;
    assert!(refused.is_empty(), "{refused:?}");
    operator
        .put_election(&election("other"), &Default::default(), Default::default())
        .await
        .unwrap();
    let first = operator.list_elections_after("many/", "", Freshness::Linearizable).await.unwrap();
    assert!(first.more && first.elections.len() < count);
    let all = operator.list_elections("many/", Freshness::Linearizable).await.unwrap();
    let names: Vec<_> = all.elections.into_iter().map(|row| row.name).collect();
    let expected: Vec<_> = (0..count).map(|n| format!("many/{n:04}")).collect();
    assert!(!all.more && names == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bounded_stale_read_says_how_old_it_is_and_works_without_a_leader() {
    let mut rig = Rig::start(3).await;
    let operator = rig.client(Role::Operator);
    operator.put_election(&election("old"), &Default::default(), Default::default()).await.unwrap();
    let survivor = 3;
    let observer = rig.client_of(Role::Observer, &[rig.address(survivor)]);
    let fresh = observer.list_elections("", Freshness::Linearizable).await.unwrap();
    assert_eq!(fresh.stamp.unwrap().age_ms, 0);
    rig.kill(1).await;
    rig.kill(2).await;
    let stale = observer.list_elections("", Freshness::MaxAgeMs(60_000)).await.unwrap();
    assert_eq!(stale.elections.len(), 1);
    assert!(stale.stamp.unwrap().age_ms > 0);
    let brief = observer.with_timeout(Duration::from_millis(1500));
    let refused = brief.list_elections("", Freshness::Linearizable).await.expect_err("no quorum");
    assert!(refused.is_transient(), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_drained_leader_hands_over_before_it_goes() {
    let mut rig = Rig::start(3).await;
    let leader = rig.leader().await;
    let term = rig.node(leader).shell().leadership.status().term;
    rig.nodes[leader as usize - 1].take().unwrap().drain().await;
    let other = (1..=3).find(|id| *id != leader).unwrap();
    let status = rig.node(other).shell().leadership.status();
    assert_eq!(status.term, term + 1, "one election, by hand-over");
    assert!(status.leader.is_some_and(|id| id.0 != leader));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_of_which_a_lasting_task_panics_stops_with_its_name_and_can_be_started_again() {
    let mut rig = Rig::start(1).await;
    let mut node = rig.nodes[0].take().unwrap();
    node.shell().duties.spawn("injected", async { panic!("a defect") });
    let why = tokio::time::timeout(PATIENCE, node.failed()).await.expect("the node says why");
    assert_eq!(why, r#"the task "injected" has panicked: a defect"#);
    node.kill().await;
    rig.restart(1).await.unwrap();
    rig.node(1).ready(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_of_which_a_later_start_is_recorded_stops() {
    let mut rig = Rig::start(3).await;
    let leader = rig.leader().await;
    let victim = (1..=3).find(|id| *id != leader).unwrap();
    // As if a copy of its disk had been started elsewhere.
    let start = rig.node(victim).shell().peers.start();
    let (node, nonce) = (NodeId(victim), Nonce(start.nonce.0 ^ 1));
    let later = Command::RecordBoot { node, disk: start.disk, boot: start.boot + 1, nonce };
    let by = Principal::new(Role::Node, victim.to_string());
    let until = tokio::time::Instant::now() + PATIENCE;
    rig.node(leader).shell().propose(by, None, &later, until).await.unwrap();
    let why = rig.failed(victim).await;
    assert!(why.contains("quarantined") && why.contains("went back in time"), "{why}");
}
