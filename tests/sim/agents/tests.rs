//! The simulator on trial: it repeats itself, it is not empty, and it finds what it should.

use super::*;

/// Runs seeds until one of them shows a violation.
fn first_caught(options: &Options, seeds: u64) -> Option<(u64, Vec<String>)> {
    (1..=seeds)
        .map(|seed| (seed, run(seed, options).violations))
        .find(|(_, violations)| !violations.is_empty())
}

fn sum(options: &Options, seeds: u64) -> Stats {
    let mut stats = Stats::default();
    for seed in 1..=seeds {
        let outcome = run(seed, options);
        assert_eq!(outcome.violations, [""; 0], "seed {seed}, {} A1", outcome.class);
        stats.add(&outcome.stats);
    }
    stats
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    for class in [Class::Within, Class::Beyond] {
        let options = Options { class, ..Options::default() };
        let (once, twice) = (run(7, &options), run(7, &options));
        assert_eq!((once.trace_hash, once.stats), (twice.trace_hash, twice.stats));
        assert_ne!(once.trace_hash, run(8, &options).trace_hash);
    }
}

#[test]
fn within_the_assumptions_no_invariant_breaks_and_everything_happens() {
    let stats = sum(&Options::default(), 25);
    assert!(stats.lapses > 100 && stats.unused > 20 && stats.acts > 100, "{stats:?}");
    assert!(stats.renewals > 5_000 && stats.resends > 20 && stats.named > 5_000, "{stats:?}");
    assert!(stats.leaders > 200 && stats.restarts > 100 && stats.retries > 500, "{stats:?}");
    assert!(stats.writes > 1_000 && stats.refused > 20, "{stats:?}");
    assert_eq!(stats.overlaps, 0);
}

#[test]
fn five_nodes_and_eight_clients_keep_the_invariants_too() {
    let stats = sum(&Options { nodes: 5, clients: 8, ..Options::default() }, 8);
    assert!(stats.acts > 50, "{stats:?}");
}

#[test]
fn beyond_the_assumptions_leases_may_overlap_but_nothing_else_breaks() {
    let stats = sum(&Options { class: Class::Beyond, ..Options::default() }, 40);
    assert!(stats.overlaps > 0, "clocks beyond A1 did nothing: {stats:?}");
    assert!(stats.abstained > 100 && stats.lapses > 100, "{stats:?}");
}

/// Seeds within which every mutant must be found. The slowest, when this was written, took 167: a
/// pause must hit the last quarter of a second of a lease that nobody renews any more.
const ENOUGH: u64 = 300;

#[test]
fn each_bug_put_back_in_is_found() {
    for (mutant, _) in Mutant::ALL {
        let options = Options { mutant: Some(mutant), ..Options::default() };
        let caught = first_caught(&options, ENOUGH);
        let (seed, violations) = caught.unwrap_or_else(|| panic!("{mutant:?} was not found"));
        let rule = match mutant {
            Mutant::NoDeduplication => "dedupe",
            Mutant::UnguardedResource => "S4",
            Mutant::ActUnconfirmed => "C8",
            Mutant::BelieveAtApply | Mutant::BelieveForever | Mutant::ReadIndexWithoutQuorum => {
                "S8"
            }
            _ => "S5",
        };
        assert!(violations[0].contains(rule), "{mutant:?}, seed {seed}: {violations:?}");
    }
}
