//! What the topology service answers.

use regent_core::authz::Role;
use regent_core::command::Expect;
use regent_core::id::{Epoch, InstanceName, PartitionName, Revision};
use regent_core::spec::{Mode, Policy, ServiceSpec, TopologyKind};

use super::rig::Rig;

fn carts() -> ServiceSpec {
    ServiceSpec {
        name: "carts".parse().unwrap(),
        topology: TopologyKind::ActiveActive,
        partitions: vec!["p1".parse().unwrap()],
        policy: Policy::default_for(Mode::Lease),
        ..super::figures::service()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_assigned_partition_is_answered_with_the_epoch_that_the_next_assignment_names() {
    let rig = Rig::start(1).await;
    let operator = rig.client(Role::Operator);
    let spec = carts();
    operator.apply_service(&spec, Expect::Any, false).await.unwrap();
    let partition: PartitionName = "p1".parse().unwrap();
    let to = |name: &str| -> InstanceName { name.parse().unwrap() };
    let none = Epoch { incarnation: 0, revision: Revision(0) };
    let first = operator.assign_partition(&spec.name, &partition, Some(&to("a")), none).await;
    let first = first.unwrap();
    let epoch = first.epoch.unwrap();
    assert_eq!(epoch.revision, first.stamp.unwrap().revision);

    let stale = operator.assign_partition(&spec.name, &partition, Some(&to("b")), none).await;
    stale.expect_err("another epoch is in force");
    let seen = Epoch { incarnation: epoch.incarnation, revision: Revision(epoch.revision) };
    let second = operator.assign_partition(&spec.name, &partition, None, seen).await.unwrap();
    assert!(second.epoch.unwrap().revision > epoch.revision);
}
