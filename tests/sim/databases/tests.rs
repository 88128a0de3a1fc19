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

/// How long faults go on where a rule is left out, in milliseconds.
const HUNT_MS: u64 = 40_000;
/// Seeds within which each is noticed, with room for twice as many.
const ENOUGH: u64 = 1_000;

/// Each rule that is left out, where that is looked for, and what it breaks.
type Hunt = (Mutant, Profile, Mode, &'static str);

/// What a role change rests on.
const PROOFS: [Hunt; 6] = [
    (Mutant::OutCounts, Profile::Splits, Mode::Quorum, "S"),
    (Mutant::CompleteOverSets, Profile::Crashes, Mode::Quorum, "S2"),
    (Mutant::UncoveredKept, Profile::Crashes, Mode::Quorum, "S2"),
    (Mutant::CoveredByNewTransaction, Profile::Detaches, Mode::Quorum, "S2"),
    (Mutant::NamesThroughNobody, Profile::Flaps, Mode::Quorum, "S2"),
    (Mutant::LossBound, Profile::Mixed, Mode::Lease, "S7"),
];

/// The order of its steps, and what lies on disks.
const ORDER: [Hunt; 12] = [
    (Mutant::PledgeSynced, Profile::Detaches, Mode::Quorum, "S4"),
    (Mutant::LowerDirectiveRefused, Profile::Clocks, Mode::Lease, "S4"),
    (Mutant::StartsJudged, Profile::Crashes, Mode::Quorum, "S2"),
    (Mutant::DetachedOnDisk, Profile::Detaches, Mode::Quorum, "S2"),
    (Mutant::ClosedOnDisk, Profile::Mixed, Mode::Lease, "S1"),
    (Mutant::RenewalAfterCrash, Profile::Crashes, Mode::Quorum, "E4"),
    (Mutant::FenceRefusesRenewals, Profile::Detaches, Mode::Quorum, "D"),
    (Mutant::CutAfterResign, Profile::Switchovers, Mode::Quorum, "D"),
    (Mutant::RenewalAfterStop, Profile::Switchovers, Mode::Quorum, "E4"),
    (Mutant::EndCarriesDirective, Profile::Heirs, Mode::Quorum, "S2"),
    (Mutant::ReadersShut, Profile::Switchovers, Mode::Quorum, "D"),
    (Mutant::RoutesFirst, Profile::Switchovers, Mode::Quorum, "S8"),
];

/// Leases, clocks and pauses.
const LEASES: [Hunt; 11] = [
    (Mutant::GrantRenewed, Profile::Crashes, Mode::Quorum, "C8"),
    (Mutant::ShutKeepsDeadline, Profile::Pauses, Mode::Lease, "S1"),
    (Mutant::PauseCommitted, Profile::Pauses, Mode::Lease, "S1"),
    (Mutant::LapseUnpaused, Profile::Pauses, Mode::Lease, "S1"),
    (Mutant::PauseNeedsLevel, Profile::Upgrades, Mode::Lease, "S1"),
    (Mutant::StrangerWaits, Profile::Twins, Mode::Lease, "S1"),
    (Mutant::ProofOfThisBoot, Profile::Twins, Mode::Lease, "S1"),
    (Mutant::WeakProvesNothing, Profile::Weak, Mode::Lease, "S1"),
    (Mutant::NamingEnds, Profile::Clocks, Mode::Lease, "S8"),
    (Mutant::BelievedFromRound, Profile::Splits, Mode::Lease, "S8"),
    (Mutant::RoutesBelieve, Profile::Splits, Mode::Lease, "S8"),
];

/// Long leases, over long runs.
const RATES: [Hunt; 3] = [
    (Mutant::HolderMargin, Profile::Rates, Mode::Lease, "S1"),
    (Mutant::FenceBudget, Profile::Rates, Mode::Lease, "S1"),
    (Mutant::LaterClock, Profile::Rates, Mode::Lease, "S1"),
];

/// What nothing breaks without, because something else stands behind it: `Mutant` says what.
const SECOND: [Mutant; 4] = [
    Mutant::FreeReceipt,
    Mutant::NamesBeforePromotion,
    Mutant::CertificatesLatched,
    Mutant::LeaseOfGrant,
];

fn hunt(hunts: &[Hunt], duration_ms: u64) {
    for (mutant, profile, mode, rule) in hunts {
        let options = Options {
            duration_ms,
            profile: *profile,
            mode: Some(*mode),
            liveness: false,
            mutant: Some(*mutant),
            // Who is named is seen before anybody is answered, and a run ends with the first that is seen.
            pages: *rule == "S8",
            ..Options::default()
        };
        let noticed = (1..=ENOUGH).find(|seed| {
            run(*seed, &options).violations.iter().any(|violation| violation.starts_with(rule))
        });
        println!("{mutant:?}: {noticed:?}");
        assert!(noticed.is_some(), "{mutant:?} was not noticed");
    }
}

#[test]
fn each_proof_left_out_is_noticed() {
    hunt(&PROOFS, HUNT_MS);
}

#[test]
fn each_step_out_of_order_is_noticed() {
    hunt(&ORDER, HUNT_MS);
}

#[test]
fn each_rule_of_leases_and_pauses_left_out_is_noticed() {
    hunt(&LEASES, HUNT_MS);
}

#[test]
fn each_margin_left_out_is_noticed() {
    hunt(&RATES, 4 * HUNT_MS);
}

#[test]
fn every_rule_is_hunted_or_said_to_have_a_second_one_behind_it() {
    let hunted = [&PROOFS[..], &ORDER, &LEASES, &RATES].concat();
    let timeline = Mutant::TimelineSetAside;
    for (mutant, name) in Mutant::ALL {
        let times = hunted.iter().filter(|(it, ..)| *it == mutant).count()
            + SECOND.iter().chain([&timeline]).filter(|it| **it == mutant).count();
        assert_eq!(times, 1, "{name}");
    }
}

#[test]
fn readers_are_sent_away_before_their_standby_is_promoted() {
    for mode in [Mode::Quorum, Mode::Lease] {
        let options =
            Options { profile: Profile::Switchovers, mode: Some(mode), ..Options::default() };
        let stats = sum(&options, 20);
        assert!(stats.reads > 5_000 && stats.stubborn > 0 && stats.resigned > 10, "{stats:?}");
    }
}

#[test]
fn whoever_is_named_the_primary_may_be_also_while_its_agent_waits_for_a_disk() {
    for mode in [Mode::Quorum, Mode::Lease] {
        let options = Options { profile: Profile::Clocks, mode: Some(mode), ..Options::default() };
        let stats = sum(&options, 50);
        assert!(stats.named > 5_000 && stats.held_up > 100, "{stats:?}");
    }
}

/// Nodes apply late, ask for read indexes, and name nobody whose session was taken.
#[test]
fn no_node_sends_anybody_to_a_primary_whose_time_was_over() {
    for mode in [Mode::Quorum, Mode::Lease] {
        let options = Options { profile: Profile::Splits, mode: Some(mode), ..Options::default() };
        let stats = sum(&options, 50);
        assert!(stats.routed > 10_000 && stats.routed_late > 500, "{stats:?}");
    }
}

#[test]
fn somebody_serves_in_the_end_whatever_broke() {
    for (profile, name) in Profile::ALL {
        for mode in [Mode::Quorum, Mode::Lease] {
            let options = Options { profile, mode: Some(mode), ..Options::default() };
            let stats = sum(&options, 6);
            assert!(stats.acked > 100, "{name}: {stats:?}");
        }
    }
}

#[test]
fn the_primary_is_changed_in_every_way_that_there_is() {
    let of = |profile, seeds| sum(&Options { profile, ..Options::default() }, seeds);
    let stats = of(Profile::Switchovers, 60);
    assert!(stats.announced > 50 && stats.resigned > 20 && stats.taken_over > 10, "{stats:?}");
    assert!(stats.fetches > 3 && stats.fetched > 0, "{stats:?}");
    assert!(stats.left > 10 && stats.drained > stats.left, "{stats:?}");
    let stats = of(Profile::Twins, 30);
    assert!(stats.twins > 5 && stats.grants > 50, "{stats:?}");
    let stats = of(Profile::Weak, 30);
    assert!(stats.outlived > 20 && stats.grants > 50, "{stats:?}");
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
