//! The node's clocks, step by step, and against a plain scan.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const TTL_MS: u64 = 10_000;
/// `(ttl + margin)·(1+rho)`.
const LONG_US: u64 = 10_352_500;
const ONE: SessionId = SessionId(1);

fn at(ms: u64) -> Reading {
    Reading::at_us(ms * 1_000)
}

fn renewed(clock: &mut NodeClock, session: u64, index: u64, now: Reading) {
    let effect = ClockEffect::Renewed(SessionId(session));
    clock.apply(Revision(index), &[effect], now, |_| Some(TTL_MS));
}

fn one_session() -> NodeClock {
    let mut clock = NodeClock::new(Rules::LAW);
    renewed(&mut clock, 1, 10, at(1_000));
    clock
}

#[test]
fn a_session_may_expire_only_after_the_long_time_on_both_clocks() {
    let clock = one_session();
    let end = 1_000_000 + LONG_US;
    assert!(!clock.may_expire(ONE, Reading::at_us(end - 1)));
    assert!(clock.may_expire(ONE, Reading::at_us(end)));
    let (boottime_us, raw_us) = (end, end - 1);
    assert!(!clock.may_expire(ONE, Reading { boottime_us, raw_us }));
    assert!(!clock.may_expire(ONE, Reading { boottime_us: raw_us, raw_us: boottime_us }));
    assert!(!clock.may_expire(SessionId(2), Reading::at_us(end)));
}

#[test]
fn a_renewal_starts_the_time_anew_and_an_end_stops_it() {
    let mut clock = one_session();
    renewed(&mut clock, 1, 11, at(5_000));
    assert!(!clock.may_expire(ONE, at(1_000 + 10_400)));
    assert_eq!(clock.due(at(1_000 + 10_400), 10), []);
    assert_eq!(clock.due(at(5_000 + 10_400), 10), [ONE]);
    clock.apply(Revision(12), &[ClockEffect::Ended(ONE)], at(16_000), |_| None);
    assert_eq!(clock.due(at(90_000), 10), []);
    assert_eq!((clock.session_count(), clock.least_ttl_ms()), (0, None));
    assert_eq!(clock.at(), Revision(12));
}

#[test]
fn a_node_that_starts_or_installs_a_snapshot_counts_from_then_and_names_nobody() {
    let mut clock = one_session();
    clock.read_index_answered(at(900), Revision(9));
    renewed(&mut clock, 1, 11, at(1_500));
    assert!(clock.believed_live(ONE, at(2_000)));
    clock.reset(Revision(20), [(ONE, TTL_MS)], at(8_000));
    assert!(!clock.believed_live(ONE, at(8_001)));
    assert_eq!(clock.due(at(8_000 + 10_352), 10), []);
    assert_eq!(clock.due(at(8_000 + 10_353), 10), [ONE]);
}

#[test]
fn a_renewal_is_believed_from_the_latest_read_index_answered_below_it() {
    let mut clock = NodeClock::new(Rules::LAW);
    clock.read_index_answered(at(100), Revision(9));
    clock.read_index_answered(at(600), Revision(9));
    clock.read_index_answered(at(900), Revision(10));
    // Index 10 was committed when the third round was answered, but not yet at the second.
    renewed(&mut clock, 1, 10, at(1_000));
    assert!(clock.believed_live(ONE, at(600 + 9_899)));
    assert!(!clock.believed_live(ONE, at(600 + 9_900)));
    assert_eq!(clock.believed_for(ONE, at(1_600)), Some(Micros::from_ms(8_900)));
}

#[test]
fn believing_takes_the_longer_of_both_clocks() {
    let mut clock = NodeClock::new(Rules::LAW);
    clock.read_index_answered(at(0), Revision(9));
    renewed(&mut clock, 1, 10, at(100));
    let suspended = Reading { boottime_us: 9_900_000, raw_us: 200_000 };
    assert!(!clock.believed_live(ONE, suspended));
}

#[test]
fn a_node_that_was_away_names_no_stale_holder() {
    let mut clock = NodeClock::new(Rules::LAW);
    clock.read_index_answered(at(900), Revision(9));
    renewed(&mut clock, 1, 10, at(1_000));
    // Away for an hour; the holder renewed until index 500 and was then succeeded at 600. On the
    // way back the first round is answered before anything is applied.
    let back = 3_600_000;
    assert!(!clock.believed_live(ONE, at(back)));
    clock.read_index_answered(at(back), Revision(700));
    for index in 11..=500 {
        renewed(&mut clock, 1, index, at(back + 5));
        assert!(!clock.believed_live(ONE, at(back + 5)), "index {index}");
    }
}

#[test]
fn without_a_read_index_nobody_is_named() {
    assert!(!one_session().believed_live(ONE, at(1_000)));
}

#[test]
fn read_index_is_due_at_a_sixth_of_the_smallest_ttl() {
    let mut clock = NodeClock::new(Rules::LAW);
    assert_eq!(clock.next_read_index_due(), None);
    clock.apply(Revision(1), &[ClockEffect::Renewed(ONE)], at(10), |_| Some(60_000));
    clock.apply(Revision(2), &[ClockEffect::Renewed(SessionId(2))], at(10), |_| Some(6_000));
    assert_eq!(clock.next_read_index_due(), Some(at(0)), "at once");
    clock.read_index_answered(at(50), Revision(2));
    assert_eq!(clock.next_read_index_due(), Some(at(1_050)));
    clock.apply(Revision(3), &[ClockEffect::Ended(SessionId(2))], at(60), |_| None);
    assert_eq!(clock.next_read_index_due(), Some(at(10_050)));
}

