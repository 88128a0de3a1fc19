//! From beginning to end: agents that do what the core says, and a leader that decides.

use super::bench::*;
use crate::role::Phase;
use crate::spec::Mode;

#[test]
fn the_first_grant_goes_to_who_is_out_of_recovery_and_the_others_follow() {
    for mode in [Mode::Quorum, Mode::Lease] {
        let bench = Bench::established(spec(mode));
        assert_eq!((bench.open(), bench.streaming()), (vec!["a"], vec!["b", "c"]), "{mode:?}");
    }
}

#[test]
fn a_silent_primary_is_replaced_within_a_second_and_a_half_and_rejoins_when_it_is_back() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    let before = bench.role().epoch;
    bench.agents.get_mut("a").unwrap().cut = true;
    let began = bench.now;
    while bench.open() != ["b"] {
        bench.tick();
        assert!(bench.now - began < 1_500, "{:#?}", bench.lines);
    }
    assert!(bench.role().epoch > before);
    bench.quiesce();
    assert_eq!((bench.open(), bench.streaming()), (vec!["b"], vec!["c"]));
    assert_eq!(bench.operation().phase, Phase::Repair, "a is missed");
    let set = bench.role().set.as_ref().unwrap();
    assert!(set.members.iter().eq([&name("c")]), "{set}");

    bench.agents.get_mut("a").unwrap().cut = false;
    bench.quiesce();
    assert_eq!((bench.open(), bench.streaming()), (vec!["b"], vec!["a", "c"]));
    assert_eq!(bench.operation().phase, Phase::Done);
    assert_eq!(bench.role().set.as_ref().unwrap().members.len(), 2, "it counts again");
}

#[test]
fn a_switchover_goes_to_who_was_asked_for_and_the_old_primary_follows() {
    for mode in [Mode::Quorum, Mode::Lease] {
        let mut bench = Bench::established(spec(mode));
        bench.switchover(Some("c"));
        bench.quiesce();
        assert_eq!((bench.open(), bench.streaming()), (vec!["c"], vec!["a", "b"]), "{mode:?}");
        assert_eq!(bench.operation().phase, Phase::Done);
        bench.switchover(Some("a"));
        bench.quiesce();
        assert_eq!((bench.open(), bench.streaming()), (vec!["a"], vec!["b", "c"]), "{mode:?}");
    }
}

#[test]
fn a_switchover_whose_primary_vanishes_becomes_a_failover() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    bench.agents.get_mut("a").unwrap().cut = true;
    bench.switchover(Some("c"));
    bench.quiesce();
    assert!(bench.proposed.contains(&"TakeOverFence".to_owned()), "{:?}", bench.proposed);
    assert_ne!(bench.holder(), "a");
    assert_eq!(bench.open(), [bench.holder()]);
}

#[test]
fn a_primary_that_stopped_for_nothing_is_granted_again_after_5_s() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    // Both standbys are cut off just when somebody asks for a failover.
    for who in ["b", "c"] {
        bench.agents.get_mut(who).unwrap().cut = true;
    }
    bench.open_fence(crate::role::FenceKind::Failover { verdict: "operator".into(), to: None });
    let before = bench.role().epoch;
    bench.run(4_900);
    assert_eq!((bench.role().epoch, bench.open()), (before, vec![]));
    bench.run(2_000);
    assert!(bench.role().epoch > before, "{:#?}", bench.lines);
    for who in ["b", "c"] {
        bench.agents.get_mut(who).unwrap().cut = false;
    }
    bench.quiesce();
    assert_eq!((bench.open(), bench.streaming()), (vec!["a"], vec!["b", "c"]));
}

/// `b` is never promoted, `c` could be and is behind it when `a` dies.
fn ahead_is_never_promoted() -> Bench {
    let mut spec = spec(Mode::Quorum);
    spec.instances[1].priority = 0;
    let mut bench = Bench::established(spec);
    bench.agents.get_mut("c").unwrap().starves = true;
    bench.run(500);
    bench.agents.get_mut("a").unwrap().cut = true;
    bench
}

#[test]
fn a_candidate_behind_a_recruit_that_is_never_promoted_fetches_from_it_and_loses_nothing() {
    let mut bench = ahead_is_never_promoted();
    bench.run(400);
    bench.agents.get_mut("c").unwrap().starves = false;
    bench.run(1_500);
    assert_eq!(bench.open(), ["c"], "{:#?}", bench.lines);
    assert!(bench.proposed.contains(&"OrderFetch".to_owned()), "{:?}", bench.proposed);
    assert!(bench.operation().approval.is_none(), "nobody had to be asked");
    bench.agents.get_mut("a").unwrap().cut = false;
    bench.quiesce();
    assert_eq!((bench.open(), bench.streaming()), (vec!["c"], vec!["a", "b"]));
}

#[test]
fn a_fetch_that_brings_nothing_for_3_s_is_given_up_and_people_are_asked() {
    let mut bench = ahead_is_never_promoted();
    bench.run(3_000);
    assert!(bench.operation().approval.is_none(), "it still tries");
    bench.run(4_000);
    let approval = bench.operation().approval.clone().unwrap();
    assert_eq!(approval.candidate, name("c"), "{:#?}", bench.lines);
    assert_eq!(bench.proposed.iter().filter(|it| *it == "OrderFetch").count(), 1);
}
