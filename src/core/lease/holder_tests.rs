//! The holder's clock, step by step.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const EPOCH: Epoch = Epoch { incarnation: 1, revision: Revision(50) };
const TTL_MS: u64 = 10_000;
/// `ttl·(1−rho) − fence budget`.
const LENGTH_MS: u64 = 9_650;

fn at(ms: u64) -> Reading {
    Reading::at_us(ms * 1_000)
}

fn clock() -> HolderClock {
    let of = HolderSession {
        session: SessionId(7),
        nonce: Nonce(1),
        incarnation: 1,
        ttl_ms: TTL_MS,
        renew_interval_ms: 500,
        fence_budget_ms: 250,
    };
    HolderClock::new(of, Rules::LAW)
}

fn extended(number: u64, grant: u64) -> Answer {
    let number = RenewalNumber(number);
    Answer::Outcome(RenewalOutcome::Extended { number, grant: Revision(grant) })
}

/// A clock that holds EPOCH by renewal 2, sent at 1000 ms.
fn holding() -> HolderClock {
    let mut clock = clock();
    assert_eq!(clock.next(at(0)).known_grant, Revision(0));
    assert!(clock.answered(RenewalNumber(1), extended(1, 50), at(100)));
    let second = clock.next(at(1_000));
    assert_eq!((second.acked, second.known_grant), (RenewalNumber(1), Revision(50)));
    assert!(clock.answered(RenewalNumber(2), extended(2, 50), at(1_100)));
    clock
}

#[test]
fn a_grant_is_held_only_after_an_acknowledged_renewal_named_it() {
    let mut clock = clock();
    clock.next(at(0));
    assert_eq!(clock.standing(at(50), EPOCH), Standing::Unconfirmed);
    clock.answered(RenewalNumber(1), extended(1, 50), at(100));
    // The acknowledgement told of the grant; renewal 1 did not name it.
    assert_eq!(clock.standing(at(100), EPOCH), Standing::Unconfirmed);
    clock.next(at(200));
    assert!(!clock.is_held(at(201), EPOCH));
    clock.answered(RenewalNumber(2), extended(2, 50), at(250));
    assert!(clock.is_held(at(250), EPOCH));
}

/// Found by the simulator (databases, rogue, quorum, seed 11264): an instance was granted a role under its
/// former session, heard of it, and named it in renewals of the present one, which the log does not watch.
#[test]
fn a_grant_of_another_session_is_not_held_by_naming_it() {
    let mut clock = clock();
    clock.granted(EPOCH);
    for number in 1..4 {
        let now = number * 1_000;
        assert_eq!(clock.next(at(now)).known_grant, EPOCH.revision);
        assert!(clock.answered(RenewalNumber(number), extended(number, 0), at(now + 10)));
        assert_eq!(clock.standing(at(now + 20), EPOCH), Standing::Unconfirmed);
    }
    // Nor by an answer that says nothing of grants.
    clock.next(at(4_000));
    let stale = Answer::Outcome(RenewalOutcome::NumberStale { have: RenewalNumber(4) });
    assert!(clock.answered(RenewalNumber(4), stale, at(4_010)));
    assert_eq!(clock.standing(at(4_020), EPOCH), Standing::Unconfirmed);
}

#[test]
fn it_counts_from_the_first_transmission_and_ends_early() {
    let mut clock = holding();
    assert_eq!(clock.valid_until(), Some(at(1_000 + LENGTH_MS)));
    assert!(clock.is_held(at(1_000 + LENGTH_MS - 1), EPOCH));
    assert!(!clock.is_held(at(1_000 + LENGTH_MS), EPOCH));
}

#[test]
fn either_clock_ends_it() {
    let end_us = (1_000 + LENGTH_MS) * 1_000;
    for (boottime_us, raw_us) in [(end_us, 2_000_000), (2_000_000, end_us)] {
        assert!(!holding().is_held(Reading { boottime_us, raw_us }, EPOCH));
    }
}

#[test]
fn an_acknowledgement_of_a_number_never_sent_or_seen_twice_extends_nothing() {
    let mut clock = holding();
    let before = clock.valid_until();
    assert!(!clock.answered(RenewalNumber(9), extended(9, 50), at(1_200)));
    assert!(!clock.answered(RenewalNumber(2), extended(2, 50), at(1_200)));
    assert!(!clock.answered(RenewalNumber(1), extended(1, 50), at(1_200)));
    assert_eq!(clock.valid_until(), before);
}

