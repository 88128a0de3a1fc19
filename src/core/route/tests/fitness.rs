//! Which standbys take reads, over time.
#![allow(clippy::unwrap_used)]
use super::*;
use crate::role::observe::{Probe, Receiver};

fn standby(lag: u64) -> Observation {
    Observation {
        run: Run::Standby,
        replay_lag_bytes: lag,
        receiver: Some(Receiver { from: None, streams: true, silent_ms: 0 }),
        probe: Probe::Answered(1),
        check: ":8008".into(),
        ..Observation::default()
    }
}

fn at(ms: u64) -> Reading {
    Reading::at_us(ms * 1_000)
}

/// Looks at `seen`, said at this moment.
fn look(judge: &mut Judge, seen: &Observation, ms: u64) -> bool {
    let fact = Fact { observation: seen.clone(), heard: at(ms), lost: None };
    judge.look(Some(&fact), at(ms));
    judge.fitness().is_some_and(|fitness| fitness.reads)
}

/// One that another leader counted out.
fn out() -> Judge {
    Judge::resume(Some(Fitness::default()))
}

/// One that takes reads, at 1,000 ms.
fn counted() -> Judge {
    let mut judge = out();
    assert!(!look(&mut judge, &standby(0), 0));
    assert!(look(&mut judge, &standby(0), 1_000));
    judge
}

#[test]
fn a_standby_that_is_well_for_a_while_takes_reads() {
    let mut judge = out();
    assert!(!look(&mut judge, &standby(0), 0));
    assert!(!look(&mut judge, &standby(0), 999));
    assert!(look(&mut judge, &standby(0), 1_000));
    assert_eq!(judge.fitness().unwrap().check, ":8008");
    // One fault in between begins the wait anew.
    let mut judge = out();
    look(&mut judge, &standby(0), 0);
    look(&mut judge, &standby(MAX_READ_LAG_BYTES), 500);
    assert!(!look(&mut judge, &standby(0), 1_400));
    assert!(look(&mut judge, &standby(0), 2_400));
}

#[test]
fn what_is_no_standby_is_out_at_once_and_what_may_pass_only_if_it_lasts() {
    for run in [Run::Down, Run::Starting, Run::Primary, Run::Stopping, Run::Rebuilding] {
        let seen = Observation { run, ..standby(0) };
        assert!(!look(&mut counted(), &seen, 1_001), "{run:?}");
    }
    let silent = Observation { receiver: None, ..standby(0) };
    let failed = Probe::Failed { since_ms: 9_000, why: "no".into() };
    let poor =
        [standby(MAX_READ_LAG_BYTES + 1), silent, Observation { probe: failed, ..standby(0) }];
    for seen in &poor {
        let mut judge = counted();
        assert!(look(&mut judge, seen, 2_000) && look(&mut judge, seen, 3_999));
        assert!(!look(&mut judge, seen, 4_000), "{seen:?}");
        // A moment without it, and the wait is begun anew.
        let mut judge = counted();
        assert!(look(&mut judge, seen, 2_000) && look(&mut judge, &standby(0), 3_000));
        assert!(look(&mut judge, seen, 4_500), "{seen:?}");
    }
}

#[test]
fn a_lag_between_the_bounds_changes_nothing() {
    let between = standby(NEAR_BYTES + 1);
    let mut judge = counted();
    assert!((1_000..20_000).step_by(500).all(|ms| look(&mut judge, &between, ms)));
    let mut judge = out();
    assert!((0..20_000).step_by(500).all(|ms| !look(&mut judge, &between, ms)));
}

#[test]
fn what_is_not_known_any_more_stays_as_it_was() {
    let mut judge = counted();
    assert!(!judge.look(None, at(100_000)));
    let old = Fact { observation: standby(u64::MAX), heard: at(1_000), lost: None };
    assert!(!judge.look(Some(&old), at(1_000 + FRESH.as_ms() + 1)));
    let lost = Fact { observation: standby(u64::MAX), heard: at(9_000), lost: Some(at(9_000)) };
    assert!(!judge.look(Some(&lost), at(9_000)));
    assert!(judge.fitness().unwrap().reads);
    // A new leader goes on from what was said before it.
    let mut next = Judge::resume(judge.fitness().cloned());
    assert!(look(&mut next, &standby(0), 50_000));
}

/// A leader that was started a moment ago: what it says is taken for the truth by those who know more.
#[test]
fn of_whom_nobody_has_said_anything_the_first_plain_look_is_believed_and_nothing_before_it() {
    let silent = Observation { receiver: None, ..standby(0) };
    let mut judge = Judge::default();
    assert!(!judge.look(None, at(0)) && judge.fitness().is_none());
    assert!(!look(&mut judge, &silent, 0) && judge.fitness().is_none());
    assert!(!look(&mut judge, &silent, 1_999) && judge.fitness().is_none());
    let mut same = judge.clone();
    assert!(look(&mut same, &standby(0), 1_999));
    assert!(!look(&mut judge, &silent, 2_000) && judge.fitness().is_some());
    let mut judge = Judge::default();
    let down = Observation { run: Run::Down, ..standby(0) };
    assert!(!look(&mut judge, &down, 0) && judge.fitness().is_some());
}

#[test]
fn a_lag_is_told_in_powers_of_two_so_that_few_of_its_changes_are_news() {
    let mut judge = counted();
    let mut news = 0;
    for lag in (0..10_000_000_u64).step_by(1_000) {
        let fact = Fact { observation: standby(lag), heard: at(1_000), lost: None };
        news += u32::from(judge.look(Some(&fact), at(1_000)));
    }
    assert_eq!((judge.fitness().unwrap().lag_bytes, news), (16 << 20, 8));
    let weights = [0, 1 << 20, 2 << 20, NEAR_BYTES, MAX_READ_LAG_BYTES]
        .map(|lag_bytes| Fitness { lag_bytes, ..Fitness::default() }.weight());
    assert_eq!(weights, [100, 100, 50, 50, 10]);
}
