//! A switchover that is announced: the primary checkpoints first, then it is fenced.

use super::bench::*;
use crate::command::Command;
use crate::id::Revision;
use crate::reply::Reply;
use crate::role::{FenceKind, Phase};
use crate::spec::Mode;

const ALL: [&str; 3] = ["a", "b", "c"];
const FIVE_MINUTES: u64 = 300_000;

pub fn announce(bench: &mut Bench, to: Option<&str>) -> Revision {
    let (service, seen, reason) = (service(), bench.role().epoch, "upgrade".to_owned());
    let command = Command::PlanSwitchover { service, to: to.map(name), seen, reason };
    let reply = bench.apply(command);
    assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
    bench.role().operation.unwrap()
}

#[test]
fn the_fence_of_a_switchover_waits_for_the_checkpoint_and_goes_on_under_its_number() {
    let mut bench = Bench::established(spec(Mode::Lease));
    let id = announce(&mut bench, Some("c"));
    bench.decide_for(&ALL, 60_000);
    assert!(bench.proposals().is_empty());
    assert!(bench.lines.iter().any(|line| line.contains("checkpoints first")), "{:?}", bench.lines);
    bench.says("a", |seen| seen.prepared = Some(Revision(id.0 - 1)));
    bench.decide_for(&ALL, 1_000);
    assert!(bench.proposals().is_empty(), "that was for another one");
    bench.says("a", |seen| seen.prepared = Some(id));
    bench.decide_for(&ALL, TICK);
    assert_eq!(bench.proposals(), ["OpenFence"]);
    let fence = bench.role().fence.clone().unwrap();
    assert_eq!(fence.kind, FenceKind::Switchover { to: Some(name("c")) });
    assert_eq!((fence.operation, fence.uncut, fence.fence > id), (id, true, true));
    let phases: Vec<_> = bench.operation().history.iter().map(|(phase, ..)| *phase).collect();
    assert_eq!((phases, bench.role().operation), (vec![Phase::Prepare, Phase::Fence], Some(id)));
}

#[test]
fn a_checkpoint_without_an_end_is_given_up_and_nobody_was_told_anything() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    announce(&mut bench, None);
    let before = bench.role().clone();
    bench.decide_for(&ALL, FIVE_MINUTES - 1_000);
    assert!(bench.proposals().is_empty());
    bench.decide_for(&ALL, 2_000);
    assert_eq!(bench.proposals(), ["CloseFence"]);
    assert_eq!(bench.operation().phase, Phase::GivenUp);
    assert_eq!(bench.role().instances, before.instances);
}

#[test]
fn a_primary_that_dies_while_it_checkpoints_is_failed_over() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    let id = announce(&mut bench, Some("c"));
    bench.says("a", |seen| seen.run = crate::role::observe::Run::Down);
    bench.decide_for(&ALL, TICK);
    assert_eq!(bench.proposals(), ["OpenFence"]);
    let planned = &bench.state.operations()[&(service(), id)];
    assert_eq!(planned.phase, Phase::GivenUp);
    assert!(matches!(bench.operation().kind, FenceKind::Failover { .. }));
}

#[test]
fn another_leader_finds_what_was_announced() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    let id = announce(&mut bench, None);
    bench.decide_for(&ALL, 1_000);
    bench.roles = super::Roles::default();
    bench.says("a", |seen| seen.prepared = Some(id));
    bench.decide_for(&ALL, 1_000);
    assert_eq!(
        (bench.proposals(), bench.role().operation),
        (vec!["OpenFence".to_owned()], Some(id))
    );
}

#[test]
fn while_a_primary_checkpoints_its_set_follows_who_streams() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    announce(&mut bench, None);
    bench.agents.get_mut("c").unwrap().cut = true;
    bench.run(2_000);
    assert_eq!(bench.role().set.clone().unwrap().members, [name("b")].into());
    assert_eq!((bench.operation().phase, bench.open()), (Phase::Prepare, vec!["a"]));
}