#[test]
fn an_acknowledgement_that_overtook_another_wins() {
    let mut clock = holding();
    clock.next(at(1_500));
    clock.next(at(2_000));
    assert!(clock.answered(RenewalNumber(4), extended(4, 50), at(2_100)));
    assert!(!clock.answered(RenewalNumber(3), extended(3, 50), at(2_200)));
    assert_eq!(clock.valid_until(), Some(at(2_000 + LENGTH_MS)));
}

#[test]
fn a_stale_number_proves_the_one_that_was_applied() {
    let mut clock = holding();
    clock.next(at(1_500));
    clock.next(at(2_000));
    let stale = Answer::Outcome(RenewalOutcome::NumberStale { have: RenewalNumber(4) });
    assert!(clock.answered(RenewalNumber(3), stale, at(2_100)));
    assert_eq!(clock.valid_until(), Some(at(2_000 + LENGTH_MS)));
    assert_eq!(clock.next(at(2_500)).acked, RenewalNumber(4));
}

#[test]
fn an_epoch_that_lapsed_never_comes_back_but_a_new_one_can_be_held() {
    let mut clock = holding();
    let lapsed_at = 1_000 + LENGTH_MS;
    clock.next(at(lapsed_at - 100));
    // The answer arrives after the old deadline, but before the new one.
    assert!(clock.answered(RenewalNumber(3), extended(3, 50), at(lapsed_at + 100)));
    assert_eq!(clock.standing(at(lapsed_at + 100), EPOCH), Standing::Over);
    let newer = Epoch { incarnation: 1, revision: Revision(60) };
    clock.granted(newer);
    clock.next(at(lapsed_at + 200));
    assert!(clock.answered(RenewalNumber(4), extended(4, 60), at(lapsed_at + 300)));
    assert!(clock.is_held(at(lapsed_at + 300), newer));
    assert!(!clock.is_held(at(lapsed_at + 300), EPOCH));
}

#[test]
fn a_grant_first_confirmed_after_a_lapse_was_never_held_and_is_no_revival() {
    let mut clock = clock();
    clock.next(at(0));
    clock.answered(RenewalNumber(1), extended(1, 0), at(10));
    let late = LENGTH_MS + 1_000;
    clock.granted(EPOCH);
    clock.next(at(late));
    assert!(clock.answered(RenewalNumber(2), extended(2, 50), at(late + 10)));
    assert!(clock.is_held(at(late + 10), EPOCH));
}

#[test]
fn a_late_acknowledgement_makes_nothing_valid() {
    let mut clock = clock();
    clock.granted(EPOCH);
    clock.next(at(0));
    assert!(!clock.answered(RenewalNumber(1), extended(1, 50), at(LENGTH_MS)));
    assert!(!clock.is_held(at(LENGTH_MS), EPOCH));
}

#[test]
fn whatever_voids_the_session_voids_it_for_good() {
    for outcome in [RenewalOutcome::SessionGone, RenewalOutcome::NonceStale] {
        let mut clock = holding();
        clock.next(at(1_500));
        clock.answered(RenewalNumber(3), Answer::Outcome(outcome), at(1_600));
        clock.next(at(2_000));
        clock.answered(RenewalNumber(4), extended(4, 50), at(2_100));
        assert_eq!(clock.standing(at(2_100), EPOCH), Standing::Over);
        assert_eq!((clock.valid_until(), clock.due_at()), (None, None));
    }
    let mut clock = holding();
    clock.void(VoidReason::ClockChanged);
    clock.void(VoidReason::Closed);
    assert_eq!(clock.void_reason(), Some(VoidReason::ClockChanged));
    assert!(!clock.is_held(at(1_200), EPOCH));
}

#[test]
fn an_epoch_of_another_incarnation_or_before_the_session_is_not_ours() {
    let mut clock = holding();
    let other = Epoch { incarnation: 2, revision: Revision(50) };
    clock.granted(other);
    assert!(!clock.is_held(at(1_200), other));
    let older = Epoch { incarnation: 1, revision: Revision(7) };
    assert!(!clock.is_held(at(1_200), older));
}

