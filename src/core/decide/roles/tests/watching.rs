//! A holder without a fence: when one is opened, and how its sync set follows who streams.

use super::bench::*;
use crate::command::Command;
use crate::role::observe::{Canary, Observation, Probe, Run, Sight};
use crate::role::{FenceKind, Phase, Proof};
use crate::spec::{Mode, TooFewSync};

const ALL: [&str; 3] = ["a", "b", "c"];

fn dead(seen: &mut Observation) {
    seen.run = Run::Down;
    seen.senders.clear();
}

fn pause(bench: &mut Bench, paused: bool) {
    let (service, reason) = (service(), "by hand".to_owned());
    bench.apply(Command::SetPause { service, paused, reason });
}

#[test]
fn a_paused_service_is_left_alone_until_it_is_resumed() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    pause(&mut bench, true);
    bench.says("a", dead);
    bench.decide_for(&ALL, 5_000);
    assert!(bench.proposals().is_empty());
    assert!(bench.lines.iter().any(|line| line.contains("paused")), "{:?}", bench.lines);
    pause(&mut bench, false);
    bench.decide_for(&ALL, TICK);
    assert_eq!(bench.proposals(), ["OpenFence"]);

    let mut first = Bench::new(spec(Mode::Quorum));
    pause(&mut first, true);
    first.decide_for(&[], 5_000);
    assert!(first.proposals().is_empty());
}

#[test]
fn a_fence_is_opened_only_if_somebody_could_follow() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    bench.says("a", dead);
    bench.decide_for(&["a", "b"], 5_000);
    // c was fresh for its last 600 ms, so look at what happens with it silent from the start.
    let mut alone = Bench::established(spec(Mode::Quorum));
    alone.decide_for(&["a", "b"], 700);
    alone.proposals();
    alone.says("a", dead);
    alone.decide_for(&["a", "b"], 5_000);
    assert!(alone.proposals().is_empty(), "two of two must be reached");
    assert!(alone.lines.iter().any(|line| line.contains("must be reached")), "{:?}", alone.lines);
    assert!(alone.lines.len() < 4, "{:#?}", alone.lines);
    alone.decide_for(&ALL, TICK);
    assert_eq!(alone.proposals(), ["OpenFence"]);
    assert_eq!(bench.proposals(), ["OpenFence"]);

    let mut lease = Bench::established(spec(Mode::Lease));
    lease.decide_for(&["a"], 700);
    lease.says("a", dead);
    lease.decide_for(&["a"], 5_000);
    assert!(lease.proposals().is_empty(), "nobody to follow");
    lease.decide_for(&["a", "c"], TICK);
    assert_eq!(lease.proposals(), ["OpenFence"]);
}

#[test]
fn a_dead_primary_that_nobody_can_follow_is_granted_again_if_it_does_not_help_itself() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    bench.decide_for(&["a"], 700);
    bench.says("a", dead);
    bench.decide_for(&["a"], 9_900);
    assert!(bench.proposals().is_empty(), "a restart in place needs no fence");
    bench.decide_for(&["a"], 200);
    assert_eq!(bench.proposals(), ["OpenFence"]);
    bench.receipt("a", Proof::Stopped, None, true);
    bench.decide_for(&["a"], 5_100);
    assert_eq!((bench.proposals(), bench.holder()), (vec!["GrantRole".to_owned()], "a"));

    // Without a proof of its end people are asked, for nobody else can be asked about.
    let mut unseen = Bench::established(spec(Mode::Quorum));
    unseen.open_fence(FenceKind::Failover { verdict: "operator".into(), to: None });
    unseen.receipt("a", Proof::Stopped, None, false);
    unseen.decide_for(&["a"], 4_900);
    assert!(unseen.proposals().is_empty());
    unseen.decide_for(&["a"], 5_000);
    assert_eq!(unseen.proposals(), ["OpenApproval"]);
    let asked = unseen.operation().approval.clone().unwrap();
    assert!(asked.without_out && asked.candidate == name("a"), "{asked:?}");
    let (service, reason) = (service(), "yes".to_owned());
    let (approval, granted) = (asked.id, true);
    unseen.apply(Command::AnswerApproval { service, approval, granted, reason });
    unseen.decide_for(&["a"], 600);
    assert_eq!((unseen.proposals(), unseen.holder()), (vec!["GrantRole".to_owned()], "a"));
}

