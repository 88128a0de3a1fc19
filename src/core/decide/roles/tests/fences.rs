//! An open fence, driven by receipts.

use super::bench::*;
use crate::command::Command;
use crate::decide::roles::expected;
use crate::reply::Reply;
use crate::role::{CompleteProof, FenceKind, OutProof, Phase, Proof};
use crate::spec::{Mode, OnViolation};
use crate::state::version::PREPARE_LEVEL;

const ALL: [&str; 3] = ["a", "b", "c"];
const OTHERS: [&str; 2] = ["b", "c"];

fn failing(mode: Mode, violation: OnViolation) -> Bench {
    let mut spec = spec(mode);
    spec.policy.loss_bound.on_violation = violation;
    let mut bench = Bench::established(spec);
    bench.open_fence(FenceKind::Failover { verdict: "operator".into(), to: None });
    bench
}

fn answer(bench: &mut Bench, granted: bool) {
    let approval = bench.operation().approval.as_ref().unwrap().id;
    let (service, reason) = (service(), "yes".to_owned());
    let reply = bench.apply(Command::AnswerApproval { service, approval, granted, reason });
    assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
}

#[test]
fn standbys_are_cut_when_the_primary_has_resigned_and_not_before() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    bench.switchover(Some("c"));
    bench.decide_for(&ALL, 1_000);
    assert!(bench.proposals().is_empty());
    bench.receipt("a", Proof::Resigned, Some(100_000), true);
    assert!(!bench.role().fence.as_ref().unwrap().uncut, "the resignation is the cut");
    bench.decide_for(&ALL, 400);
    assert!(bench.proposals().is_empty(), "c is waited for");
    // b has all of it; c was asked for and is on its way.
    bench.receipt("b", Proof::Recruited, Some(100_000), true);
    bench.decide_for(&ALL, 1_000);
    assert!(bench.proposals().is_empty());
    bench.receipt("c", Proof::Recruited, Some(100_000), true);
    bench.decide_for(&ALL, TICK);
    assert_eq!((bench.proposals(), bench.holder()), (vec!["GrantRole".to_owned()], "c"));
}

#[test]
fn who_is_expected_is_who_is_granted_where_all_hold_the_same() {
    let told = |bench: &Bench| expected(&spec(Mode::Quorum), bench.role()).map(ToString::to_string);
    for to in [Some("c"), None] {
        let mut bench = Bench::established(spec(Mode::Quorum));
        assert_eq!(told(&bench), None, "nothing is open");
        bench.switchover(to);
        let next = to.unwrap_or("b");
        assert_eq!(told(&bench).as_deref(), Some(next));
        bench.receipt("a", Proof::Resigned, Some(100_000), true);
        for other in OTHERS {
            bench.receipt(other, Proof::Recruited, Some(100_000), true);
        }
        bench.decide_for(&ALL, TICK);
        assert_eq!(bench.holder(), next);
    }
    let bench = failing(Mode::Quorum, OnViolation::Refuse);
    assert_eq!(told(&bench).as_deref(), Some("b"));
}

#[test]
fn below_the_level_of_that_the_leader_cuts_them_by_an_entry_of_its_own() {
    let mut bench = Bench::established_at(spec(Mode::Quorum), PREPARE_LEVEL - 1);
    bench.switchover(Some("c"));
    bench.receipt("a", Proof::Resigned, Some(100_000), true);
    assert!(bench.role().fence.as_ref().unwrap().uncut);
    bench.decide_for(&ALL, TICK);
    assert_eq!(bench.proposals(), ["CutStandbys"]);
}

#[test]
fn stragglers_of_a_switchover_are_waited_for_from_its_cut_on() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    bench.switchover(None);
    bench.decide_for(&ALL, 1_000);
    bench.receipt("a", Proof::Resigned, Some(100_000), true);
    bench.receipt("b", Proof::Recruited, Some(100_000), true);
    bench.decide_for(&ALL, 100);
    assert!(bench.proposals().is_empty(), "a set of the old primary alone");
    bench.receipt("c", Proof::Recruited, Some(100_000), true);
    bench.decide_for(&ALL, TICK);
    assert_eq!(bench.proposals(), ["GrantRole"]);
    let set = bench.role().set.clone().unwrap();
    assert!(["b", "c"].iter().any(|one| set.members.contains(&name(one))), "{set}");
}

