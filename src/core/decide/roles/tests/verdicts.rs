//! Each row of the table of verdicts.

use super::bench::*;
use crate::decide::facts::Facts;
use crate::decide::roles::verdict::{self, Verdict};
use crate::role::observe::{Observation, Probe, Receiver, Run, Sight};
use crate::spec::Mode;
use crate::time::Micros;

const NOW: u64 = 10_000;

/// What an observer says of `a`.
fn observer(streams: Option<u64>, answered_ms: Option<u64>, refused: bool) -> Observation {
    let receiver =
        streams.map(|silent_ms| Receiver { from: Some(name("a")), streams: true, silent_ms });
    // The newest attempt began 100 ms ago; an answer that is older is of one before.
    let sight = Sight { instance: name("a"), answered_ms, refused, tried_ms: 100 };
    Observation { run: Run::Standby, receiver, sights: vec![sight], ..Observation::default() }
}

/// What a standby says that streams from `a` and never tried to reach it otherwise.
fn untried(silent_ms: u64) -> Observation {
    Observation { sights: Vec::new(), ..observer(Some(silent_ms), None, false) }
}

fn sees() -> Observation {
    observer(Some(10), Some(10), false)
}

fn blind() -> Observation {
    observer(Some(5_000), Some(5_000), false)
}

/// Facts of `b` and `c`, heard so many milliseconds ago.
fn standbys(heard: &[(&str, Observation, u64)]) -> Facts {
    let mut facts = Facts::default();
    for (who, observation, age) in heard {
        let age = Micros::from_ms(*age);
        facts.observed(&service(), &name(who), observation.clone(), age, at(NOW));
    }
    facts
}

fn found(facts: &Facts) -> Verdict {
    verdict::of(&spec(Mode::Quorum), &service(), &name("a"), facts, at(NOW)).verdict
}

#[test]
fn what_a_primarys_own_agent_says_is_believed_while_it_is_heard() {
    let failed = |since_ms| Probe::Failed { since_ms, why: "timeout".into() };
    let rows = [
        (Run::Primary, Probe::Answered(1), false, Verdict::Healthy),
        (Run::Primary, Probe::Unknown, false, Verdict::Healthy),
        (Run::Primary, failed(699), false, Verdict::Healthy),
        (Run::Primary, failed(700), false, Verdict::PrimaryStalled),
        (Run::Starting, failed(700), false, Verdict::Healthy),
        (Run::Stopping, failed(700), false, Verdict::Healthy),
        (Run::Down, Probe::Unknown, false, Verdict::PrimaryProcessDead),
        (Run::Down, Probe::Unknown, true, Verdict::PrimaryStopped),
    ];
    for (run, probe, stopped_in_order, want) in rows {
        let own = Observation { run, probe, stopped_in_order, ..Observation::default() };
        let facts = standbys(&[("a", own.clone(), 0), ("b", blind(), 0), ("c", blind(), 0)]);
        assert_eq!(found(&facts), want, "{own:?}");
        assert_eq!(
            want.calls_for_failover(),
            matches!(want, Verdict::PrimaryStalled | Verdict::PrimaryProcessDead)
        );
    }
}

#[test]
fn a_silent_agent_is_dead_only_if_more_than_half_of_all_observers_miss_it() {
    use Verdict::{
        NotEnoughObservers as Few, PrimaryHostSilent as Gone,
        PrimaryUnreachableButReplicating as Replicates,
    };
    let down = Observation { run: Run::Down, ..blind() };
    let rows = [
        // One observer, the coordinators, never decides alone.
        (vec![], Few),
        (vec![("b", sees(), 0)], Replicates),
        (vec![("b", sees(), 0), ("c", sees(), 0)], Replicates),
        (vec![("b", blind(), 0), ("c", sees(), 0)], Gone),
        (vec![("b", blind(), 0), ("c", blind(), 0)], Gone),
        (vec![("b", blind(), 0)], Gone),
        // What was said too long ago is nothing, for and against.
        (vec![("b", blind(), 601), ("c", blind(), 601)], Few),
        (vec![("b", sees(), 601), ("c", blind(), 600)], Gone),
        (vec![("b", blind(), 601), ("c", sees(), 0)], Replicates),
        // A host that refuses lives, and its database does not.
        (vec![("b", observer(Some(10), Some(10), true), 0)], Gone),
        // A walreceiver that was never contradicted counts until it is silent itself.
        (vec![("b", observer(Some(899), None, false), 0)], Replicates),
        (vec![("b", observer(Some(900), None, false), 0)], Gone),
        (vec![("b", observer(Some(500), None, false), 400)], Gone),
        // Tried and not answered weighs more.
        (vec![("b", observer(Some(10), Some(600), false), 0)], Gone),
        (vec![("b", observer(None, Some(599), false), 0)], Replicates),
        (vec![("b", observer(None, Some(400), false), 200)], Gone),
        (vec![("b", down, 0)], Gone),
        // What was answered when it was last tried has not failed since: an old report of it, of an
        // observer whose own coordinator falls silent, is no word against a primary.
        (vec![("b", observer(None, Some(50), false), 580)], Few),
        (vec![("b", observer(Some(10), Some(50), false), 580)], Replicates),
        (vec![("b", observer(Some(10), Some(50), false), 580), ("c", sees(), 0)], Replicates),
        (vec![("b", observer(Some(10), Some(101), false), 580), ("c", sees(), 0)], Gone),
        (vec![("b", untried(400), 580)], Few),
        (vec![("b", untried(899), 0)], Replicates),
        (vec![("b", untried(900), 0)], Gone),
        // Who neither streams from it nor ever tried it has nothing to say.
        (vec![("b", Observation { run: Run::Standby, ..Observation::default() }, 0)], Few),
    ];
    for (heard, want) in rows {
        assert_eq!(found(&standbys(&heard)), want, "{heard:?}");
        let mut with_old = heard.clone();
        with_old.push(("a", Observation { run: Run::Primary, ..Observation::default() }, 601));
        assert_eq!(found(&standbys(&with_old)), want, "with an old word of its own: {heard:?}");
    }
}

#[test]
fn an_observer_whose_own_stream_is_lost_is_none() {
    let mut facts = standbys(&[("b", blind(), 0), ("c", blind(), 0)]);
    for who in ["b", "c"] {
        facts.lost(&service(), &name(who), at(NOW));
    }
    assert_eq!(found(&facts), Verdict::NotEnoughObservers);
}

#[test]
fn a_stream_that_broke_this_moment_says_nothing_for_60_ms() {
    let own = Observation { run: Run::Primary, ..Observation::default() };
    for (ago, want) in [(59, Verdict::NotEnoughObservers), (60, Verdict::PrimaryHostSilent)] {
        let mut facts = standbys(&[("a", own.clone(), 100), ("b", blind(), 0), ("c", blind(), 0)]);
        facts.lost(&service(), &name("a"), at(NOW - ago));
        assert_eq!(found(&facts), want, "{ago} ms");
    }
}