#[test]
fn a_lapsed_primary_is_granted_again_at_once_where_nobody_else_is_left() {
    let mut bench = Bench::established(spec(Mode::Lease));
    for gone in ["b", "c"] {
        bench.agents.get_mut(gone).unwrap().cut = true;
    }
    bench.run(2_000);
    assert!(bench.proposals().iter().all(|it| it != "OpenFence"));
    let session = bench.role().lease.as_ref().unwrap().session;
    let nonce = bench.state.sessions()[&session].nonce;
    let by = crate::authz::Principal::new(crate::authz::Role::Agent, "s/a");
    bench.apply_as(&by, Command::CloseSession { session, nonce });
    bench.run(12_000);
    assert!(bench.proposals().contains(&"GrantRole".to_owned()), "{:#?}", bench.lines);
    assert_eq!((bench.holder(), bench.open()), ("a", vec!["a"]));
}

#[test]
fn people_are_asked_when_who_could_prove_something_is_away_for_long() {
    use crate::spec::OnViolation;
    for (violation, asks) in [(OnViolation::Ask, true), (OnViolation::Refuse, false)] {
        let mut spec = spec(Mode::Quorum);
        spec.policy.loss_bound.on_violation = violation;
        let mut bench = Bench::established(spec);
        for gone in ["a", "c"] {
            bench.agents.get_mut(gone).unwrap().cut = true;
        }
        bench.run(29_000);
        assert!(bench.proposals().is_empty(), "they may come back");
        bench.run(7_000);
        let want: &[&str] = if asks { &["OpenFence", "OpenApproval"] } else { &[] };
        assert_eq!(bench.proposals(), want, "{:#?}", bench.lines);
    }
}

#[test]
fn who_was_stopped_in_order_has_the_grace_to_come_back() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    bench.says("a", |seen| {
        dead(seen);
        seen.stopped_in_order = true;
    });
    bench.decide_for(&ALL, 10_000);
    assert!(bench.proposals().is_empty());
    bench.decide_for(&ALL, 100);
    assert_eq!(bench.proposals(), ["OpenFence"]);
}

#[test]
fn lowered_synchronous_commit_is_told_and_changes_nothing_else() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    bench.says("a", |seen| seen.tampered = "synchronous_commit = off for \"app\"".to_owned());
    bench.decide_for(&ALL, 3_000);
    assert!(bench.proposals().iter().all(|it| it != "OpenFence"));
    let told =
        |bench: &Bench| bench.lines.iter().filter(|line| line.contains("SyncSetTampered")).count();
    assert_eq!(told(&bench), 1, "{:?}", bench.lines);
    bench.says("a", |seen| seen.tampered.clear());
    bench.decide_for(&ALL, 1_000);
    bench.says("a", dead);
    bench.decide_for(&ALL, TICK);
    assert_eq!(bench.proposals().last().map(String::as_str), Some("OpenFence"));
}