#[test]
fn a_switchover_ends_one_way_or_the_other_if_the_primary_does_not_resign() {
    let mut crashed = Bench::established(spec(Mode::Quorum));
    crashed.switchover(None);
    crashed.receipt("a", Proof::Stopped, None, true);
    crashed.decide_for(&ALL, TICK);
    assert_eq!(crashed.proposals(), ["TakeOverFence"]);

    let mut slow = Bench::established(spec(Mode::Quorum));
    slow.switchover(None);
    slow.decide_for(&ALL, 20_000);
    assert!(slow.proposals().is_empty());
    slow.decide_for(&ALL, 100);
    assert_eq!(slow.proposals()[0], "CloseFence");
    assert_eq!((slow.holder(), slow.operation().phase), ("a", Phase::GivenUp));
}

#[test]
fn out_and_complete_are_both_needed_and_who_holds_most_is_granted() {
    let mut bench = failing(Mode::Quorum, OnViolation::Ask);
    bench.receipt("b", Proof::Recruited, Some(90_000), true);
    bench.decide_for(&OTHERS, 1_000);
    assert!(bench.proposals().is_empty(), "one of two is no quorum");
    bench.receipt("c", Proof::Detached, None, true);
    bench.decide_for(&OTHERS, 500);
    assert!(bench.proposals().is_empty(), "out, and what c holds is not known");
    bench.receipt("c", Proof::Recruited, Some(90_001), true);
    bench.decide_for(&OTHERS, TICK);
    assert_eq!((bench.proposals(), bench.holder()), (vec!["GrantRole".to_owned()], "c"));
    assert_eq!(bench.operation().out, Some(OutProof::QuorumRevoked));
    assert_eq!(bench.operation().loss.ms, Some(0));
}

#[test]
fn stragglers_are_waited_for_a_moment() {
    let mut alone = failing(Mode::Lease, OnViolation::Ask);
    alone.receipt("a", Proof::Stopped, None, true);
    alone.receipt("b", Proof::Recruited, Some(90_000), true);
    alone.decide_for(&OTHERS, 150);
    assert!(alone.proposals().is_empty());
    alone.decide_for(&OTHERS, 100);
    assert_eq!((alone.proposals(), alone.holder()), (vec!["GrantRole".to_owned()], "b"));

    let mut better = failing(Mode::Lease, OnViolation::Ask);
    better.receipt("a", Proof::Stopped, None, true);
    better.receipt("b", Proof::Recruited, Some(90_000), true);
    better.decide_for(&OTHERS, 100);
    better.receipt("c", Proof::Recruited, Some(90_001), true);
    better.decide_for(&OTHERS, TICK);
    assert_eq!(better.holder(), "c");
}

#[test]
fn people_are_asked_once_about_the_best_after_proofs_had_time_if_the_policy_says_so() {
    for (violation, asks) in [(OnViolation::Ask, true), (OnViolation::Refuse, false)] {
        let mut bench = failing(Mode::Lease, violation);
        bench.receipt("b", Proof::Recruited, Some(90_000), true);
        bench.receipt("c", Proof::Recruited, Some(90_001), true);
        bench.decide_for(&OTHERS, 8_000);
        assert!(bench.proposals().is_empty(), "a lapse may come yet");
        bench.decide_for(&OTHERS, 60_000);
        let want = if asks { vec!["OpenApproval".to_owned()] } else { Vec::new() };
        assert_eq!(bench.proposals(), want);
        assert!(bench.lines.len() < 8, "{:#?}", bench.lines);
        if !asks {
            continue;
        }
        assert_eq!(bench.operation().approval.as_ref().unwrap().candidate, name("c"));
        answer(&mut bench, true);
        bench.decide_for(&OTHERS, TICK);
        assert_eq!((bench.proposals(), bench.holder()), (vec!["GrantRole".to_owned()], "c"));
    }
}

#[test]
fn a_denial_stands_and_nobody_else_is_asked_about() {
    let mut bench = failing(Mode::Lease, OnViolation::Ask);
    bench.receipt("b", Proof::Recruited, Some(90_000), true);
    bench.receipt("c", Proof::Recruited, Some(90_001), true);
    bench.decide_for(&OTHERS, 9_000);
    answer(&mut bench, false);
    bench.proposals();
    bench.decide_for(&OTHERS, 60_000);
    assert!(bench.proposals().is_empty());
}