#[test]
fn rounds_that_overtook_each_other_only_shorten_belief() {
    let mut clock = NodeClock::new(Rules::LAW);
    clock.read_index_answered(at(500), Revision(20));
    clock.read_index_answered(at(400), Revision(15));
    renewed(&mut clock, 1, 18, at(600));
    assert!(!clock.believed_live(ONE, at(600)));
    renewed(&mut clock, 1, 21, at(700));
    assert_eq!(clock.believed_for(ONE, at(700)), Some(Micros::from_ms(9_700)));
}

#[test]
fn a_new_incarnation_voids_every_clock() {
    let mut clock = one_session();
    clock.apply(Revision(11), &[ClockEffect::Reset], at(2_000), |_| None);
    assert_eq!(clock.session_count(), 0);
    assert!(!clock.may_expire(ONE, at(90_000)));
}

#[test]
fn a_clock_that_differed_starts_all_its_timers_anew() {
    let mut clock = one_session();
    clock.read_index_answered(at(1_100), Revision(10));
    renewed(&mut clock, 1, 11, at(1_200));
    clock.restart(at(5_000));
    assert!(!clock.believed_live(ONE, at(5_000)));
    assert!(!clock.may_expire(ONE, at(1_200 + 10_400)));
    assert!(clock.may_expire(ONE, at(5_000 + 10_400)));
}

#[test]
fn one_that_was_reported_due_is_reported_again_only_after_a_while() {
    let mut clock = one_session();
    assert_eq!(clock.due(at(20_000), 10), [ONE]);
    assert_eq!(clock.due(at(20_020), 10), []);
    assert_eq!(clock.due(at(20_499), 10), []);
    assert_eq!(clock.due(at(20_500), 10), [ONE]);
    // A renewal in between takes it off the list.
    renewed(&mut clock, 1, 11, at(20_600));
    assert_eq!(clock.due(at(21_000), 10), []);
}

#[test]
fn no_more_than_the_limit_is_reported_and_nobody_is_forgotten() {
    let mut clock = NodeClock::new(Rules::LAW);
    clock.reset(Revision(1), (0..1_000).map(|id| (SessionId(id), TTL_MS)), at(0));
    let mut seen = BTreeSet::new();
    for tick in 0..10 {
        let due = clock.due(at(20_000 + tick), 100);
        assert_eq!(due.len(), 100);
        seen.extend(due);
    }
    assert_eq!(seen.len(), 1_000);
    assert_eq!(clock.due(at(20_010), 100), []);
}

#[test]
fn sessions_that_come_and_go_on_a_follower_leave_nothing_behind() {
    let mut clock = NodeClock::new(Rules::LAW);
    for id in 0..50_000 {
        renewed(&mut clock, id, id, at(id));
        clock.apply(Revision(id), &[ClockEffect::Ended(SessionId(id))], at(id), |_| None);
    }
    assert!(clock.looks.len() <= HEAP_SLACK + 1, "{}", clock.looks.len());
}

#[derive(Clone, Debug)]
enum Op {
    Pass { boot_ms: u64, raw_ms: u64 },
    Renew(u64),
    End(u64),
    Restart,
    Due(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let pass = (0..6_000_u64, 0..200_u64, any::<bool>()).prop_map(|(ms, lag, boot_lags)| {
        let less = ms.saturating_sub(lag);
        let (boot_ms, raw_ms) = if boot_lags { (less, ms) } else { (ms, less) };
        Op::Pass { boot_ms, raw_ms }
    });
    prop_oneof![
        4 => pass,
        6 => (0..8_u64).prop_map(Op::Renew),
        1 => (0..8_u64).prop_map(Op::End),
        1 => Just(Op::Restart),
        4 => (1..5_usize).prop_map(Op::Due),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_due_is_what_a_plain_scan_finds(ops in prop::collection::vec(op(), 1..150)) {
        let mut clock = NodeClock::new(Rules::LAW);
        let mut now = Reading::default();
        let mut applied: BTreeMap<SessionId, Reading> = BTreeMap::new();
        for (index, op) in ops.into_iter().enumerate() {
            match op {
                Op::Pass { boot_ms, raw_ms } => {
                    now.boottime_us += boot_ms * 1_000;
                    now.raw_us += raw_ms * 1_000;
                }
                Op::Renew(id) => {
                    renewed(&mut clock, id, index as u64, now);
                    applied.insert(SessionId(id), now);
                }
                Op::End(id) => {
                    let effect = [ClockEffect::Ended(SessionId(id))];
                    clock.apply(Revision(index as u64), &effect, now, |_| None);
                    applied.remove(&SessionId(id));
                }
                Op::Restart => {
                    clock.restart(now);
                    applied.values_mut().for_each(|at| *at = now);
                }
                Op::Due(limit) => {
                    for id in clock.due(now, limit) {
                        let since = since_shorter(now, applied[&id]);
                        prop_assert!(since.0 >= LONG_US, "{id} reported after {since}");
                    }
                }
            }
            for (id, at) in &applied {
                prop_assert_eq!(clock.may_expire(*id, now), since_shorter(now, *at).0 >= LONG_US);
            }
        }
        // Nobody is forgotten: half a second later, without renewals, all that are due come up.
        now = now.plus(Micros::from_ms(60_000));
        let due: BTreeSet<_> = clock.due(now, 100).into_iter().collect();
        prop_assert_eq!(due, applied.keys().copied().collect::<BTreeSet<_>>());
    }
}