#[test]
fn a_storm_of_logins_is_no_stall_while_commits_return_and_not_for_ever() {
    let fails = |since_ms, canary: Option<Canary>, works| {
        move |seen: &mut Observation| {
            seen.works = works;
            seen.probe = Probe::Failed { since_ms, why: "opening a session timed out".to_owned() };
            seen.canary = canary.clone();
        }
    };
    let returned = |age_ms, returned| Some(Canary { age_ms, returned });
    let table = [
        // Committed after the first login failed.
        (900, returned(200, Some(true)), false),
        (3_900, returned(200, Some(true)), false),
        // Nobody ever gets in.
        (4_000, returned(200, Some(true)), true),
        // The last commit is older than the trouble, or still waits, or failed.
        (900, returned(950, Some(true)), true),
        (3_000, returned(1_200, Some(true)), true),
        (900, returned(200, None), true),
        (900, returned(200, Some(false)), true),
        (900, None, true),
    ];
    let table =
        table.into_iter().map(|(since_ms, canary, stalled)| (since_ms, canary, true, stalled));
    // Its first process is frozen; sessions of before go on.
    let frozen = [(900, returned(200, Some(true)), false, true)];
    for (since_ms, canary, works, stalled) in table.chain(frozen) {
        let mut bench = Bench::established(spec(Mode::Quorum));
        bench.says("a", fails(since_ms, canary.clone(), works));
        bench.decide_for(&ALL, TICK);
        let fenced = bench.proposals().iter().any(|it| it == "OpenFence");
        assert_eq!(fenced, stalled, "{since_ms} ms, {canary:?}");
    }
}

#[test]
fn who_comes_up_or_goes_down_for_longer_than_the_grace_is_replaced() {
    for run in [Run::Starting, Run::Stopping] {
        let mut bench = Bench::established(spec(Mode::Quorum));
        bench.says("a", |seen| {
            dead(seen);
            seen.run = run;
        });
        bench.decide_for(&ALL, 10_000);
        assert!(bench.proposals().is_empty());
        let said = |word: &str| bench.lines.iter().any(|line| line.contains(word));
        assert!(said("PrimaryRestarting") && said("10000 ms"), "{:?}", bench.lines);
        bench.decide_for(&ALL, 100);
        assert_eq!(bench.proposals(), ["OpenFence"]);

        // One that serves again in between begins anew.
        let mut back = Bench::established(spec(Mode::Quorum));
        back.says("a", |seen| seen.run = run);
        back.decide_for(&ALL, 9_000);
        back.says("a", |seen| seen.run = Run::Primary);
        back.decide_for(&ALL, 1_000);
        back.says("a", |seen| seen.run = run);
        back.decide_for(&ALL, 9_000);
        assert_eq!(back.proposals().iter().filter(|it| *it == "OpenFence").count(), 0);
    }
}

/// `b` is granted by a failover, and does nothing about it.
fn granted(cooldown_ms: u64) -> Bench {
    let mut spec = spec(Mode::Lease);
    spec.policy.failover_cooldown_ms = cooldown_ms;
    let mut bench = Bench::established(spec);
    bench.says("a", dead);
    bench.decide_for(&ALL, TICK);
    bench.receipt("a", Proof::Stopped, None, true);
    for who in ["b", "c"] {
        bench.receipt(who, Proof::Recruited, Some(90_000), true);
    }
    bench.decide_for(&ALL, 200);
    assert_eq!((bench.proposals().pop().as_deref(), bench.holder()), (Some("GrantRole"), "b"));
    bench
}

#[test]
fn who_was_granted_and_whose_lease_lapsed_before_it_promoted_is_not_waited_for() {
    let mut bench = granted(30_000);
    let session = bench.role().lease.as_ref().unwrap().session;
    let nonce = bench.state.sessions()[&session].nonce;
    let by = crate::authz::Principal::new(crate::authz::Role::Agent, "s/b");
    bench.apply_as(&by, Command::CloseSession { session, nonce });
    bench.decide_for(&ALL, 3 * TICK);
    assert_eq!(bench.proposals(), ["OpenFence"], "{:#?}", bench.lines);
}

#[test]
fn who_was_granted_and_does_not_promote_is_replaced_whatever_the_cooldown_says() {
    let mut bench = granted(600_000);
    bench.decide_for(&ALL, 14_700);
    assert!(bench.proposals().is_empty());
    bench.decide_for(&ALL, 400);
    assert_eq!(bench.proposals()[0], "OpenFence");
    assert!(matches!(bench.operation().kind, FenceKind::Failover { .. }));
}