#[test]
fn what_was_given_up_stays_given_up() {
    let mut clock = holding();
    clock.give_up(EPOCH);
    clock.granted(EPOCH);
    clock.next(at(1_500));
    clock.answered(RenewalNumber(3), extended(3, 50), at(1_600));
    assert_eq!(clock.standing(at(1_600), EPOCH), Standing::Over);
    for revision in 100..100 + 2 * MAX_GIVEN_UP as u64 {
        clock.give_up(Epoch { incarnation: 1, revision: Revision(revision) });
    }
    assert_eq!(clock.standing(at(1_600), EPOCH), Standing::Over);
}

#[test]
fn the_next_renewal_is_due_sooner_after_a_resend_and_after_a_new_grant() {
    let mut clock = clock();
    assert!(clock.due_at().is_some_and(|due| due == at(0)));
    clock.next(at(0));
    assert_eq!(clock.due_at(), Some(at(500)));
    clock.answered(RenewalNumber(1), Answer::Resend, at(10));
    assert_eq!(clock.due_at(), Some(Reading::at_us(62_500)));
    clock.next(at(70));
    assert_eq!(clock.due_at(), Some(at(570)));
    clock.granted(EPOCH);
    assert_eq!(clock.due_at(), Some(Reading::at_us(132_500)));
    // A resend of an old number says nothing: a newer one is under way.
    clock.next(at(140));
    clock.answered(RenewalNumber(2), Answer::Resend, at(150));
    assert_eq!(clock.due_at(), Some(at(640)));
}

#[test]
fn a_ttl_shorter_than_the_fence_budget_holds_nothing() {
    let of = HolderSession { ttl_ms: 200, ..*clock().session() };
    let mut clock = HolderClock::new(of, Rules::LAW);
    clock.granted(EPOCH);
    clock.next(at(0));
    clock.answered(RenewalNumber(1), extended(1, 50), at(0));
    assert!(!clock.is_held(at(0), EPOCH));
}

#[derive(Clone, Debug)]
enum Op {
    Pass(u64),
    Next,
    Answer { back: u64, grant: u64 },
    Stale { back: u64, have: u64 },
    Ask { behind: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..4_000_u64).prop_map(Op::Pass),
        Just(Op::Next),
        (0..5_u64, 48..53_u64).prop_map(|(back, grant)| Op::Answer { back, grant }),
        (0..5_u64, 0..5_u64).prop_map(|(back, have)| Op::Stale { back, have }),
        (0..300_u64).prop_map(|behind| Op::Ask { behind }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn deadlines_only_rise_and_an_epoch_that_was_over_stays_over(
        ops in prop::collection::vec(op(), 1..120)
    ) {
        let mut clock = clock();
        let mut now = 0;
        let mut sent = 0;
        let mut deadline = None;
        let mut over = BTreeSet::new();
        let mut acted_until = BTreeMap::new();
        for op in ops {
            match op {
                Op::Pass(ms) => now += ms,
                Op::Next => sent = clock.next(at(now)).number.0,
                Op::Answer { back, grant } => {
                    let number = sent.saturating_sub(back);
                    clock.answered(RenewalNumber(number), extended(number, grant), at(now));
                }
                Op::Stale { back, have } => {
                    let have = RenewalNumber(sent.saturating_sub(have));
                    let answer = Answer::Outcome(RenewalOutcome::NumberStale { have });
                    clock.answered(RenewalNumber(sent.saturating_sub(back)), answer, at(now));
                }
                Op::Ask { behind } => {
                    // A thread that was slow to hand in its reading learns nothing better.
                    let reading = at(now.saturating_sub(behind));
                    for revision in 48..53 {
                        let epoch = Epoch { incarnation: 1, revision: Revision(revision) };
                        match clock.standing(reading, epoch) {
                            Standing::Over => { over.insert(revision); }
                            Standing::Held => {
                                prop_assert!(!over.contains(&revision), "{revision} came back");
                                let until = clock.valid_until().expect("it is held");
                                acted_until.insert(revision, until);
                            }
                            Standing::Unconfirmed => {
                                prop_assert!(!acted_until.contains_key(&revision));
                            }
                        }
                    }
                }
            }
            if let Some(until) = clock.valid_until() {
                prop_assert!(deadline.is_none_or(|before: Reading| until.raw_us >= before.raw_us));
                deadline = Some(until);
            }
        }
    }
}
