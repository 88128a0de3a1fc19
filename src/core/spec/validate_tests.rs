//! Each rule of a declaration, by the field that it names.

use super::super::*;
use crate::timing::Timing;

fn instance(name: &str, zone: &str) -> InstanceSpec {
    InstanceSpec {
        name: name.parse().expect("a name"),
        locality: Locality { region: "eu".into(), zone: zone.into(), host: name.into() },
        address: format!("{name}.example.org:5432"),
        priority: 1,
    }
}

fn service(mode: Mode, zones: &[&str]) -> ServiceSpec {
    let names = ["a", "b", "c", "d", "e"];
    ServiceSpec {
        name: "orders".parse().expect("a name"),
        description: "orders of the shop".into(),
        engine: Engine::Postgres,
        topology: TopologyKind::ActivePassive,
        instances: zones.iter().zip(names).map(|(zone, name)| instance(name, zone)).collect(),
        partitions: Vec::new(),
        policy: Policy::default_for(mode),
    }
}

fn fields(spec: &ServiceSpec) -> Vec<String> {
    let problems = spec.validate(&Timing::LAN);
    for problem in &problems {
        assert!(!problem.problem.is_empty() && !problem.fix.is_empty(), "{problem}");
    }
    problems.into_iter().map(|problem| problem.field).collect()
}

/// Changes a sound service and expects problems with exactly these fields.
fn expect(change: impl FnOnce(&mut ServiceSpec), want: &[&str]) {
    let mut spec = service(Mode::Quorum, &["z1", "z2", "z3"]);
    change(&mut spec);
    assert_eq!(fields(&spec), want);
}

#[test]
fn three_instances_in_three_zones_with_one_acknowledgement_pass_in_both_modes() {
    for mode in [Mode::Quorum, Mode::Lease] {
        for survive in [Survive::Instance, Survive::Zone] {
            let mut spec = service(mode, &["z1", "z2", "z3"]);
            spec.policy.survive = survive;
            assert_eq!(spec.validate(&Timing::LAN), []);
            assert_eq!(spec.warnings(), []);
        }
    }
}

#[test]
fn every_problem_is_named_at_once() {
    let mut spec = service(Mode::Quorum, &["z1", "z2", "z3"]);
    spec.instances[1].address = "nowhere".into();
    spec.instances[2].name = spec.instances[0].name.clone();
    spec.partitions = vec!["p1".parse().expect("a name")];
    spec.policy.sync_standbys = 0;
    spec.policy.ttl_ms = 100;
    assert_eq!(
        fields(&spec),
        [
            "instances[1].address",
            "instances[2].name",
            "partitions",
            "policy.sync_standbys",
            "policy.min_sync_standbys",
            "policy.ttl_ms"
        ]
    );
}

#[test]
fn instances_are_checked_one_by_one() {
    expect(|spec| spec.instances.clear(), &["instances", "policy.sync_standbys"]);
    expect(
        |spec| spec.instances[2].address = spec.instances[1].address.clone(),
        &["instances[2].address"],
    );
    expect(
        |spec| spec.instances[1].locality.zone = "x".repeat(200),
        &["instances[1].locality.zone"],
    );
    expect(|spec| spec.instances[1].locality.host = "a\nb".into(), &["instances[1].locality.host"]);
    expect(|spec| spec.instances.iter_mut().for_each(|one| one.priority = 0), &["instances"]);
    expect(
        |spec| {
            spec.instances = (0..65).map(|n| instance(&format!("i{n}"), "z1")).collect();
        },
        &["instances"],
    );
    expect(|spec| spec.description = "x".repeat(2_000), &["description"]);
}

#[test]
fn an_address_is_a_host_and_a_port() {
    for good in ["db1:5432", "10.0.0.1:1", "[::1]:65535", "a.b_c.example.org.:5432"] {
        expect(|spec| spec.instances[1].address = good.into(), &[]);
    }
    let bad = [
        "",
        ":",
        "db1",
        "db1:",
        "db1:0",
        "db1:65536",
        "db1:+5",
        "db1:5432x",
        ":5432",
        "[::1]",
        "[::g]:1",
        "::1:5432",
        "a b:1",
        "-a:1",
        "a..b:1",
        "a/b:1",
        "http://a:1",
    ];
    for bad in bad {
        expect(|spec| spec.instances[1].address = bad.into(), &["instances[1].address"]);
    }
}

#[test]
fn partitions_belong_to_active_active_services_only() {
    let name = |text: &str| text.parse::<PartitionName>().expect("a name");
    expect(|spec| spec.topology = TopologyKind::ActiveActive, &["partitions"]);
    expect(|spec| spec.partitions = vec![name("p1")], &["partitions"]);
    expect(
        |spec| {
            spec.topology = TopologyKind::ActiveActive;
            spec.partitions = vec![name("p1"), name("p2"), name("p1")];
        },
        &["partitions[2]"],
    );
    expect(
        |spec| {
            spec.topology = TopologyKind::ActiveActive;
            spec.partitions = vec![name("p1"), name("p2")];
        },
        &[],
    );
}

#[test]
fn the_sync_set_must_be_possible() {
    expect(|spec| spec.policy.sync_standbys = 3, &["policy.sync_standbys"]);
    expect(|spec| spec.policy.min_sync_standbys = 2, &["policy.min_sync_standbys"]);
    expect(|spec| spec.policy.min_sync_standbys = 0, &["policy.min_sync_standbys"]);
    expect(|spec| spec.policy.sync_standbys = u32::MAX, &["policy.sync_standbys"]);
    let mut lease = service(Mode::Lease, &["z1", "z2"]);
    lease.policy.sync_standbys = 1;
    lease.policy.on_too_few_sync = TooFewSync::Degrade;
    assert_eq!(fields(&lease), ["policy.sync_standbys", "policy.on_too_few_sync"]);
}