#[test]
fn the_next_failover_waits_for_the_cooldown() {
    let mut bench = granted(30_000);
    let epoch = bench.role().epoch;
    let (service, timeline, switch) = (service(), 2, crate::role::Lsn(1));
    bench.apply_as(
        &crate::authz::Principal::cluster(),
        Command::RecordPromotion { service, epoch, timeline, switch },
    );
    bench.says("b", dead);
    bench.decide_for(&ALL, 29_000);
    assert!(bench.proposals().is_empty(), "{:?}", bench.operation().phase);
    assert!(bench.lines.len() < 12, "{:#?}", bench.lines);
    bench.decide_for(&ALL, 1_100);
    assert_eq!(bench.proposals()[0], "OpenFence");
}

#[test]
fn an_operation_is_done_when_all_stream_again_or_two_minutes_after_its_promotion() {
    for returns in [true, false] {
        let mut bench = Bench::established(spec(Mode::Quorum));
        bench.agents.get_mut("a").unwrap().cut = true;
        bench.run(10_000);
        assert_eq!(bench.operation().phase, Phase::Repair);
        if returns {
            bench.agents.get_mut("a").unwrap().cut = false;
            bench.run(2_000);
        } else {
            bench.run(108_000);
            assert_eq!(bench.operation().phase, Phase::Repair);
            bench.run(4_000);
        }
        assert_eq!(bench.operation().phase, Phase::Done);
    }
}

fn members(bench: &Bench) -> (Vec<&str>, u32) {
    let set = bench.role().set.as_ref().unwrap();
    (set.members.iter().map(|name| name.as_str()).collect(), set.k)
}

#[test]
fn a_member_that_is_away_for_a_second_is_removed_and_added_when_it_streams_again() {
    let mut spec = spec(Mode::Quorum);
    spec.policy.sync_standbys = 2;
    let mut bench = Bench::established(spec);
    assert_eq!(members(&bench), (vec!["b", "c"], 2));
    bench.agents.get_mut("c").unwrap().cut = true;
    bench.run(1_000);
    assert_eq!(members(&bench), (vec!["b", "c"], 2));
    bench.run(400);
    assert_eq!(members(&bench), (vec!["b"], 1));
    bench.agents.get_mut("c").unwrap().cut = false;
    bench.run(2_000);
    assert_eq!((members(&bench), bench.open()), ((vec!["b", "c"], 2), vec!["a"]));
    assert!(bench.role().is_covered());
}

#[test]
fn with_too_few_members_writes_block_or_the_promise_is_withdrawn_as_declared() {
    for (policy, want) in
        [(TooFewSync::Block, (vec!["b"], 1)), (TooFewSync::Degrade, (Vec::new(), 0))]
    {
        let mut spec = spec(Mode::Quorum);
        spec.policy.on_too_few_sync = policy;
        let mut bench = Bench::established(spec);
        bench.agents.get_mut("c").unwrap().cut = true;
        bench.run(3_000);
        assert_eq!(members(&bench), (vec!["b"], 1));
        bench.agents.get_mut("b").unwrap().cut = true;
        bench.run(900);
        assert_eq!(members(&bench), (vec!["b"], 1), "a moment is no reason");
        bench.run(3_000);
        assert_eq!(members(&bench), want, "{policy:?}");
        bench.agents.get_mut("c").unwrap().cut = false;
        bench.run(3_000);
        assert_eq!(members(&bench), (vec!["c"], 1), "{policy:?}");
        assert!(bench.role().is_covered());
    }
}

