//! Operations that wait for routers.

use super::bench::*;
use super::plans::announce;
use crate::command::Command;
use crate::decide::facts::Routers;
use crate::id::Revision;
use crate::role::{FenceKind, Phase};
use crate::spec::{AwaitRouters, Mode, ServiceSpec};

const ALL: [&str; 3] = ["a", "b", "c"];

fn awaits(percent: u32) -> ServiceSpec {
    let mut spec = spec(Mode::Quorum);
    spec.policy.await_routers = AwaitRouters { percent, within_ms: 2_000 };
    spec
}

/// Announced, and the primary has prepared: what was proposed at the next look.
fn prepared(percent: u32) -> (Bench, Revision) {
    let mut bench = Bench::established(awaits(percent));
    let id = announce(&mut bench, Some("c"));
    bench.says("a", |seen| seen.prepared = Some(id));
    bench.decide_for(&ALL, TICK);
    (bench, id)
}

fn say(bench: &mut Bench, applied: &[u64], silent_nodes: usize) {
    let applied = applied.iter().copied().map(Revision).collect();
    bench.facts.followed(&service(), Routers { applied, silent_nodes });
}

fn closed(bench: &Bench) -> u64 {
    let history = &bench.operation().history;
    history.iter().find(|(phase, ..)| *phase == Phase::Drain).unwrap().1.0
}

#[test]
fn the_routes_close_before_the_fence_which_waits_for_the_share_of_routers() {
    let (mut bench, id) = prepared(60);
    assert_eq!(bench.proposals(), ["CloseRoutes"]);
    let role = bench.role().clone();
    assert_eq!((role.routes_open, role.fence.is_none(), role.operation), (false, true, Some(id)));
    assert_eq!(role.instances[&name("a")].directive.revision, role.epoch.revision, "it serves on");
    let closed = closed(&bench);
    bench.decide_for(&ALL, 500);
    assert!(bench.proposals().is_empty(), "nobody has said who follows");
    say(&mut bench, &[closed, closed - 1, closed - 1], 0);
    bench.decide_for(&ALL, 500);
    assert!(bench.proposals().is_empty());
    assert!(bench.lines.iter().any(|line| line.contains("1 of 3 routers")), "{:?}", bench.lines);
    say(&mut bench, &[closed, closed + 1, closed - 1], 0);
    bench.decide_for(&ALL, TICK);
    assert_eq!(bench.proposals(), ["OpenFence"]);
    let kind = bench.role().fence.clone().unwrap().kind;
    assert_eq!(kind, FenceKind::Switchover { to: Some(name("c")) });
    assert_eq!(bench.role().operation, Some(id));
}

#[test]
fn who_does_not_say_is_waited_for_no_longer_than_the_policy_has_it() {
    for applied in [&[1, 1][..], &[]] {
        let (mut bench, _) = prepared(100);
        bench.proposals();
        // With a node that does not answer nobody knows how many there are.
        say(&mut bench, applied, 1);
        bench.decide_for(&ALL, 1_900);
        assert!(bench.proposals().is_empty());
        bench.decide_for(&ALL, 200);
        assert_eq!(bench.proposals(), ["OpenFence"]);
    }
}

#[test]
fn with_nobody_who_follows_nothing_is_waited_for() {
    let (mut bench, _) = prepared(100);
    say(&mut bench, &[], 0);
    bench.decide_for(&ALL, TICK);
    assert_eq!(bench.proposals(), ["CloseRoutes", "OpenFence"]);
}

#[test]
fn a_switchover_that_is_given_up_lets_routers_in_again() {
    let (mut bench, id) = prepared(100);
    let reason = "no".to_owned();
    bench.apply(Command::CloseFence { service: service(), fence: id, reason });
    assert_eq!((bench.role().routes_open, bench.operation().phase), (true, Phase::GivenUp));
    bench.proposals();
    bench.decide_for(&ALL, 3_000);
    assert!(bench.proposals().is_empty());
}

#[test]
fn a_primary_that_dies_while_routers_leave_is_failed_over() {
    let (mut bench, id) = prepared(100);
    bench.proposals();
    bench.says("a", |seen| seen.run = crate::role::observe::Run::Down);
    bench.decide_for(&ALL, TICK);
    assert_eq!(bench.proposals(), ["OpenFence"]);
    assert_eq!(bench.state.operations()[&(service(), id)].phase, Phase::GivenUp);
    assert!(matches!(bench.operation().kind, FenceKind::Failover { .. }));
}

#[test]
fn a_whole_switchover_is_done_when_routers_send_to_the_new_primary() {
    let (mut bench, _) = prepared(100);
    bench.facts.followed_only(|_| false);
    let until = bench.now + 10_000;
    while bench.operation().phase != Phase::Repair {
        assert!(bench.now < until, "{:?}", bench.lines);
        bench.tick();
    }
    assert_eq!((bench.holder(), bench.role().routes_open), ("c", true));
    let promoted = bench.role().promoted.unwrap().revision.0;
    say(&mut bench, &[promoted - 1], 0);
    bench.run(1_000);
    assert_eq!(bench.operation().phase, Phase::Repair);
    say(&mut bench, &[promoted], 0);
    bench.run(1_000);
    assert_eq!(bench.operation().phase, Phase::Done);
}

#[test]
fn closed_routes_are_opened_again_when_the_fence_cannot_come() {
    let (mut bench, _) = prepared(100);
    bench.proposals();
    // Its agent says nothing any more, while both standbys stream from it: nobody may say that it is
    // gone, and nobody could tell it to stop.
    bench.decide_for(&["b", "c"], 4_500);
    assert_eq!(bench.proposals(), ["CloseFence"], "{:?}", bench.lines);
    assert_eq!((bench.role().routes_open, bench.operation().phase), (true, Phase::GivenUp));
}

#[test]
fn another_leader_waits_for_what_is_left_and_no_longer_than_that_again() {
    let (mut bench, id) = prepared(100);
    bench.decide_for(&ALL, 1_000);
    bench.proposals();
    bench.roles = super::Roles::default();
    bench.decide_for(&ALL, 1_900);
    assert!(bench.proposals().is_empty());
    bench.decide_for(&ALL, 500);
    assert_eq!(
        (bench.proposals(), bench.role().operation),
        (vec!["OpenFence".to_owned()], Some(id))
    );
}

#[test]
fn a_policy_that_awaits_nobody_any_more_ends_the_wait() {
    let (mut bench, _) = prepared(100);
    bench.proposals();
    bench.put(awaits(0));
    bench.decide_for(&ALL, 2 * TICK);
    assert!(bench.proposals().contains(&"OpenFence".to_owned()));
}