#[test]
fn an_exec_engine_is_refused_what_it_cannot_prove() {
    expect(|spec| spec.engine = Engine::Exec, &["policy.mode"]);
    let mut lease = service(Mode::Lease, &["z1", "z2"]);
    lease.engine = Engine::Exec;
    assert_eq!(fields(&lease), [""; 0]);
    lease.policy.on_coordinator_loss = CoordinatorLoss::Hold;
    assert_eq!(fields(&lease), ["policy.on_coordinator_loss"]);
}

#[test]
fn a_ttl_must_outlast_a_change_of_leader() {
    let spec = service(Mode::Lease, &["z1", "z2"]);
    let problems = spec.validate(&Timing::WAN);
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].field, "policy.ttl_ms");
    let least = Timing::WAN.least_ttl_ms(250);
    assert_eq!(problems[0].fix, format!("use at least {least}"));
    let mut fixed = spec;
    fixed.policy.ttl_ms = least;
    assert_eq!(fixed.validate(&Timing::WAN), []);
    expect(|spec| spec.policy.ttl_ms = u64::MAX, &["policy.ttl_ms"]);
    expect(|spec| spec.policy.ttl_ms = 0, &["policy.ttl_ms"]);
    expect(|spec| spec.policy.restart_grace_ms = u64::MAX, &["policy.restart_grace_ms"]);
}

#[test]
fn a_survival_goal_is_checked_for_each_primary_and_each_loss() {
    let zone = |zones: &[&str], k, k_min| {
        let mut spec = service(Mode::Quorum, zones);
        spec.policy.survive = Survive::Zone;
        spec.policy.sync_standbys = k;
        spec.policy.min_sync_standbys = k_min;
        fields(&spec)
    };
    assert_eq!(zone(&["z1", "z2", "z3"], 1, 1), [""; 0]);
    // Primary a is lost with b: of {b, c, d} two must be reached, but only one acknowledged.
    assert_eq!(zone(&["z1", "z1", "z2", "z3"], 1, 1), ["policy.survive"]);
    assert_eq!(zone(&["z1", "z1", "z2", "z3"], 2, 1), [""; 0]);
    // Losing z2 leaves a one standby; two must acknowledge.
    assert_eq!(zone(&["z1", "z2", "z3"], 2, 2).len(), 3);
    // All in one zone: nobody is left, and nobody can be recruited.
    assert_eq!(zone(&["z1", "z1", "z1"], 1, 1), ["policy.survive"; 2]);
    // A service of two passes with a warning.
    assert_eq!(zone(&["z1", "z2"], 1, 1), [""; 0]);
    assert_eq!(service(Mode::Quorum, &["z1", "z2"]).warnings()[0].field, "instances");
    // Somebody's zone is not said.
    assert_eq!(zone(&["z1", "", "z3"], 1, 1), ["instances[1].locality.zone"]);
}

#[test]
fn a_survival_goal_needs_a_failover_that_reaches_as_far() {
    expect(
        |spec| {
            spec.policy.survive = Survive::Zone;
            spec.policy.max_failover_scope = Scope::Zone;
        },
        &["policy.max_failover_scope"],
    );
    expect(
        |spec| {
            for (at, one) in spec.instances.iter_mut().enumerate() {
                one.locality.region = format!("r{at}");
            }
            spec.policy.survive = Survive::Region;
        },
        &["policy.max_failover_scope"],
    );
    expect(
        |spec| {
            for (at, one) in spec.instances.iter_mut().enumerate() {
                one.locality.region = format!("r{at}");
                // The same zone name in another region is another zone.
                one.locality.zone = "z".into();
            }
            spec.policy.survive = Survive::Region;
            spec.policy.max_failover_scope = Scope::Any;
        },
        &[],
    );
}

#[test]
fn an_instance_that_is_never_promoted_does_not_count_as_a_way_out() {
    let mut spec = service(Mode::Lease, &["z1", "z2"]);
    spec.policy.survive = Survive::Zone;
    spec.instances[1].priority = 0;
    assert_eq!(fields(&spec), ["policy.survive"]);
}

#[test]
fn the_defaults_are_those_of_the_protocol() {
    let quorum = Policy::default_for(Mode::Quorum);
    assert_eq!(quorum.on_coordinator_loss, CoordinatorLoss::Hold);
    assert_eq!((quorum.loss_bound.max_ms, quorum.loss_bound.max_bytes), (0, 0));
    let lease = Policy::default_for(Mode::Lease);
    assert_eq!(lease.on_coordinator_loss, CoordinatorLoss::Stop);
    assert_eq!(lease.loss_bound.max_ms, 3_600);
    assert_eq!(lease.loss_bound.on_violation, OnViolation::Ask);
}

#[test]
fn a_bound_that_promises_less_than_it_seems_is_warned_of() {
    let mut spec = service(Mode::Lease, &["z1", "z2"]);
    spec.policy.loss_bound.max_ms = 1_000;
    spec.policy.loss_bound.on_violation = OnViolation::Accept;
    let warned: Vec<_> = spec.warnings().into_iter().map(|one| one.field).collect();
    assert_eq!(warned, ["policy.loss_bound.max_ms", "policy.loss_bound.on_violation"]);
}

#[test]
fn in_lease_mode_nothing_can_be_held() {
    let mut spec = service(Mode::Lease, &["z1", "z2"]);
    assert_eq!(fields(&spec), [""; 0]);
    spec.policy.on_coordinator_loss = CoordinatorLoss::Hold;
    assert_eq!(fields(&spec), ["policy.on_coordinator_loss"]);
}