/// None of the others reaches the primary any more, and all agents report.
fn cut_from_its_standbys(mode: Mode) -> Bench {
    let mut bench = Bench::established(spec(mode));
    bench.says("a", |seen| seen.senders.clear());
    for who in ["b", "c"] {
        bench.says(who, misses_a);
    }
    bench
}

fn misses_a(seen: &mut Observation) {
    let (instance, answered_ms) = (name("a"), Some(10_000));
    seen.receiver.as_mut().unwrap().streams = false;
    seen.sights = vec![Sight { instance, answered_ms, refused: false, tried_ms: 0 }];
}

#[test]
fn a_primary_that_no_standby_reaches_is_replaced_after_2_s_in_quorum_mode_only() {
    let mut bench = cut_from_its_standbys(Mode::Quorum);
    bench.decide_for(&ALL, 2_000);
    assert!(bench.proposals().is_empty(), "{:?}", bench.lines);
    bench.decide_for(&ALL, 100);
    assert_eq!(bench.proposals(), ["OpenFence"]);
    assert!(bench.lines.iter().any(|line| line.contains("PrimaryIsolated")), "{:?}", bench.lines);

    let mut lease = cut_from_its_standbys(Mode::Lease);
    lease.decide_for(&ALL, 11_000);
    assert!(lease.proposals().is_empty(), "its clients are served");
    assert!(lease.lines.iter().any(|line| line.contains("ReplicationBroken")), "{:?}", lease.lines);
}

#[test]
fn one_standby_that_reaches_its_primary_is_enough_for_it_to_stay() {
    let mut bench = cut_from_its_standbys(Mode::Quorum);
    bench.says("b", |seen| seen.sights[0].answered_ms = Some(0));
    bench.decide_for(&ALL, 5_000);
    assert!(!bench.proposals().contains(&"OpenFence".to_owned()));
    // A reconnection within the two seconds is none of our business.
    let mut short = cut_from_its_standbys(Mode::Quorum);
    for _ in 0..3 {
        short.decide_for(&ALL, 1_500);
        short.says("b", |seen| seen.sights[0].answered_ms = Some(0));
        short.decide_for(&ALL, TICK);
        short.says("b", misses_a);
    }
    assert!(!short.proposals().contains(&"OpenFence".to_owned()));
}

#[test]
fn a_standby_that_is_far_behind_is_told_of() {
    let mut bench = Bench::established(spec(Mode::Quorum));
    bench.says("a", |seen| seen.position.as_mut().unwrap().end.0 += 64 << 20);
    bench.decide_for(&ALL, 100);
    assert!(bench.proposals().is_empty());
    let told = bench.lines.iter().find(|line| line.contains("StandbyLagging"));
    assert!(told.is_some_and(|line| line.contains("b, c")), "{:?}", bench.lines);
}

/// A primary that dies ten times, a minute and a half between: in one zone all of them, or each in its own.
fn failovers_of_ten_deaths(one_zone: bool) -> usize {
    let mut spec = spec(Mode::Quorum);
    spec.policy.failover_cooldown_ms = 1_000;
    for one in spec.instances.iter_mut().filter(|_| one_zone) {
        one.locality.zone = "z0".into();
    }
    let mut bench = Bench::established(spec);
    for _ in 0..10 {
        let died = bench.holder().to_owned();
        let agent = bench.agents.keys().copied().find(|name| *name == died).unwrap();
        bench.agents.get_mut(agent).unwrap().cut = true;
        bench.run(20_000);
        bench.agents.get_mut(agent).unwrap().cut = false;
        bench.run(70_000);
    }
    let operations = bench.state.operations().values();
    operations
        .filter(|it| matches!(it.kind, FenceKind::Failover { .. }) && it.is_automatic())
        .count()
}

#[test]
fn a_zone_that_lost_five_primaries_in_an_hour_loses_the_next_by_people_only() {
    assert_eq!(failovers_of_ten_deaths(true), 5);
    assert_eq!(failovers_of_ten_deaths(false), 10);
}
