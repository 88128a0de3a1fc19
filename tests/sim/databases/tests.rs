//! The simulator on trial: it repeats itself, it is not empty, and it finds what it should.

use super::*;

fn sum(options: &Options, seeds: u64) -> Stats {
    let mut stats = Stats::default();
    for seed in 1..=seeds {
        let outcome = run(seed, options);
        assert_eq!(outcome.violations, [""; 0], "seed {seed}, {}", options.profile);
        stats.add(&outcome.stats);
    }
    stats
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    for class in [Class::Within, Class::Beyond] {
        let options = Options { class, ..Options::default() };
        let (once, twice) = (run(7, &options), run(7, &options));
        assert_eq!((once.hash, once.stats), (twice.hash, twice.stats));
        assert_ne!(once.hash, run(8, &options).hash);
    }
}

#[test]
fn where_only_primaries_die_each_is_replaced_and_nothing_is_lost() {
    let quorum =
        Options { profile: Profile::Quiet, mode: Some(Mode::Quorum), ..Options::default() };
    let stats = sum(&quorum, 5);
    assert!(stats.acked > 1_000 && stats.grants > 20 && stats.certificates > 200, "{stats:?}");
    assert_eq!((stats.lost, stats.excused, stats.fired), (0, 0, 0), "{stats:?}");
    let stats = sum(&Options { mode: Some(Mode::Lease), ..quorum }, 5);
    assert!(stats.acked > 1_000 && stats.grants > 20, "{stats:?}");
}

#[test]
fn without_a_clock_nothing_acknowledged_is_lost_in_quorum_mode() {
    let (class, mode) = (Class::Beyond, Some(Mode::Quorum));
    let clocks =
        Options { class, mode, liveness: false, profile: Profile::Clocks, ..Options::default() };
    let stats = sum(&clocks, 10);
    assert!(stats.acked > 1_000 && stats.grants > 10, "{stats:?}");
}

/// Rules that the simulator notices when they are left out: where, and by which invariant.
const NOTICED: [(Mutant, Profile, Mode, &str); 8] = [
    (Mutant::CompleteOverSets, Profile::Crashes, Mode::Quorum, "S2"),
    (Mutant::UncoveredKept, Profile::Crashes, Mode::Quorum, "S2"),
    (Mutant::StartsJudged, Profile::Crashes, Mode::Quorum, "S2"),
    (Mutant::EndCarriesDirective, Profile::Crashes, Mode::Quorum, "S2"),
    (Mutant::GrantRenewed, Profile::Crashes, Mode::Quorum, "C8"),
    (Mutant::LowerDirectiveRefused, Profile::Clocks, Mode::Lease, "S4"),
    (Mutant::ClosedOnDisk, Profile::Mixed, Mode::Lease, "S1"),
    (Mutant::LossBound, Profile::Mixed, Mode::Lease, "S7"),
];

#[test]
fn each_rule_left_out_is_noticed() {
    /// Seeds within which each must be noticed.
    const ENOUGH: u64 = 300;
    for (mutant, profile, mode, rule) in NOTICED {
        let options = Options {
            duration_ms: 40_000,
            profile,
            mode: Some(mode),
            liveness: false,
            mutant: Some(mutant),
            ..Options::default()
        };
        let noticed = (1..=ENOUGH).any(|seed| {
            run(seed, &options).violations.iter().any(|violation| violation.starts_with(rule))
        });
        assert!(noticed, "{mutant:?} was not noticed");
    }
}

#[test]
fn a_timeline_number_that_repeats_is_noticed() {
    let mutant = Some(Mutant::TimelineSetAside);
    let options = Options { mutant, liveness: false, ..Options::default() };
    let noticed = (1..=250).any(|seed| {
        let violations = run(seed, &options).violations;
        violations.iter().any(|violation| violation.contains("records that are not its own"))
    });
    assert!(noticed);
}