#[test]
fn a_loss_stands_still_once_the_old_primary_is_out_so_that_people_have_time_to_answer() {
    let mut spec = spec(Mode::Lease);
    spec.policy.loss_bound.max_ms = 0;
    let mut bench = Bench::established(spec);
    bench.open_fence(FenceKind::Failover { verdict: "operator".into(), to: None });
    bench.now += 400;
    bench.receipt("a", Proof::Stopped, None, true);
    bench.receipt("b", Proof::Recruited, Some(90_000), true);
    bench.receipt("c", Proof::Recruited, Some(90_001), true);
    bench.decide_for(&OTHERS, 9_000);
    assert_eq!(bench.proposals(), ["OpenApproval"]);
    let asked = bench.operation().approval.as_ref().unwrap().loss;
    assert_eq!(asked.ms, Some(400), "from the last watermark to the stop, on its own clock");
    bench.decide_for(&OTHERS, 60_000);
    answer(&mut bench, true);
    bench.decide_for(&OTHERS, TICK);
    assert_eq!((bench.proposals(), bench.holder()), (vec!["GrantRole".to_owned()], "c"));
}

fn wished(mode: Mode, to: &str) -> Bench {
    let mut bench = Bench::established(spec(mode));
    let to = Some(name(to));
    bench.open_fence(FenceKind::Failover { verdict: "operator".into(), to });
    bench.receipt("a", Proof::Stopped, None, true);
    bench.receipt("b", Proof::Recruited, Some(100_000), true);
    bench
}

#[test]
fn who_is_wished_for_in_a_failover_is_waited_for_and_taken_before_an_equal() {
    let mut bench = wished(Mode::Lease, "c");
    bench.decide_for(&OTHERS, 2_000);
    assert!(bench.proposals().is_empty(), "c is on its way");
    bench.receipt("c", Proof::Recruited, Some(100_000), true);
    bench.decide_for(&OTHERS, TICK);
    assert_eq!((bench.proposals(), bench.holder()), (vec!["GrantRole".to_owned()], "c"));
}

#[test]
fn who_is_wished_for_and_does_not_come_is_not_waited_for_long() {
    let mut bench = wished(Mode::Lease, "c");
    bench.decide_for(&OTHERS, 4_000);
    assert_eq!((bench.proposals()[0].as_str(), bench.holder()), ("GrantRole", "b"));
    // One that is not even heard of, not at all.
    let mut bench = wished(Mode::Lease, "c");
    bench.decide_for(&["b"], 1_000);
    assert_eq!((bench.proposals()[0].as_str(), bench.holder()), ("GrantRole", "b"));
}

#[test]
fn a_wish_never_costs_an_acknowledged_row() {
    let behind = || {
        let mut bench = wished(Mode::Quorum, "c");
        bench.receipt("c", Proof::Recruited, Some(90_000), true);
        bench.decide_for(&OTHERS, TICK);
        assert_eq!((bench.proposals(), bench.holder()), (vec!["OrderFetch".to_owned()], "a"));
        bench
    };
    // What it fetches in time counts.
    let mut bench = behind();
    bench.receipt("c", Proof::Recruited, Some(100_000), true);
    bench.decide_for(&OTHERS, TICK);
    assert_eq!((bench.proposals(), bench.holder()), (vec!["GrantRole".to_owned()], "c"));
    assert_eq!(bench.operation().complete, Some(CompleteProof::Recruits));
    // The wish is not waited for longer than anybody's else.
    let mut bench = behind();
    bench.decide_for(&OTHERS, 3_100);
    assert_eq!((bench.proposals(), bench.holder()), (vec!["GrantRole".to_owned()], "b"));
    assert_eq!(bench.operation().complete, Some(CompleteProof::Recruits));
}

#[test]
fn a_wish_for_whoever_cannot_be_primary_is_refused_and_nothing_is_fenced() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    for (wished, why) in [("a", "a is the primary already"), ("d", "d is not declared")] {
        let kind = FenceKind::Failover { verdict: "operator".into(), to: Some(name(wished)) };
        let (seen, reason) = (bench.role().epoch, "a test".to_owned());
        let reply = bench.apply(Command::OpenFence { service: service(), kind, seen, reason });
        let Reply::Rejected(refused) = reply else { panic!("{wished}: {reply:?}") };
        assert!(refused.to_string().contains(why), "{refused}");
        assert!(bench.role().fence.is_none());
    }
}
